"""`equipoise evaluate`: runs and models on the same held-out data, side by side."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import uuid4

import torch
from datasets import Dataset
from tyro.conf import Positional, arg

from equipoise.commands.data import DataOptions
from equipoise.commands.evaluation_table import as_csv, as_markdown, print_evaluations
from equipoise.commands.threads import fit_threads
from equipoise.commands.trusting import TrustOptions
from equipoise.diagnostics.run_folder import CONFIG_FILE, is_run_folder, model_of
from equipoise.diagnostics.trust import named_code, require_trust
from equipoise.errors import InputError, read_from, require
from equipoise.files import write_at_once
from equipoise.interrupts import advised
from equipoise.models.evaluation import Evaluation
from equipoise.models.loading import load_model, load_tokenizer, template_settings
from equipoise.models.prompts import encoded_prompts, tell_untold
from equipoise.models.resumable_evaluation import SampleFile, data_fingerprint, evaluate_in_batches
from equipoise.models.sampling import Sampler
from equipoise.models.vllm_sampling import VllmSampler, vllm_engine
from equipoise.paths import check_new_file
from equipoise.redaction import redacted
from equipoise.settings.task_loading import data_of, evaluation_task
from equipoise.tasks import RewardFunction, check_task_name
from equipoise.tasks.registry import is_own_data
from equipoise.trl import run

DEFAULT_MAX_NEW_TOKENS = 512
MOST = {"samples": 2**20, "max_new_tokens": 2**24, "batch_size": 2**20, "prompts": 2**31}
"""Of numbers that cost: beyond these they overflow, or mean something else."""


@dataclass(frozen=True)
class SamplingOptions:
    """How often and how each prompt is answered."""

    prompts: int | None = field(default=None, metadata={"help": "Only the first N; unset: all."})
    samples: int = field(default=16, metadata={"help": "Per prompt."})
    k: Annotated[tuple[int, ...], arg(metavar="INT …")] = field(default=(1, 8), metadata={"help": "Of pass@k."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Unset: those of the task or run, else 512."})
    batch_size: int = field(default=256, metadata={"help": "Sequences at a time."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    backend: Literal["transformers", "vllm"] = field(default="transformers", metadata={"help": "What samples."})

    def __post_init__(self) -> None:
        if self.samples < 1 or any(not 1 <= k <= self.samples for k in self.k):
            raise InputError(f"--k must be from 1 to --samples={self.samples}, got {list(self.k)}")
        require("--temperature", self.temperature, ">= 1e-6 and <= 1e6", 1e-6 <= self.temperature <= 1e6)
        require("--seed", self.seed, ">= 0 and < 2**32", 0 <= self.seed < 2**32)
        for name, most in MOST.items():
            value = getattr(self, name)
            require(f"--{name}", value, f">= 1 and <= {most}", value is None or 1 <= value <= most)


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate runs and models on held-out data, side by side: greedy, avg@k and pass@k with 95% intervals, distinct
    correct answers, entropy, length.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL_OR_RUN …", help_behavior_hint="")] = field(
        metadata={"help": "Run folders, model folders or hub ids."}
    )
    output: Annotated[tuple[Path, ...] | None, arg(metavar="FILE …")] = field(
        default=None, metadata={"help": "Write the table to new files: .json, .csv, .md."}
    )
    samples_output: Path | None = field(
        default=None,
        metadata={
            "help": "Folder for every sample with its verdict and reason, a JSONL per model and task; an interrupted "
            "evaluation goes on where it stopped."
        },
    )
    data: DataOptions[tuple[str, ...]] = field(default_factory=DataOptions[tuple[str, ...]])
    sampling: SamplingOptions = SamplingOptions()
    trust: TrustOptions = field(default_factory=TrustOptions)

    def __post_init__(self) -> None:
        tasks = self.data.tasks
        if len(set(tasks)) < len(tasks):
            raise InputError(f"each task can be given once, got {' '.join(tasks)}")
        if len(set(self.models)) < len(self.models):
            raise InputError(f"each model can be given once, got {' '.join(self.models)}")


@dataclass(frozen=True)
class HeldOut:
    """What to evaluate on."""

    name: str
    dataset: Dataset
    reward: RewardFunction
    max_new_tokens: int
    template_kwargs: dict[str, Any]


def evaluate_models(options: EvaluateOptions) -> dict[str, dict[str, Evaluation]]:
    """Evaluate the models of the options on each benchmark, print a table, write what is asked for.

    Returns:
        Model -> benchmark -> evaluation.

    Raises:
        InputError: options that do not fit, models or data that cannot be loaded, an output that exists, or samples of
            other settings.
    """
    options.trust.check(options.models)
    _check(options)
    held_out = {name: _benchmarks(name, options) for name in options.models}
    files = {name: _sample_files(number, name, held_out[name], options) for number, name in enumerate(options.models)}
    kept = "what was sampled is not kept (--samples_output)"
    with advised(kept if options.samples_output is None else "the same command goes on after the samples that it has"):
        evaluations = {name: _evaluate(name, data, files[name], options) for name, data in held_out.items()}
    numbers = {name: {b: e.as_dict() for b, e in found.items()} for name, found in evaluations.items()}
    print_evaluations(numbers)
    _write(options.output or (), numbers)
    return evaluations


def _write(outputs: Sequence[Path], numbers: dict[str, dict[str, Any]]) -> None:
    """Writes each output; where one cannot be written after all, the numbers are printed before that is said."""
    failures = []
    for path in outputs:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(path, WRITERS[path.suffix](numbers))
        except OSError as error:
            failures.append(f"--output {path} cannot be written: {error.strerror or error}")
    if failures:
        print(json.dumps(numbers, indent=2))
        raise InputError(f"{'; '.join(failures)}; the results are on standard output, as JSON")


WRITERS = {
    ".json": lambda numbers: json.dumps(numbers, indent=2) + "\n",
    ".csv": as_csv,
    ".md": as_markdown,
}
"""Suffix of --output -> its form."""


def _check(options: EvaluateOptions) -> None:
    for task in options.data.tasks:
        check_task_name(task)
    if options.data.reward and options.data.tasks and not any(map(is_own_data, options.data.tasks)):
        named = " ".join(options.data.tasks)
        raise InputError(
            f"--reward is for data of your own (--dataset): {named} has its own, got {options.data.reward!r}"
        )
    outputs = options.output or ()
    for path in outputs:
        if path.suffix not in WRITERS and not path.exists():
            raise InputError(f"--output must end in one of {', '.join(WRITERS)}, got {path}")
        if outputs.count(path) > 1:
            raise InputError(f"each --output can be given once, got {path} twice")
        check_new_file(path, "--output")
    if options.samples_output is not None and options.samples_output.is_file():
        raise InputError(f"--samples_output {options.samples_output} exists; choose another name")
    if options.samples_output is not None:
        check_new_file(options.samples_output / uuid4().hex, "--samples_output")


def _benchmarks(name: str, options: EvaluateOptions) -> list[HeldOut]:
    """The data of the options, one by one, else that of the run."""
    found = [_held_out(name, task, options) for task in options.data.tasks or (None,)]
    labels = [data.name for data in found]
    return [
        data if labels.count(data.name) == 1 else replace(data, name=task)
        for task, data in zip(options.data.tasks or (None,), found, strict=True)
    ]


def _held_out(name: str, chosen: str | None, options: EvaluateOptions) -> HeldOut:
    given, sampling = options.data, options.sampling
    keys = run.run_settings(Path(name)) if is_run_folder(name) else {}
    named = chosen or keys.get("eval_task") or keys.get("task")
    if named is None:
        raise InputError(f"{name} names no held-out data: give --task, or --dataset and --reward")
    if keys.get("environment") and not chosen:
        raise InputError(f"{name} has episodes, which only the run itself evaluates (evaluate_every)")
    _require_trust(name, keys, named, options)
    of_run = [] if chosen else ["task", "eval_task"]
    with read_from(f"{name}/{CONFIG_FILE}", of_run), data_of("eval_task" if keys.get("eval_task") else "task", named):
        task = evaluation_task(
            named,
            reward=given.reward or keys.get("reward"),
            template=given.prompt_template or keys.get("prompt_template"),
            chat=given.chat or keys.get("chat", False),
            only=sampling.prompts,
        )
    if task.environment_factory is not None:
        raise InputError(f"task {task.name} has episodes, which only a run evaluates (evaluate_every, held-out data)")
    dataset = task.held_out
    if dataset is None:
        if not chosen and not keys.get("eval_task"):
            raise InputError(f"{name} names no held-out data, and {named} holds none out: give --task, or --dataset")
        dataset = task.train  # a benchmark has no training data of its own: all of it is to evaluate on
    length = sampling.max_new_tokens or task.max_completion_length or keys.get("max_completion_length")
    rows = len(dataset) if sampling.prompts is None else min(sampling.prompts, len(dataset))
    told = template_settings(given.chat_template_kwargs or keys.get("chat_template_kwargs"))
    length = length or DEFAULT_MAX_NEW_TOKENS
    return HeldOut(task.name, dataset.select(range(rows)), task.evaluation_reward, length, told)


def _require_trust(name: str, keys: dict[str, Any], named: str, options: EvaluateOptions) -> None:
    """Before the code that a run folder names would be imported."""
    used: dict[str, Any] = {} if options.data.tasks else {"eval_task": named}
    if is_own_data(named) and not options.data.reward:
        used["reward"] = keys.get("reward")
    require_trust(Path(name), named_code(used), trusted=options.trust.folders)


def _sample_files(number: int, name: str, benchmarks: list[HeldOut], options: EvaluateOptions) -> list:
    """Where the samples of each benchmark are kept, checked before anything is sampled; None where they are not."""
    if options.samples_output is None:
        return [None] * len(benchmarks)
    files, sampling = [], options.sampling
    for data in benchmarks:
        label = re.sub(r"[^A-Za-z0-9_.=-]+", "_", f"{number}-{Path(name).name}-{data.name}")[:120]
        settings = {
            "model": model_of(name), "benchmark": data.name, "num_prompts": len(data.dataset),
            "data": data_fingerprint(data.dataset), "samples": sampling.samples, "temperature": sampling.temperature,
            "max_new_tokens": data.max_new_tokens, "batch_size": sampling.batch_size, "seed": sampling.seed,
            "backend": sampling.backend, "reward": data.reward.__name__,
        } | ({"chat_template_kwargs": data.template_kwargs} if data.template_kwargs else {})  # fmt: skip
        files.append(SampleFile(options.samples_output / f"{label}.jsonl", redacted(settings)))
        files[-1].check()
    return files


def _evaluate(name: str, benchmarks: list[HeldOut], files: list, options: EvaluateOptions) -> dict[str, Evaluation]:
    """The evaluations of one model, which is loaded once."""
    model_code, sampling = options.trust.model_code(name), options.sampling
    tokenizer = load_tokenizer(model_of(name), trust_remote_code=model_code)
    for data in benchmarks:
        tell_untold(data.dataset["prompt"][:], data.template_kwargs)
    encoded = [
        encoded_prompts(tokenizer, data.dataset["prompt"][:], data.template_kwargs, model=name) for data in benchmarks
    ]
    sampler = _sampler(name, tokenizer, sampling, model_code)
    evaluations = {}
    for data, prompt_ids, file in zip(benchmarks, encoded, files, strict=True):
        sampler.max_new_tokens = data.max_new_tokens
        evaluations[data.name] = evaluate_in_batches(
            sampler,
            data.dataset,
            prompt_ids,
            data.reward,
            num_samples=sampling.samples,
            ks=sampling.k,
            temperature=sampling.temperature,
            batch_size=sampling.batch_size,
            seed=sampling.seed,
            samples=file,
            name=f"{Path(name).name} {data.name}",
        )
    return evaluations


def _sampler(name: str, tokenizer: Any, sampling: SamplingOptions, model_code: bool) -> Any:
    """The model, ready to sample, in transformers or in vLLM."""
    model_name = model_of(name)
    if sampling.backend == "vllm":
        engine, parameters = vllm_engine(model_name, seed=sampling.seed)
        return VllmSampler(engine, parameters, tokenizer, 1)
    on_cpu = not torch.accelerator.is_available()
    model = load_model(model_name, on_cpu=on_cpu, trust_remote_code=model_code)
    fit_threads(model, on_cpu=on_cpu)
    if not on_cpu:
        cast(Any, model).to(torch.accelerator.current_accelerator())
    return Sampler(model.eval(), tokenizer, 1, sampling.batch_size, measures_entropy=True)
