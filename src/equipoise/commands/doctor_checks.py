"""Checks that run something: the reward on the data's own answers, sampling against the training forward."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from equipoise.diagnostics.doctor import Finding, not_checked, ok, warning, wrong
from equipoise.errors import InputError
from equipoise.models.behavior_logprobs import recorded_generation
from equipoise.models.prompts import encoded_prompts
from equipoise.models.randomness import seeded
from equipoise.models.sampling import Completion, Sampler, evaluation_mode, rewards_of
from equipoise.models.statistics_head import add_statistics_head
from equipoise.tasks import Task

ANSWERS = 64
"""Examples of the verifier's self-test."""

ANSWER_FORMS: dict[str, Callable[[str], str]] = {
    "the answer alone": lambda answer: answer,
    r"\boxed{answer}": lambda answer: rf"\boxed{{{answer}}}",
    "#### answer": lambda answer: f"#### {answer}",
    "<answer>answer</answer>": lambda answer: f"<answer>{answer}</answer>",
}
"""The forms in which verifiers commonly look for an answer."""

MOST = 0.95
"""Share of its own answers that a verifier must accept; a few may be beyond its parser."""

SEQUENCES, NEW_TOKENS = 8, 16
"""Of the comparison of sampling and training: a few hundred tokens, prompts of different lengths."""

DIFFERENCE_WARNING = {torch.float32: 1e-3, torch.float64: 1e-3}
DIFFERENCE_WRONG = {torch.float32: 1e-2, torch.float64: 1e-2}
LOW_PRECISION_WARNING, LOW_PRECISION_WRONG = 0.05, 0.2
"""Mean |difference| of log-probs, nats. In float32 the two passes differ by rounding, some 1e-6; in 16 bits with
another order of summation by some 0.01."""

PADDING_TOLERANCE = 10
"""Times the difference to be expected from rounding: how far statistics may move when only hidden tokens change."""


def check_verifier(task: Task | None, reason: str = "no data was named") -> Finding:
    """The reward on the data's own answers, in the forms that verifiers look for, and on answers of other rows."""
    name = "verifier self-test"
    if task is None:
        return not_checked(name, reason)
    if task.environment_factory is not None:
        return not_checked(name, "its rewards are those of episodes, which only a run plays")
    rows = _sample_rows(task)
    try:
        accepted = {form: _accepted(task, rows, texts) for form, texts in _right_completions(task, rows).items()}
        empty = _accepted(task, rows, [""] * len(rows))
    except InputError as error:
        return wrong(name, str(error), "The reward function fails on its own data: so it would in training.",
                     "Mend the reward function, or name another column.")  # fmt: skip
    form, share = max(accepted.items(), key=lambda item: item[1])
    seen = (
        f"of {len(rows)} of the data's own answers {share:.0%} are accepted ({form}); of empty completions {empty:.0%}"
    )
    if empty > 0:
        return wrong(
            name, seen, "A verifier that rewards an empty completion rewards anything: the policy will find that out.",
            "Let the reward function give 0 where there is no answer; look at its default and at exceptions.",
        )  # fmt: skip
    if share >= MOST:
        return ok(name, seen)
    report = (
        wrong
        if share == 0 and (task.right_completions or task.reward.__name__ in ("exact_reward", "math_reward"))
        else warning
    )
    return report(
        name, seen,
        "What the verifier does not accept can never be rewarded. The tried forms were "
        + ", ".join(accepted) + "; a reward function that wants another form is not at fault.",
        "Look at the answer column, at the form the reward looks for, and at what the prompt asks for.",
    )  # fmt: skip


def _sample_rows(task: Task) -> Dataset:
    """Rows spread over the data, so that a sorted file does not show one side only."""
    count = min(ANSWERS, len(task.train))
    return task.train.select(np.linspace(0, len(task.train) - 1, count).round().astype(int).tolist())


def _right_completions(task: Task, rows: Dataset) -> dict[str, list[str]]:
    """Completions that should be accepted, by form; some tasks make theirs."""
    if task.right_completions is not None:
        return {"right completions of the task": task.right_completions(rows)}
    return {form: [render(answer) for answer in rows["answer"]] for form, render in ANSWER_FORMS.items()}


def _accepted(task: Task, rows: Dataset, texts: list[str]) -> float:
    """Share of the completions with a positive reward."""
    rewards = rewards_of(task.reward, rows, [Completion([], text, False) for text in texts], 1)
    return sum(value is not None and value > 0 for value in rewards) / len(rewards)


def check_tokens(model: Any, tokenizer: Any) -> Finding:
    """End of sequence, padding and the size of the vocabulary."""
    name = "special tokens"
    rows, size = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    seen = f"end of sequence {tokenizer.eos_token!r}, padding {tokenizer.pad_token!r}, {size} tokens, {rows} embeddings"
    if size > rows:
        return wrong(name, seen, "The tokenizer has tokens without an embedding: the model fails when one occurs.",
                     "Use the tokenizer of the model, or resize its embeddings.")  # fmt: skip
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    if configured is not None and tokenizer.eos_token_id not in ends:
        return warning(
            name, f"{seen}; the model's generation config ends with {configured}, the tokenizer with "
            f"{tokenizer.eos_token_id}",
            "Completions may run past the end that one side waits for: truncated, or ended too early.",
            "Make eos_token_id of generation_config.json and of the tokenizer agree.",
        )  # fmt: skip
    return ok(name, seen)


def check_chat(tokenizer: Any, task: Task | None) -> Finding:
    """A chat template where the prompts are messages; messages where the model has been trained on them."""
    name = "chat template"
    if task is None:
        return not_checked(name, "no data was named")
    template, messages = bool(getattr(tokenizer, "chat_template", None)), not isinstance(task.train[0]["prompt"], str)
    if messages and not template:
        return wrong(name, "prompts are chat messages, the tokenizer has no chat template", "They cannot be encoded.",
                     "Use an instruction-tuned model, or a tokenizer with a template.")  # fmt: skip
    if template and not messages:
        return warning(
            name, "the tokenizer has a chat template, prompts are plain text",
            "A chat model outside its template rarely ends its answer and answers worse than it can.",
            "Set chat: true, unless the text is already in the model's format.",
        )  # fmt: skip
    return ok(name, "prompts are chat messages, and there is one" if messages else "prompts are plain text")


@dataclass(frozen=True)
class Comparison:
    """Log-probs of the same sampled tokens, twice, and how far hidden tokens reach.

    Attributes:
        difference: |sampling - training| per token, nats.
        padding: largest change of log-probs and entropies when the tokens under the padding are replaced, nats.
        dtype: of the weights.
    """

    difference: Tensor
    padding: float
    dtype: torch.dtype


def compare_logprobs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | list] | None = None,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Comparison:
    """Sample a few completions, and score them as the trainer does: padded on the left, no position ids.

    Args:
        model: on its device; its forward is given the statistics head.
        tokenizer: of the model.
        prompts: text or chat messages; None for random tokens, which serve as well: the two must agree on anything.
        temperature: of sampling.
        seed: of prompts and samples.
        template_kwargs: what the chat template is told beside the messages, as in training.
    """
    add_statistics_head(model, temperature=temperature)
    with seeded(seed), evaluation_mode(model), torch.no_grad():
        if prompts is None:
            size = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
            ids = [torch.randint(0, size, (length,)).tolist() for length in range(SEQUENCES + 1, 1, -1)]
        else:
            ids = encoded_prompts(tokenizer, prompts[:SEQUENCES], template_kwargs)
        # Different lengths, so that there is padding; the longest first, as the sampler takes them.
        ids = sorted((prompt[min(i, len(prompt) - 1) :] for i, prompt in enumerate(ids)), key=len, reverse=True)
        sampler = Sampler(model, tokenizer, NEW_TOKENS, len(ids))
        with recorded_generation(model, temperature) as recorded:
            completions = sampler.completions(ids, temperature, lambda _: None)
        pad_id = cast(int, sampler.pad_id)
        trained, entropy, mask = _training_forward(model, ids, completions, pad_id)
        sampled = recorded[0][:, : trained.shape[1]]
        other_pad = (pad_id + 1) % model.get_input_embeddings().weight.shape[0]
        moved, moved_entropy, _ = _training_forward(model, ids, completions, other_pad)
    padding = max(float((moved - trained)[mask].abs().max()), float((moved_entropy - entropy)[mask].abs().max()))
    return Comparison((sampled.to(trained) - trained)[mask].abs(), padding, next(model.parameters()).dtype)


def _training_forward(
    model: Any, prompts: list[list[int]], completions: list[Completion], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and mask [sequences, new tokens], from the inputs TRL's trainer gives its model."""
    before, after = max(map(len, prompts)), max(len(c.ids) for c in completions)
    ids = torch.full((len(prompts), before + after), pad_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        begin, end = before - len(prompt), before + len(completion.ids)
        ids[row, begin:end] = torch.tensor(prompt + completion.ids)
        mask[row, begin:end] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :before] = -100
    ids, mask, labels = (x.to(model.device) for x in (ids, mask, labels))
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return output.log_probs[:, -after:], output.entropy[:, -after:], mask[:, -after:].bool()


def check_comparison(comparison: Comparison) -> Finding:
    """Sampling and training must give the same log-probs for the same tokens."""
    name = "sampling and training log-probs"
    mean, largest = float(comparison.difference.mean()), float(comparison.difference.max())
    seen = f"{comparison.difference.numel()} sampled tokens in {comparison.dtype}: they differ by {mean:.2g} nats "
    seen += f"(mean), at most {largest:.2g}"
    low = DIFFERENCE_WARNING.get(comparison.dtype, LOW_PRECISION_WARNING)
    if mean <= low:
        return ok(name, seen)
    report = wrong if mean > DIFFERENCE_WRONG.get(comparison.dtype, LOW_PRECISION_WRONG) else warning
    return report(
        name, seen,
        "Ratios then measure the difference between two passes, not between two policies: data looks stale that is "
        "not, and clipping drops the wrong tokens. Models with absolute positions do this when prompts are padded on "
        "the left; so do other kernels or precisions for sampling.",
        "Prompts of one length per batch, a model with relative positions (RoPE), or the same attention kernel and "
        "precision for both.",
    )  # fmt: skip


def check_padding(comparison: Comparison) -> Finding:
    """What stands under the padding must not reach the entropy of the tokens that count."""
    name = "padding in the entropy"
    seen = f"other tokens under the padding move log-probs and entropies by at most {comparison.padding:.2g} nats"
    if comparison.padding <= PADDING_TOLERANCE * torch.finfo(comparison.dtype).eps:
        return ok(name, seen)
    return wrong(
        name, seen, "The attention mask does not hide the padding: statistics depend on what a row is batched with.",
        "Use an attention implementation that honours the mask (attn_implementation: sdpa or eager).",
    )  # fmt: skip


def bf16_slowdown(size: int = 256, repeats: int = 5) -> float:
    """Median time of a bf16 product of two [size, size] matrices on the CPU over that in float32."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(size, size, dtype=dtype)
        torch.mm(x, x)  # the first call sets kernels up
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            torch.mm(x, x)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def check_probe(report: dict[str, Any], meaningless: float) -> Finding:
    """Whether first order holds for a step at this learning rate, from what `equipoise probe` measured."""
    name = "learning rate and first order"
    remainder = report["remainder"]
    seen = (
        f"at learning_rate {report['learning_rate']:g} ({report['optimizer']}) the realised entropy change differs "
        f"from the first-order value by {remainder:.0%}"
    )
    if remainder <= meaningless:
        return ok(name, seen)
    return warning(
        name, seen, "Polarity, predicted flows and clip bounds describe a smaller step than the one that is taken.",
        "Lower the learning rate and probe again.",
    )  # fmt: skip
