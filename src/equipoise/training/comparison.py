"""`equipoise evaluate`: runs and models on the same held-out data, side by side."""

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.tasks import (
    RewardFunction,
    check_answers,
    check_task_name,
    load_examples,
    named_task,
    verifier_function,
    with_template,
)
from equipoise.tasks.prompts import prompt_template
from equipoise.training import run
from equipoise.training.evaluation import Evaluation
from equipoise.training.evaluation_batches import SampleFile, data_fingerprint, evaluate_in_batches
from equipoise.training.evaluation_table import as_csv, as_markdown, print_evaluations
from equipoise.training.loading import check_prompts, encoded_prompt, fit_threads, load_model, load_tokenizer
from equipoise.training.sampling import Sampler
from equipoise.training.vllm_sampling import VllmSampler, vllm_engine

DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class HeldOut:
    """What to evaluate on."""

    name: str
    dataset: Dataset
    reward: RewardFunction
    max_new_tokens: int


def evaluate_models(options: argparse.Namespace) -> dict[str, dict[str, Evaluation]]:
    """Evaluate the models that the flags name on each benchmark, print a table, write what is asked for.

    Returns:
        Model -> benchmark -> evaluation.

    Raises:
        InputError: flags that do not fit, models or data that cannot be loaded, an output that exists, or samples of
            other settings.
    """
    _check(options)
    held_out = {name: _benchmarks(name, options) for name in options.models}
    files = {name: _sample_files(number, name, held_out[name], options) for number, name in enumerate(options.models)}
    evaluations = {name: _evaluate(name, data, files[name], options) for name, data in held_out.items()}
    numbers = {name: {b: e.as_dict() for b, e in found.items()} for name, found in evaluations.items()}
    print_evaluations(numbers)
    for path in options.output or []:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WRITERS[path.suffix](numbers), encoding="utf-8")
    return evaluations


WRITERS = {
    ".json": lambda numbers: json.dumps(numbers, indent=2) + "\n",
    ".csv": as_csv,
    ".md": as_markdown,
}
"""Suffix of --output -> its form."""


def _check(options: argparse.Namespace) -> None:
    if options.samples < 1 or any(not 1 <= k <= options.samples for k in options.k):
        raise InputError(f"--k must be from 1 to --samples={options.samples}, got {options.k}")
    if not options.temperature > 0:
        raise InputError(f"--temperature must be > 0, got {options.temperature}")
    for flag in ("max_new_tokens", "batch_size", "prompts"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be >= 1, got {value}")
    if options.task is not None and options.dataset is not None:
        raise InputError("give either --task or --dataset, not both")
    tasks: list[str] = options.task or []
    for task in tasks:
        check_task_name(task)
    if len(set(tasks)) < len(tasks):
        raise InputError(f"each task can be given once, got {' '.join(tasks)}")
    if options.dataset is not None and options.reward is None:
        raise InputError("--dataset needs --reward: exact, math or module:function")
    if len(set(options.models)) < len(options.models):
        raise InputError(f"each model can be given once, got {' '.join(options.models)}")
    for path in options.output or []:
        if path.exists():
            raise InputError(f"output {path} exists; choose another name")
        if path.suffix not in WRITERS:
            raise InputError(f"--output must end in one of {', '.join(WRITERS)}, got {path}")
    if options.samples_output is not None and options.samples_output.is_file():
        raise InputError(f"output {options.samples_output} exists; choose another name")


def _benchmarks(name: str, options: argparse.Namespace) -> list[HeldOut]:
    """The data of the flags, one by one, else that of the run."""
    found = [_held_out(name, task, options) for task in options.task or [None]]
    labels = [data.name for data in found]
    return [
        data if labels.count(data.name) == 1 else replace(data, name=task)
        for task, data in zip(options.task or [None], found, strict=True)
    ]


def _held_out(name: str, chosen: str | None, options: argparse.Namespace) -> HeldOut:
    keys: dict[str, Any] = {}
    if (Path(name) / run.CONFIG_FILE).is_file():
        keys = run.run_settings(Path(name))
    length = options.max_new_tokens or keys.get("max_completion_length")
    template = options.prompt_template or keys.get("prompt_template")
    named = chosen or (None if options.dataset else keys.get("eval_task") or _own_task(keys))
    if named:
        task = named_task(named, template=template, chat=options.chat or keys.get("chat", False))
        if task.environment_factory is not None:
            raise InputError(
                f"task {task.name} has episodes, which only a run evaluates (evaluate_every, held-out data)"
            )
        # A benchmark has no training data of its own: all of it is to evaluate on.
        dataset = task.train if task.held_out is None else task.held_out
        limit = options.max_new_tokens or task.max_completion_length or length or DEFAULT_MAX_NEW_TOKENS
        data = HeldOut(task.name, dataset, task.evaluation_reward, limit)
    else:
        if keys.get("environment") and not options.dataset:
            raise InputError(f"{name} has episodes, which only the run itself evaluates (evaluate_every)")
        source, reward = options.dataset or keys.get("eval_dataset"), options.reward or keys.get("reward")
        if reward is None and keys.get("task"):
            reward = "math"
        if source is None or reward is None:
            raise InputError(f"{name} names no held-out data: give --task, or --dataset and --reward")
        from_flags = options.dataset is not None
        columns = {
            key: getattr(options, key) if from_flags else keys.get(key, getattr(options, key))
            for key in ("prompt_column", "answer_column", "chat")
        }
        split = options.dataset_split if from_flags else keys.get("dataset_split", options.dataset_split)
        dataset = load_examples(source, split=split, empty_answers=True, **columns)
        dataset = check_answers(reward, dataset, source)
        if template is not None:
            dataset = with_template(dataset, prompt_template(template))
        data = HeldOut(Path(source).stem, dataset, verifier_function(reward), length or DEFAULT_MAX_NEW_TOKENS)
    if options.prompts is None:
        return data
    subset = data.dataset.select(range(min(options.prompts, len(data.dataset))))
    return HeldOut(data.name, subset, data.reward, data.max_new_tokens)


def _own_task(keys: dict[str, Any]) -> str | None:
    """The task of a run, unless it was evaluated on a data set."""
    return None if keys.get("eval_dataset") else keys.get("task")


def _model_name(name: str) -> str:
    return str(run.trained_model(Path(name))) if (Path(name) / run.CONFIG_FILE).is_file() else name


def _sample_files(number: int, name: str, benchmarks: list[HeldOut], options: argparse.Namespace) -> list:
    """Where the samples of each benchmark are kept, checked before anything is sampled; None where they are not."""
    if options.samples_output is None:
        return [None] * len(benchmarks)
    files = []
    for data in benchmarks:
        label = re.sub(r"[^A-Za-z0-9_.=-]+", "_", f"{number}-{Path(name).name}-{data.name}")[:120]
        settings = {
            "model": _model_name(name), "benchmark": data.name, "num_prompts": len(data.dataset),
            "data": data_fingerprint(data.dataset), "samples": options.samples, "temperature": options.temperature,
            "max_new_tokens": data.max_new_tokens, "batch_size": options.batch_size, "seed": options.seed,
            "backend": options.backend, "reward": data.reward.__name__,
        }  # fmt: skip
        files.append(SampleFile(options.samples_output / f"{label}.jsonl", settings))
        files[-1].check()
    return files


def _evaluate(name: str, benchmarks: list[HeldOut], files: list, options: argparse.Namespace) -> dict[str, Evaluation]:
    """The evaluations of one model, which is loaded once."""
    tokenizer = load_tokenizer(_model_name(name))
    for data in benchmarks:
        check_prompts(data.dataset, tokenizer, name)
    sampler = _sampler(name, tokenizer, options)
    evaluations = {}
    for data, file in zip(benchmarks, files, strict=True):
        sampler.max_new_tokens = data.max_new_tokens
        evaluations[data.name] = evaluate_in_batches(
            sampler,
            data.dataset,
            [encoded_prompt(tokenizer, prompt, row) for row, prompt in enumerate(data.dataset["prompt"], start=1)],
            data.reward,
            num_samples=options.samples,
            ks=options.k,
            temperature=options.temperature,
            batch_size=options.batch_size,
            seed=options.seed,
            samples=file,
            name=f"{Path(name).name} {data.name}",
        )
    return evaluations


def _sampler(name: str, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Any:
    """The model, ready to sample, in transformers or in vLLM."""
    model_name = _model_name(name)
    if options.backend == "vllm":
        engine, parameters = vllm_engine(model_name, seed=options.seed)
        return VllmSampler(engine, parameters, tokenizer, 1)
    on_cpu = not torch.accelerator.is_available()
    model = load_model(model_name, on_cpu=on_cpu)
    fit_threads(model, on_cpu=on_cpu)
    if not on_cpu:
        cast(Any, model).to(torch.accelerator.current_accelerator())
    return Sampler(model.eval(), tokenizer, 1, options.batch_size, measures_entropy=True)


def print_table(evaluations: dict[str, dict[str, Any]]) -> None:
    """Greedy, pass@k and distinct correct answers of each model, with 95% intervals over prompts."""
    ks = list(dict.fromkeys(k for e in evaluations.values() for k in e["pass_at"]))
    first = next(iter(evaluations.values()))
    table = Table(
        title=f"{first['num_prompts']} held-out prompts, {first['num_samples']} samples each at temperature "
        f"{first['temperature']:g}; 95% intervals over prompts"
    )
    table.add_column("model", overflow="fold")
    largest = ks[-1]
    for heading in ("greedy", *(f"pass@{k}" for k in ks), f"distinct correct of {largest}"):
        table.add_column(heading, justify="right")
    for name, e in evaluations.items():
        estimates = [e["greedy"], *(e["pass_at"][k] for k in ks), e["distinct_correct_at"][largest]]
        table.add_row(name, *map(_interval, estimates))
    Console(width=None if Console().is_terminal else 120).print(table)


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
