"""`equipoise probe`: one real optimizer step, and what it did to the entropy, beside what polarity predicted.

For every batch: completions are sampled and rewarded; the gradient of the policy objective and that of the entropy are
taken at the same contexts (two forward and backward passes); one step of a fresh optimizer; the entropies again (one
forward pass); then the weights go back. Nothing on disk is changed but the new output folder.
"""

import csv
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tyro.conf import Positional, arg

from equipoise.commands.data import DataOptions
from equipoise.commands.probe_passes import Rollout, passes
from equipoise.commands.probe_time import PASSES, ProbeBar, duration, timed_beginning
from equipoise.commands.threads import fit_threads
from equipoise.commands.trusting import TrustOptions
from equipoise.diagnostics.probe import (
    ProbeTokens,
    decile_correlation,
    deciles,
    first_order_remainder,
    flows,
    token_agreement,
    vocabulary_flows,
)
from equipoise.diagnostics.probe_figure import probe_figure
from equipoise.diagnostics.run_folder import CONFIG_FILE, is_run_folder, model_of
from equipoise.diagnostics.trust import named_code, require_trust
from equipoise.errors import InputError, read_from, require
from equipoise.files import folder_at_once, writing
from equipoise.models.loading import load_model, load_tokenizer, template_settings
from equipoise.models.prompts import encoded_prompts
from equipoise.models.randomness import seeded
from equipoise.models.sampling import Sampler, evaluation_mode, rewards_of
from equipoise.models.statistics_head import add_statistics_head
from equipoise.paths import check_new_file
from equipoise.polarity import entropy_polarity, expansion_threshold
from equipoise.settings.run import RunSettings
from equipoise.settings.task_loading import load_task
from equipoise.tasks.task import Task
from equipoise.trl import run
from equipoise.types import TokenStatistics

logger = logging.getLogger("equipoise")

VOCABULARY_TOKENS = 50
BOUNDS = {
    "prompts": (1, 2**20), "generations": (2, 2**20), "batches": (1, 2**20), "batch_size": (1, 2**20),
    "max_new_tokens": (1, 2**24),
}  # fmt: skip
MEANINGLESS = 0.5
"""Relative remainder of the first order above which a probe says so."""


@dataclass(frozen=True)
class StepOptions:
    """The step."""

    optimizer: Literal["adamw", "sgd"] = field(default="adamw", metadata={"help": "Fresh, without weight decay."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Of the step."})

    def __post_init__(self) -> None:
        require("--learning_rate", self.learning_rate, "> 0 and <= 1e6", 0 < self.learning_rate <= 1e6)


@dataclass(frozen=True)
class ProbeSampling:
    """What the step is taken on."""

    prompts: int = field(default=16, metadata={"help": "Per batch."})
    generations: int = field(default=8, metadata={"help": "Per prompt."})
    batches: int = field(default=4, metadata={"help": "Each with a step of its own."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Unset: those of the task, else 512."})
    batch_size: int = field(default=32, metadata={"help": "Sequences at a time."})
    seed: int = field(default=0, metadata={"help": "Of prompts and samples."})

    def __post_init__(self) -> None:
        require("--temperature", self.temperature, ">= 1e-6 and <= 1e6", 1e-6 <= self.temperature <= 1e6)
        require("--seed", self.seed, ">= 0 and < 2**32", 0 <= self.seed < 2**32)
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            require(f"--{name}", value, f">= {least} and <= {most}", value is None or least <= value <= most)


@dataclass(frozen=True)
class ProbeOptions:
    """Sample completions, take one real optimizer step from the model's weights, and measure the entropy at the same
    contexts again. Compares what entropy polarity predicts with what happened: per token, in deciles, over batches, and
    with the exact first-order value <grad H, step>. The model on disk is not changed.

    Writes probe.json, tokens.csv (a row per token) and probe.png in a new folder.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")] = field(
        metadata={"help": "Run folder, model folder or hub id."}
    )
    output: Path = field(default=Path("runs/probe"), metadata={"help": "New folder."})
    data: DataOptions[str] = field(default_factory=DataOptions[str])
    step: StepOptions = StepOptions()
    sampling: ProbeSampling = ProbeSampling()
    trust: TrustOptions = field(default_factory=TrustOptions)


def probe(options: ProbeOptions) -> dict[str, Any]:
    """Probe the model of the options; writes probe.json, tokens.csv and probe.png in the output folder.

    Returns:
        What is in probe.json.

    Raises:
        InputError: an output that exists, a model or data that cannot be loaded, rewards that give no advantage.
    """
    options.trust.check([options.model])
    settings, sampling = _settings(options), options.sampling
    check_new_file(options.output, "--output")
    told = _template_kwargs(options)
    with read_from(f"{options.model}/{CONFIG_FILE}", [] if options.data.named else ["task"]):
        task = load_task(settings)
    needed = sampling.prompts * sampling.batches
    if len(task.train) < needed:
        flags = f"--prompts {sampling.prompts} x --batches {sampling.batches}"
        raise InputError(f"{flags} need {needed} prompts, the data has {len(task.train)}")
    model, tokenizer = _policy(options, settings.model)
    length = sampling.max_new_tokens or task.max_completion_length or 512
    sampler = Sampler(model, tokenizer, length, sampling.batch_size)
    parts, batches = [], []
    with evaluation_mode(model), seeded(sampling.seed):
        order = torch.randperm(len(task.train))[:needed].tolist()
        prompts = task.train.select(order)["prompt"][:]
        ids = encoded_prompts(tokenizer, prompts, told, model=options.model, rows=[row + 1 for row in order])
        with _begun(model, sampler, ids, sampling) as bar:
            for number in range(sampling.batches):
                part = slice(number * sampling.prompts, (number + 1) * sampling.prompts)
                rows = task.train.select(order[part])
                rollout = _sample(sampler, ids[part], rows, task, sampling, bar.update)
                if not rollout.advantages.any():
                    bar.left_out(len(rollout.completions))
                    continue  # no gradient
                tokens, summary = _probe_batch(model, rollout, options, number, bar)
                parts.append(tokens)
                batches.append(summary)
    if not parts:
        raise InputError(
            f"every group of {sampling.generations} completions got equal rewards: no advantage, nothing to probe; "
            f"raise --generations or --prompts, or take easier or harder prompts"
        )
    return _write(ProbeTokens.concatenated(parts), batches, tokenizer, options)


def _policy(options: ProbeOptions, name: str) -> tuple[Any, Any]:
    """Model and tokenizer, on their device, with the statistics head."""
    on_cpu = not torch.accelerator.is_available()
    model_code = options.trust.model_code(options.model)
    tokenizer = load_tokenizer(name, trust_remote_code=model_code)
    # In float32: the step of a usual learning rate is lost in the rounding of bf16 weights.
    model = load_model(name, on_cpu=on_cpu, dtype=torch.float32, trust_remote_code=model_code)
    _thaw_adapter(model, name)
    fit_threads(model, on_cpu=on_cpu)
    if not on_cpu:
        cast(Any, model).to(torch.accelerator.current_accelerator())
    add_statistics_head(model, temperature=options.sampling.temperature)
    return model, tokenizer


def _begun(model: Any, sampler: Sampler, ids: list[list[int]], sampling: ProbeSampling) -> ProbeBar:
    """A bar over all completions; how long they will take is said before they are begun."""
    number, most = len(ids) * sampling.generations, sampler.max_new_tokens
    longest = sorted(ids, key=len, reverse=True)[: sampling.prompts]
    repeated = [i for i in longest for _ in range(sampling.generations)]
    expected = timed_beginning(model, sampler, repeated, sampling.batch_size)
    print(
        f"{number:,} completions of at most {most:,} tokens, and {len(PASSES)} passes over them: about "
        f"{duration(sampling.batches * expected.seconds)} if all are as long, by the time of the first tokens",
        file=sys.stderr,
    )
    bar = ProbeBar(number, expected)
    sampler.watch = bar.watch
    return bar


def _thaw_adapter(model: Any, name: str) -> None:
    """A saved LoRA adapter is loaded frozen; the probe's step is one of training, on the adapter alone."""
    if any(p.requires_grad for p in model.parameters()):
        return
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in parameter_name)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"model {name} has no parameter to train: neither weights nor a LoRA adapter")


def _settings(options: ProbeOptions) -> RunSettings:
    """Model and data of the options; of the run, where a run folder is given and the options name no data."""
    keys = run.run_settings(Path(options.model)) if is_run_folder(options.model) else {}
    if keys.get("environment") and not options.data.named:
        raise InputError(f"{options.model} was trained in an environment, which the probe does not play: give --task")
    data = options.data.keys_over(keys)
    if not data.get("task"):
        raise InputError(f"{options.model} names no data: give --task, or --dataset and --reward")
    if not options.data.named:
        trusted = options.trust.folders
        require_trust(Path(options.model), named_code(data), given=options.data.code, trusted=trusted)
    return RunSettings(model=model_of(options.model), **data)


def _template_kwargs(options: ProbeOptions) -> dict[str, Any]:
    """What the chat template is told beside the messages: that of the options, else of the run."""
    given = options.data.chat_template_kwargs
    if given is None and is_run_folder(options.model):
        given = run.run_settings(Path(options.model)).get("chat_template_kwargs")
    return template_settings(given)


def _sample(
    sampler: Sampler,
    ids: list[list[int]],
    rows: Dataset,
    task: Task,
    sampling: ProbeSampling,
    done: Callable[[int], Any],
) -> Rollout:
    repeated = [i for i in ids for _ in range(sampling.generations)]
    completions = sampler.completions(repeated, sampling.temperature, done)
    scored = rewards_of(task.reward, rows, completions, sampling.generations)
    rewards = torch.tensor([0.0 if r is None else r for r in scored]).view(-1, sampling.generations)
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = centred / (rewards.std(1, keepdim=True) + 1e-4)  # as in GRPO
    return Rollout(repeated, completions, advantages.flatten(), rewards.flatten().tolist())


def _probe_batch(
    model: Any, rollout: Rollout, options: ProbeOptions, number: int, bar: ProbeBar
) -> tuple[ProbeTokens, dict[str, float]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    num_tokens = sum(len(c.ids) for c in rollout.completions)
    advantages = rollout.advantages.to(model.device)
    before: list[tuple[TokenStatistics, Tensor]] = []
    model.zero_grad(set_to_none=True)
    with bar.passing("objective") as passed:
        for place, statistics, scored in passes(model, rollout, options.sampling.batch_size):
            before.append((TokenStatistics(*(x.detach() for x in statistics)), scored))
            objective = (statistics.logprob * advantages[place, None])[scored].sum() / num_tokens
            (-objective).backward()
            passed(len(scored))
    gradient = [None if p.grad is None else p.grad.clone() for p in parameters]
    model.zero_grad(set_to_none=True)
    with bar.passing("entropy") as passed:
        for _, statistics, scored in passes(model, rollout, options.sampling.batch_size):
            (statistics.entropy[scored].sum() / num_tokens).backward()
            passed(len(scored))
    entropy_gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    original = [p.detach().clone() for p in parameters]
    for parameter, value in zip(parameters, gradient, strict=True):
        parameter.grad = value
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[options.step.optimizer]
    kind(parameters, lr=options.step.learning_rate, weight_decay=0.0).step()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        step = [p - o for p, o in zip(parameters, original, strict=True)]
        first_order = sum(float((g.double() * d.double()).sum()) for g, d in zip(entropy_gradient, step, strict=True))
        after = []
        with bar.passing("after the step") as passed:
            for _, statistics, scored in passes(model, rollout, options.sampling.batch_size):
                after.append(statistics.entropy)
                passed(len(scored))
        for parameter, value in zip(parameters, original, strict=True):
            parameter.copy_(value)
    tokens = _tokens(rollout, before, after, options.sampling.generations, number)
    realised = float(tokens.realised.mean())
    return tokens, {
        "tokens": num_tokens,
        "reward": float(np.mean(rollout.rewards)),
        "entropy": float(tokens.entropy.mean()),
        "net_flow": float(tokens.polarity.mean()),
        "first_order": first_order,
        "realised": realised,
    }


def _tokens(
    rollout: Rollout, before: list[tuple[TokenStatistics, Tensor]], after: list[Tensor], generations: int, number: int
) -> ProbeTokens:
    lengths = np.array([len(c.ids) for c in rollout.completions])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    num_prompts = len(lengths) // generations
    statistics = TokenStatistics(
        *(
            torch.cat([getattr(s, name)[m] for s, m in before])
            for name in ("logprob", "entropy", "tendency", "correction")
        )
    )
    entropy_after = torch.cat([e[m] for e, (_, m) in zip(after, before, strict=True)])
    advantage = rollout.advantages.to(statistics.entropy.device)[torch.from_numpy(sequence)]

    def array(x: Tensor) -> np.ndarray:
        return x.double().cpu().numpy()

    return ProbeTokens(
        batch=np.full(len(sequence), number),
        prompt=number * num_prompts + sequence // generations,
        sample=sequence % generations,
        position=np.concatenate([np.arange(n) for n in lengths]),
        token_id=np.concatenate([np.array(c.ids) for c in rollout.completions]),
        logprob=array(statistics.logprob),
        entropy=array(statistics.entropy),
        threshold=array(expansion_threshold(statistics)),
        advantage=array(advantage),
        polarity=array(entropy_polarity(statistics, advantage)),
        realised=array(entropy_after.double() - statistics.entropy.double()),
    )


def _write(tokens: ProbeTokens, batches: list[dict[str, float]], tokenizer: Any, options: ProbeOptions) -> dict:
    groups = deciles(tokens)
    vocabulary = vocabulary_flows(tokens, VOCABULARY_TOKENS)
    report = {
        "model": options.model,
        "optimizer": options.step.optimizer,
        "learning_rate": options.step.learning_rate,
        "temperature": options.sampling.temperature,
        "seed": options.sampling.seed,
        "per_token": token_agreement(tokens),
        "deciles": groups,
        "decile_pearson": decile_correlation(groups),
        "batches": batches,
        "batches_without_advantage": options.sampling.batches - len(batches),
        "remainder": first_order_remainder([b["realised"] for b in batches], [b["first_order"] for b in batches]),
        **flows(tokens),
        "vocabulary": {
            side: [entry | {"text": tokenizer.decode([entry["token_id"]])} for entry in entries]
            for side, entries in vocabulary.items()
        },
    }
    # Over all batches: in one alone the first order may be near zero by chance.
    remainder = report["remainder"]
    if remainder > MEANINGLESS:
        logger.warning(
            "The step is too large for first order: the realised change differs from it by %.0f%%. Lower "
            "--learning_rate (now %g).", 100 * remainder, options.step.learning_rate,
        )  # fmt: skip
    with writing(f"--output {options.output}"), folder_at_once(options.output) as staging:
        (staging / "probe.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        _write_tokens(tokens, tokenizer, staging / "tokens.csv")
        probe_figure(tokens, report, staging / "probe.png")
    return report


def _write_tokens(tokens: ProbeTokens, tokenizer: Any, path: Path) -> None:
    names = [f.name for f in fields(ProbeTokens)]
    texts = {int(i): tokenizer.decode([int(i)]) for i in np.unique(tokens.token_id)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "text"])
        for row in zip(*(getattr(tokens, name).tolist() for name in names), strict=True):
            numbers = [f"{value:.9g}" if isinstance(value, float) else value for value in row]
            writer.writerow([*numbers, texts[row[names.index("token_id")]]])


def run_probe(options: ProbeOptions) -> dict[str, Any]:
    """Probe, and print what came out; as `probe`."""
    report = probe(options)
    print_report(report, options.output)
    return report


def print_report(report: dict[str, Any], output: Path) -> None:
    """The main numbers, in words."""
    agreement = report["per_token"]

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    print(f"tokens with an advantage: {agreement['tokens']}")
    print(f"polarity against realised change, per token: Pearson {number(agreement['pearson'])}, "
          f"Spearman {number(agreement['spearman'])}")  # fmt: skip
    print(f"in deciles: Pearson {number(report['decile_pearson'])}")
    for place, batch in enumerate(report["batches"], start=1):
        print(
            f"batch {place}: entropy {batch['entropy']:.3f}, realised {batch['realised']:+.3e}, first order "
            f"{batch['first_order']:+.3e}, net flow {batch['net_flow']:+.3e}"
        )
    if report["batches_without_advantage"]:
        print(f"{report['batches_without_advantage']} more without any advantage: left out")
    print(f"first order against realised, over all batches: differs by {100 * report['remainder']:.1f}%")
    print(f"b* = {number(report['balance_authority'])}")
    print(f"Everything: {output}")
