"""`equipoise train --smoke`: a configuration end to end with a tiny random model, on a CPU, in seconds.

What the run *does* stays: model family, head structure, chat or text, data format, reward, clipping, polarity, replay,
partial rollouts, adapter, updates per rollout batch. What it *costs* is cut, and every cut is printed. A random model
solves nothing, so a second reward, the share of letters, is added (all advantages would be zero), and the
entropy to hold is set above a random model's.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.commands.threads import fit_threads
from equipoise.errors import InputError
from equipoise.models.tiny import tiny_model
from equipoise.settings.batches import RolloutBatch
from equipoise.settings.presets import with_preset
from equipoise.tasks.math_data import MATH_DATA, MathData
from equipoise.tasks.task import completion_text
from equipoise.tasks.terms import Term, parsed_terms, written
from equipoise.trl import run

MODEL_FOLDER, RUN_FOLDER = "base", "run"
DATA_FOLDERS = ("task", "eval_task")
GENERATIONS, PER_DEVICE, MAX_ACCUMULATED, MAX_UPDATES_PER_ROLLOUT = 4, 4, 2, 8
RANDOM_REFERENCE = 8.0  # nats, above what a random model over bytes has, so that the controller has something to do
COMPLETION_TOKENS, EPISODE_TOKENS = 24, 40

PROBLEMS = (
    ("What is 7 + 5?", "12"), ("What is 9 times 6?", "54"), ("What is 81 divided by 9?", "9"),
    ("What is the square of 11?", "121"), ("How many edges does a cube have?", "12"), ("What is 2^7?", "128"),
    ("What is half of 250?", "125"), ("Solve x + 4 = 10 for x.", "6"), ("What is 3 factorial?", "6"),
    ("What is the sum of the angles of a triangle, in degrees?", "180"), ("What is 1/2 + 1/4?", "3/4"),
    ("What is the largest prime below 20?", "19"), ("What is 15% of 200?", "30"), ("What is 17 - 29?", "-12"),
    ("How many diagonals does a pentagon have?", "5"), ("What is the area of a square of side 5?", "25"),
)  # fmt: skip
HELD_OUT = (("What is 8 + 13?", "21"), ("What is the cube of 3?", "27"))


def smoke(values: dict[str, Any]) -> Path:
    """Run the tiny form of a configuration; returns the run folder.

    Args:
        values: checked keys. `output_dir` gets base/ (the model) and run/ (the run); without it, a temporary folder.

    Raises:
        InputError: as `run.train`, an `output_dir` that is not empty, or a model whose shape is not known.
    """
    values = with_preset(values)
    values.pop("preset", None)
    if not values.get("model"):
        raise InputError("model is required: a model folder or a hub id (--model)")
    given = values.get("output_dir")
    made = [path for path in (Path(str(given)), *Path(str(given)).parents) if not path.exists()] if given else []
    folder = _folder(given)
    with _gone_if_refused(folder, made if given else [folder]):
        return _smoke(values, folder)


@contextmanager
def _gone_if_refused(folder: Path, made: list[Path]) -> Iterator[None]:
    """Takes what was written, and the folders that were made for it, away again when no run has begun."""
    try:
        yield
    except BaseException:
        if not (folder / RUN_FOLDER).exists():
            for name in (MODEL_FOLDER, *DATA_FOLDERS):
                shutil.rmtree(folder / name, ignore_errors=True)
            for path in made:
                with suppress(OSError):
                    path.rmdir()
        raise


def _smoke(values: dict[str, Any], folder: Path) -> Path:
    print("Smoke run: the same configuration, tiny, on a CPU. Cut:")
    cut = cut_keys(values)
    model = tiny_model(values["model"], values.get("task"), folder / MODEL_FOLDER, seed=values.get("seed") or 0)
    print(f"  model: {values['model']} -> {model}")
    for key, value in cut.items():
        print(f"  {key}: {_shown(values.get(key))} -> {_shown(value)}")
    left_out = [key for key in LEFT_OUT if values.get(key) is not None]
    if left_out:
        print(f"  left out: {', '.join(left_out)}")
    print("  reward: the share of letters is added, so that advantages differ")
    kept = {key: value for key, value in values.items() if key not in LEFT_OUT}
    keys = kept | data_keys(values, folder) | cut
    keys |= {"model": str(folder / MODEL_FOLDER), "output_dir": str(folder / RUN_FOLDER)}
    return run.train(
        {k: v for k, v in keys.items() if v is not None}, extra_rewards=[letter_share], on_model=fit_threads
    )


LEFT_OUT = (
    "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "vllm_max_model_length",
    "vllm_tensor_parallel_size", "vllm_importance_sampling_correction", "vllm_server_base_url", "vllm_server_host",
    "vllm_server_port", "model_init_kwargs", "deepspeed", "fsdp", "fsdp_config", "generation_batch_size", "report_to",
    "use_liger_kernel", "torch_compile", "fp16", "asymmetry_map_every",
)  # fmt: skip
"""Keys of machines: a CPU has no use for them."""


def letter_share(completions: list, **columns: Any) -> list[float]:
    """The share of letters in each completion: differs between the samples of a random model."""
    texts = [str(completion_text(completion)) if completion else "" for completion in completions]
    return [sum(c.isalnum() for c in text) / max(len(text), 1) + min(len(text), 50) / 500 for text in texts]


def _folder(given: Any) -> Path:
    if not given:
        return Path(tempfile.mkdtemp(prefix="equipoise-smoke-"))
    folder = Path(str(given))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output_dir {folder} exists and is not empty: a smoke run needs a new folder")
    return folder


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def cut_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The keys that make a run cheap; the ratio of rollout batch to update and what steers the run stay.

    Args:
        values: checked keys, with those of the preset.
    """
    batch = RolloutBatch.of(values)
    iterations, few = batch.passes, min(batch.accumulated, MAX_ACCUMULATED)
    per_rollout = max(1, round(batch.micro_batches / batch.accumulated))
    per_rollout = min(per_rollout, max(1, MAX_UPDATES_PER_ROLLOUT // iterations))
    length = values.get("max_completion_length") or 256
    short = min(length, EPISODE_TOKENS if values.get("task") == "calculator" else COMPLETION_TOKENS)
    cut: dict[str, Any] = {
        "num_generations": GENERATIONS,
        "per_device_train_batch_size": PER_DEVICE,
        "gradient_accumulation_steps": few,
        "steps_per_generation": few * per_rollout,
        "max_completion_length": short,
        # One rollout batch, and two updates on the next: what is stored of the first is used in the second.
        "max_steps": per_rollout * iterations + 2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "save_steps": per_rollout * iterations + 1,
        "save_total_limit": 1,
        "evaluate_every": per_rollout * iterations + 2,
        "evaluate_samples": 2,
        "evaluate_k": [1, 2],
        "evaluate_prompts": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": bool(values.get("gradient_checkpointing")),
    }
    if values.get("replay_fraction"):
        # At least two groups, of which one is a stored one.
        cut["steps_per_generation"] = max(cut["steps_per_generation"], 4)
        cut["replay_fraction"] = max(values["replay_fraction"], 1 / cut["steps_per_generation"])
    if values.get("replay_max_age") is not None:
        cut["replay_max_age"] = None
    if values.get("rollout_token_budget"):
        cut["rollout_token_budget"] = max(1, round(values["rollout_token_budget"] * short / length))
    if values.get("polarity") == "papo":
        cut["papo_warmup_updates"] = 1
        if values.get("papo_signal", "reference") == "reference":
            cut["papo_reference_entropy"] = RANDOM_REFERENCE
    terms = parsed_terms(values["task"], "task") if values.get("task") else []
    if all(term.name in MATH_DATA or term.name.startswith("data:") for term in terms) and not values.get("eval_task"):
        cut["evaluate_every"] = 0  # nothing is held out
    if values.get("use_peft"):
        cut |= {"lora_r": 4}
    if values.get("num_generations_eval"):
        cut["num_generations_eval"] = 2
    if "calculator" in str(values.get("task")):
        cut["num_generations_eval"] = 2
    return cut


def data_keys(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of the data, with files of a few problems in the place of data sets, in the form those have.

    Tasks that make their own data stay.
    """
    keys: dict[str, Any] = {}
    for name, problems in zip(DATA_FOLDERS, (PROBLEMS, HELD_OUT), strict=True):
        if values.get(name):
            terms = [_with_file(term, problems, folder / name) for term in parsed_terms(values[name], name)]
            keys[name] = " + ".join(map(written, terms))
    return keys


def _with_file(term: Term, problems: tuple, folder: Path) -> Term:
    """The term with a file of problems in the place of its data set."""
    kept = {k: v for k, v in term.parameters.items() if k in ("prompt_column", "answer_column")}
    if term.name in MATH_DATA:
        known = MATH_DATA[term.name]
        known = replace(known, prompt=kept.get("prompt_column", known.prompt),
                        answer=kept.get("answer_column", known.answer))  # fmt: skip
        path = folder / f"{term.name}.jsonl"
        _write(path, problems, known)
        return Term(term.weight, term.name, kept | {"path": str(path)})
    if term.name.startswith("data:"):
        path = folder / f"{Path(term.name.removeprefix('data:')).stem}.jsonl"
        known = MathData("", "train", kept.get("prompt_column", "prompt"), kept.get("answer_column", "answer"))
        _write(path, problems, known)
        return Term(term.weight, f"data:{path}", kept)
    return term


def _write(path: Path, problems: tuple, known: MathData) -> None:
    """The problems as JSON lines in the columns of a data set; "outer.inner" is a key within a mapping."""
    rows = []
    for problem, answer in problems:
        row: dict[str, Any] = {}
        for column, value in (
            (known.prompt, problem),
            (known.answer, f'["{answer}"]' if known.list_literals else answer),
        ):
            outer, dot, inner = column.partition(".")
            row[outer] = {inner: value} if dot else value
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
