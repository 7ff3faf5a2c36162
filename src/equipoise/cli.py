"""The command line: `equipoise train | evaluate | compare | probe | report | doctor | warm-start | quickstart`.

Exit codes: 0 done, 1 a run of a study failed or the doctor found something wrong, 2 something the user gave cannot be
used (one line says what), 130 interrupted.
"""

import argparse
import logging
import os
import sys
import textwrap
import warnings
from pathlib import Path

from equipoise import __version__
from equipoise.errors import InputError

DESCRIPTION = "Entropy control for reinforcement fine-tuning of language models, token by token."

EXAMPLES = """\
examples:
  equipoise quickstart                         everything once, on a laptop, in minutes
  equipoise warm-start runs/base               a small model that can nearly do the number ladder
  equipoise train --config recipes/ladder_stale_equipoise.yaml --model runs/base --output_dir runs/ladder
  equipoise train --model FOLDER_OR_ID --dataset data.jsonl --reward math --output_dir runs/mine
  equipoise plan --config recipes/papers/bapo_r1_distill_7b.yaml --accelerate recipes/accelerate/one_node_fsdp2.yaml
  equipoise train --config recipes/papers/bapo_r1_distill_7b.yaml --smoke    the same end to end, tiny, on a CPU
  equipoise train --resume runs/mine           continue an interrupted run, exactly
  equipoise evaluate runs/mine FOLDER_OR_ID    runs and models side by side
  equipoise doctor runs/mine                   what is wrong with it, why, and what to change
  equipoise compare recipes/studies/staleness.yaml --output runs/staleness    methods over paired seeds
  equipoise report runs/a runs/b -o report.html  one page: curves, and every recorded token
  equipoise report runs/mine --live            the same page of a run in progress
"""

COMPARE = """\
Run every method of a study under every condition from the same seeds, several side by side, and compare them.
Interrupt it at any time: the same command goes on, and a finished run is never run again.

Writes in the output folder: runs.csv (a row per run), table.md (means, paired differences with 95% intervals),
differences-*.png, conditions.png, and every run folder under runs/. Exit code 1 when a run failed.
"""

PLAN = """\
Calculate what a run needs: parameters, optimizer state, activations, what the statistics head keeps, KV cache, each
with its formula, summed for one GPU; and what the batch settings mean on so many GPUs. Every key of the configuration
is also a flag. Nothing is loaded but the shape of the model (its config.json, or recipes/architectures).
"""

PROBE = """\
Sample completions, take one real optimizer step from the model's weights, and measure the entropy at the same contexts
again. Compares what entropy polarity predicts with what happened: per token, in deciles, over batches, and with the
exact first-order value <grad H, step>. The model on disk is not changed.

Writes probe.json, tokens.csv (a row per token) and probe.png in a new folder.
"""

DOCTOR = """\
Find what usually goes wrong: ratios that are always 1, padding or tool output in the entropy, truncated completions,
groups with equal rewards, a verifier that accepts nothing, sampling and training log-probs that disagree, bounds and
controllers at their limit, steps too large for first order, batch arithmetic. Every finding says what was seen, why it
matters and what to change. Reads only; docs/doctor.md has all checks with their thresholds.

Exit code 1 when something is wrong, 0 when not (warnings do not count), 2 when the target is none of the three.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Deprecations inside the host libraries are not for the user of this one.
    warnings.filterwarnings("ignore", category=FutureWarning)
    options, rest = _parser().parse_known_args(arguments)
    _quiet_hosts()
    try:
        return options.command(options, rest) or 0
    except InputError as error:
        print(f"equipoise: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nequipoise: interrupted", file=sys.stderr)
        return 130


def _quiet_hosts() -> None:
    """Leave the progress bars to those that tell something: not one per saved file."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("equipoise", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"equipoise {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model with GRPO, balanced clipping and polarity control",
        description="Train a model. Every key of the YAML file is also a flag, which overrides it.",
        usage="equipoise train --config FILE [--key value …]  |  equipoise train --resume RUN [--key value …]",
        formatter_class=formatter,
        add_help=False,
    )
    train.add_argument("-h", "--help", action="store_true", help="show this help, with the keys of equipoise")
    train.add_argument("--config", metavar="FILE", help="YAML file of keys; one file is one run")
    train.add_argument("--resume", metavar="RUN", type=Path, help="continue the run in this folder")
    train.add_argument("--smoke", action="store_true", help="the same end to end, tiny, on a CPU")
    train.set_defaults(command=_train)

    plan = commands.add_parser(
        "plan",
        help="what a configuration means in batches and memory, calculated before anything starts",
        description=PLAN,
        formatter_class=formatter,
    )
    _add_plan_arguments(plan)
    plan.set_defaults(command=_plan)

    evaluate = commands.add_parser(
        "evaluate",
        help="greedy, avg@k, pass@k with intervals, distinct correct answers, entropy, length",
        description="Evaluate runs and models on held-out data, side by side.",
        formatter_class=formatter,
    )
    _add_evaluate_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    compare = commands.add_parser(
        "compare",
        help="methods under the same conditions over paired seeds: tables, intervals, figures",
        description=COMPARE,
        formatter_class=formatter,
    )
    compare.add_argument("study", type=Path, metavar="STUDY.yaml", help="what to compare; see recipes/studies")
    compare.add_argument("--output", type=Path, help="the study's folder (default: runs/ and the name of the file)")
    compare.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    compare.add_argument("--jobs", type=int, help="runs side by side (default: one per core, or 1 with an accelerator)")
    compare.add_argument("--report", action="store_true", help="start no run: tables and figures of the finished ones")
    compare.set_defaults(command=_compare)

    probe = commands.add_parser(
        "probe",
        help="one optimizer step: predicted against realised entropy change, and which tokens move it",
        description=PROBE,
        formatter_class=formatter,
    )
    _add_probe_arguments(probe)
    probe.set_defaults(command=_probe)

    report = commands.add_parser(
        "report",
        help="one page of curves and coloured tokens, from run folders",
        description="Write one HTML file that opens without network: curves with bands over seeds, bounds, flows, "
        "distributions, and, of runs with record_tokens, every token coloured by what it did to the entropy.",
        formatter_class=formatter,
    )
    _add_report_arguments(report)
    report.set_defaults(command=_report)

    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with a run, a configuration or a model, why, and what to change",
        description=DOCTOR,
        formatter_class=formatter,
    )
    _add_doctor_arguments(doctor)
    doctor.set_defaults(command=_doctor)

    warm_start = commands.add_parser(
        "warm-start",
        help="make the small model of a small task (no network)",
        description="Supervised training of a small model until it can do a task now and then.",
    )
    warm_start.add_argument("folder", type=Path, help="where the model folder is written")
    warm_start.add_argument("--task", default="ladder", help="ladder, calculator, or one of short texts (%(default)s)")
    warm_start.add_argument("--steps", type=int, help="optimizer steps (default: that of the task)")
    warm_start.add_argument("--seed", type=int, default=0)
    warm_start.set_defaults(command=_warm_start)

    quickstart = commands.add_parser("quickstart", help="warm start, two runs, evaluation and a picture, in minutes")
    quickstart.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    quickstart.add_argument("--seed", type=int, default=0)
    quickstart.set_defaults(command=_quickstart)
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands.threads import fit_threads
    from equipoise.settings import reading as settings
    from equipoise.trl import run

    if options.help:
        print(train_help())
        return 0
    from equipoise.settings.presets import merged

    flags = settings.checked_keys(settings.read_flags(rest), "flag --")
    if options.resume is not None:
        if options.config is not None:
            raise InputError("--resume takes the run's own configuration: leave --config out")
        if options.smoke:
            raise InputError("--smoke starts a run of its own: leave --resume out")
        folder = run.resume(options.resume, flags, on_model=fit_threads)
    elif options.smoke:
        from equipoise.commands.smoke import smoke

        folder = smoke(merged(_keys(options.config), flags))
    else:
        folder = run.train(merged(_keys(options.config), flags), on_model=fit_threads)
    print(f"Done: {folder}")
    return 0


def _keys(config: str | None) -> dict:
    """The checked keys of a configuration file; none without one."""
    from equipoise.settings import reading as settings

    return {} if config is None else settings.checked_keys(settings.read_yaml(config), f"config {config}: ")


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of keys, as `equipoise train` takes it")
    parser.add_argument("--accelerate", metavar="FILE", type=Path, help="accelerate configuration: processes, sharding")
    parser.add_argument("--processes", type=int, help="GPUs (default: those of --accelerate, else 1)")
    parser.add_argument("--sharding", choices=["none", "fsdp2", "zero2", "zero3"], help="default: as in --accelerate")
    parser.add_argument("--gpu_memory", type=float, default=80, help="GiB of one GPU (default: %(default)s)")
    parser.add_argument("--prompt_tokens", type=int, default=512, help="longest prompt (default: %(default)s)")
    parser.add_argument("--architecture", metavar="FILE", type=Path, help="config.json, where the model is not at hand")
    parser.add_argument("--json", action="store_true", help="print JSON, every term with its bytes and formula")


def _plan(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands import plan
    from equipoise.settings import reading as settings
    from equipoise.settings.presets import merged

    flags = settings.checked_keys(settings.read_flags(rest), "flag --")
    plan.run_plan(merged(_keys(options.config), flags), options)
    return 0


def train_help() -> str:
    """What `equipoise train --help` prints: the keys of equipoise; those of TRL are in TRL's documentation."""
    import dataclasses

    from equipoise.settings.run import RunSettings
    from equipoise.trl.config import OWN_FIELDS, EquipoiseConfig

    lines = [
        "usage: equipoise train --config FILE [--key value …]",
        "       equipoise train --resume RUN [--key value …]",
        "",
        "One YAML file is one run; every key is also a flag, which overrides the file.",
        "",
        "  --config FILE   YAML file of keys",
        "  --resume RUN    continue the run in this folder from its newest complete checkpoint",
        "  --smoke         the same configuration end to end with a tiny random model on a CPU; says what it cut",
    ]
    own = [f for f in dataclasses.fields(EquipoiseConfig) if f.name in OWN_FIELDS]
    for title, fields in (
        ("what to train on what", dataclasses.fields(RunSettings)),
        ("clipping, polarity and token records", own),
    ):
        lines += ["", f"{title}:"]
        for field in fields:
            default = field.default_factory() if callable(field.default_factory) else field.default
            head = f"  --{field.name}" + ("" if default in (None, "") else f" (default: {default})")
            lines += [
                head,
                *textwrap.wrap(field.metadata["help"], 100, initial_indent=6 * " ", subsequent_indent=6 * " "),
            ]
    lines += [
        "",
        "All keys of TRL's GRPOConfig work as well: output_dir, learning_rate, max_steps, num_generations,",
        "steps_per_generation and num_iterations (updates per rollout batch), loss_type, epsilon, seed, report_to, …",
    ]
    return "\n".join(lines)


def _add_data_arguments(parser: argparse.ArgumentParser, title: str, *, several: bool = False):
    data = parser.add_argument_group(title)
    named = "tasks by name, one after the other" if several else "a task by name"
    data.add_argument(
        "--task", nargs="+" if several else None, help=f"{named}: ladder, reasoning_gym:NAME, aime_2024, …"
    )
    data.add_argument("--prompt_template", help="boxed, answer_tags or text with {prompt} in it")
    data.add_argument("--dataset", metavar="FILE", help="short for --task data:FILE: JSONL, Parquet, CSV or a hub id")
    data.add_argument("--chat", action="store_true", help="wrap text prompts as one user message")
    data.add_argument(
        "--chat_template_kwargs", metavar="MAPPING", help="for the chat template, as '{\"enable_thinking\": false}'"
    )
    data.add_argument("--reward", help="exact, math or module:function (the first term of a sum counts)")
    return data


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL_OR_RUN", help="run folder, model folder or hub id")
    data = _add_data_arguments(parser, "held-out data (default: that of the run)", several=True)
    data.add_argument("--prompts", type=int, help="only the first so many")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=int, default=16, help="per prompt (default: %(default)s)")
    sampling.add_argument("--k", type=int, nargs="+", default=[1, 8], help="of pass@k (default: 1 8)")
    sampling.add_argument("--temperature", type=float, default=1.0)
    sampling.add_argument("--max_new_tokens", type=int, help="default: that of the task or run, else 512")
    sampling.add_argument("--batch_size", type=int, default=256, help="sequences at a time (default: %(default)s)")
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument("--backend", choices=["transformers", "vllm"], default="transformers", help="vllm: on a GPU")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, nargs="+", help="write the table to new files: .json, .csv, .md")
    output.add_argument(
        "--samples_output",
        type=Path,
        metavar="FOLDER",
        help="keep every sample with its verdict and reason, a JSONL per model and task; an interrupted evaluation "
        "goes on where it stopped",
    )


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands.evaluate import evaluate_models

    _no_rest(rest)
    _read_data(options)
    evaluate_models(options)
    return 0


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder; seeds of equal settings are one band"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("--title", help="default: the names of the runs")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    live = parser.add_argument_group("a run in progress")
    live.add_argument("--live", action="store_true", help="serve the page on this machine instead, and keep it fresh")
    live.add_argument("--port", type=int, default=8765, help="default: %(default)s")
    live.add_argument("--refresh", type=float, default=10.0, metavar="SECONDS", help="default: %(default)s")


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from tqdm.auto import tqdm

    from equipoise.diagnostics.report import serve, write_report

    _no_rest(rest)
    if not 1 <= options.refresh < float("inf"):
        raise InputError(f"flag --refresh must be at least 1 second, got {options.refresh}")
    if options.live:
        serve(options.runs, title=options.title, port=options.port, seconds=options.refresh)
        return 0

    def progress(row_groups: list):
        return iter(tqdm(row_groups, desc="token records", unit="block", disable=len(row_groups) < 8))

    write_report(options.runs, options.output, title=options.title, force=options.force, progress=progress)
    print(f"Done: {options.output}")
    return 0


def _add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="run folder, model folder or hub id")
    _add_data_arguments(parser, "prompts (default: the training data of the run)")
    step = parser.add_argument_group("the step")
    step.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="fresh; default: %(default)s")
    step.add_argument("--learning_rate", type=float, default=1e-5, help="default: %(default)s")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--prompts", type=int, default=16, help="per batch (default: %(default)s)")
    sampling.add_argument("--generations", type=int, default=8, help="per prompt (default: %(default)s)")
    sampling.add_argument("--batches", type=int, default=4, help="each with a step of its own (default: %(default)s)")
    sampling.add_argument("--temperature", type=float, default=1.0)
    sampling.add_argument("--max_new_tokens", type=int, help="default: that of the task, else 512")
    sampling.add_argument("--batch_size", type=int, default=32, help="sequences at a time (default: %(default)s)")
    sampling.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/probe"), help="new folder (default: %(default)s)")


def _probe(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands import probe as probing

    _no_rest(rest)
    _read_data(options)
    probing.print_report(probing.probe(options), options.output)
    return 0


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN|CONFIG|MODEL", help="run folder, YAML file, model folder or hub id")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, and nothing else")
    parser.add_argument("--probe", action="store_true", help="also take one real step and measure it (needs data)")
    parser.add_argument("--learning_rate", type=float, help="of the probe (default: that of the run, else 1e-5)")
    _add_data_arguments(parser, "data (default: that of the run or configuration)")


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands.doctor import doctor

    _no_rest(rest)
    _read_data(options)
    return doctor(options)


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands.compare.command import compare

    _no_rest(rest)
    output = options.output or Path("runs") / options.study.stem
    return compare(options.study, output, seeds=options.seeds, num_jobs=options.jobs, only_report=options.report)


def _warm_start(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.models.warm_starts import warm_start

    _no_rest(rest)
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be >= 1, got {options.steps}")
    print(f"Done: {warm_start(options.task, options.folder, seed=options.seed, steps=options.steps)}")
    return 0


def _quickstart(options: argparse.Namespace, rest: list[str]) -> int:
    from equipoise.commands.quickstart import quickstart

    _no_rest(rest)
    quickstart(options.output, seed=options.seed)
    return 0


def _read_data(options: argparse.Namespace) -> None:
    """--dataset is another spelling of --task."""
    from equipoise.settings.data_keys import data_term

    if options.dataset is None:
        return
    if options.task is not None:
        raise InputError("give either --task or --dataset, not both")
    term = data_term(options.dataset)
    options.task = [term] if options.command is _evaluate else term


def _no_rest(rest: list[str]) -> None:
    if rest:
        from equipoise.settings.data_keys import GONE, now_written

        flag, _, value = rest[0].removeprefix("--").replace("-", "_").partition("=")
        if flag in GONE:
            raise InputError(f"flag --{now_written(flag, value or ' '.join(rest[1:2]) or '…')}")
        raise InputError(f"flag {rest[0]} is not known; see --help")
