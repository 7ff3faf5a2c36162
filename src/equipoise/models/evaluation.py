"""How good a policy is on a set of prompts: greedy and sampled accuracy, pass@k, distinct correct answers, lengths.

Greedy generation first (it is the cheap pass, so that a broken reward function shows early), then `num_samples` samples
of every prompt, then one call of the reward function for each pass. Every mean is over prompts, and its interval is a
bootstrap over prompts. Evaluating in the middle of training changes nothing: the modes of the modules and the state of
the random generators are as before afterwards.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from equipoise.diagnostics.estimators import bootstrap_interval, distinct_at_k, pass_at_k
from equipoise.errors import InputError, require
from equipoise.files import write_at_once
from equipoise.models.evaluation_ranks import EvaluationRanks, seed_of
from equipoise.models.prompts import encoded_prompts
from equipoise.models.randomness import seeded
from equipoise.models.sampling import Completion, Sampler, evaluation_mode, given_answers_of, rewards_of
from equipoise.progress import SamplingBar
from equipoise.tasks.rewards import MathReward, golds_of
from equipoise.tasks.task import RewardFunction


class Estimate(TypedDict):
    """A mean over prompts with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_policy` measured; `as_dict` is JSON.

    Attributes:
        num_prompts: prompts evaluated.
        num_samples: completions sampled per prompt.
        temperature: of the samples.
        seed: of the samples.
        average: avg@n, the mean accuracy of the n samples of a prompt: the estimate of pass@1.
        greedy: fraction of prompts whose greedy completion is correct; None when it was not asked for.
        pass_at: k -> probability that one of k samples is correct.
        distinct_correct_at: k -> expected number of different correct answers among k samples: the answers that the
            reward reads (`equipoise.tasks.task.AnswerReader`), or else the texts of the completions.
        mean_length: tokens of the samples up to and including the end of sequence.
        truncated_fraction: samples without an end of sequence, in [0, 1].
        mean_reward: of the scored samples; None when none was scored.
        mean_entropy: of the distributions the tokens of the samples were drawn from, nats, the mean over all tokens;
            None when the sampler does not tell it.
        verdicts: verdict -> number of samples: "correct", "wrong", "unscored", and with the reward "math" also
            "unparsable", "timeout", "memory", "refused", "error" and "bad_gold".
        samples: one record per prompt, in the order of the data set; see `write_samples`.
    """

    num_prompts: int
    num_samples: int
    temperature: float
    seed: int
    average: Estimate
    greedy: Estimate | None
    pass_at: dict[int, Estimate]
    distinct_correct_at: dict[int, Estimate]
    mean_length: float
    truncated_fraction: float
    mean_reward: float | None
    mean_entropy: float | None
    verdicts: dict[str, int]
    samples: list[dict[str, Any]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the samples, ready for JSON: the k of `pass_at` and `distinct_correct_at` are strings."""
        values = {name: value for name, value in vars(self).items() if name != "samples"}
        for name in ("pass_at", "distinct_correct_at"):
            values[name] = {str(k): dict(estimate) for k, estimate in values[name].items()}
        return values

    def write_samples(self, path: str | os.PathLike[str]) -> None:
        """One JSON line per prompt: prompt, answer, greedy, completions (each text, reward, verdict, reason, length,
        truncated, entropy where it was measured, given_answer where the reward reads one).
        """
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.samples]
        write_at_once(Path(path), "".join(lines))


def evaluate_policy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward: RewardFunction,
    *,
    num_samples: int = 16,
    ks: Sequence[int] = (1, 8),
    temperature: float = 1.0,
    max_new_tokens: int,
    batch_size: int = 256,
    seed: int = 0,
    correct_at: float = 1.0,
    progress: bool = True,
    greedy: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
    ranks: EvaluationRanks | None = None,
) -> Evaluation:
    """Accuracy and diversity of a policy on the prompts of a data set.

    Samples come from the plain softmax at `temperature` (no top-k, top-p or penalty). The numbers are reproducible for
    one seed and batch size on one machine. Several ranks share the prompts, and all return the evaluation of all: each
    sample then has a seed of its own, the same on any number of ranks; greedy completions are those of one process.

    Args:
        model: a transformers model for causal language modelling, on its device.
        tokenizer: of the model; prompts that are chat messages go through its chat template.
        dataset: column "prompt", and the columns that the reward asks for.
        reward: scores completions.
        num_samples: sampled completions per prompt.
        ks: the k of pass@k and distinct@k, each in 1..num_samples.
        temperature: of the samples, > 0.
        max_new_tokens: longest completion, in tokens with the end of sequence.
        batch_size: sequences generated at once.
        seed: of the samples.
        correct_at: a completion is correct when its reward is at least this; an unscored one is not.
        progress: show a progress bar with the time left on stderr.
        greedy: evaluate the greedy completion of every prompt as well.
        template_kwargs: what the chat template is told beside the messages, as in training.
        ranks: that share the prompts, each of which has to call this; None: one process has them all.

    Raises:
        InputError: when the data set is empty or a number is out of range, the tokenizer has no chat template for chat
            messages, or a prompt cannot be encoded.
    """
    ranks = ranks or EvaluationRanks()
    check_settings(dataset, num_samples, ks, temperature, max_new_tokens, batch_size)
    prompt_ids = encoded_prompts(tokenizer, dataset["prompt"][:], template_kwargs)
    own = ranks.part(len(prompt_ids))
    seeds = [seed_of(seed, row, number) for row in own for number in range(num_samples)] if ranks.own_seeds else None
    sampler = Sampler(model, tokenizer, max_new_tokens, batch_size, measures_entropy=True, ranks=ranks)
    bar = SamplingBar("evaluate", len(own) * (num_samples + greedy), shown=progress and ranks.rank == 0)
    sampler.watch = bar.watch
    with bar, evaluation_mode(model), seeded(seed):
        records = sample_records(
            sampler, dataset.select(own), [prompt_ids[row] for row in own], reward, num_samples, temperature, greedy,
            correct_at, bar.update, seeds=seeds, ranks=ranks,
        )  # fmt: skip
    records = ranks.merged(records)
    return summary(records, ks, temperature=temperature, seed=seed)


def sample_records(
    sampler: Any,
    dataset: Dataset,
    prompt_ids: list[list[int]],
    reward: RewardFunction,
    num_samples: int,
    temperature: float,
    greedy: bool,
    correct_at: float,
    done: Callable[[int], Any],
    *,
    seeds: list[int] | None = None,
    ranks: EvaluationRanks | None = None,
) -> list[dict[str, Any]]:
    """One record per prompt: prompt, answer, greedy, completions; each of these with its verdict and its reason.

    Args:
        sampler: `Sampler`, or what samples as it does.
        dataset: of the prompts.
        prompt_ids: the prompts, encoded.
        reward: scores completions.
        num_samples: per prompt.
        temperature: of the samples.
        greedy: sample the greedy completion as well, first.
        correct_at: a completion is correct when its reward is at least this.
        done: told the size of each batch.
        seeds: of the samples, `num_samples` for each prompt; None: they follow from torch's generator.
        ranks: that do the same with other prompts at the same time.
    """
    ranks = ranks or EvaluationRanks()
    best = ranks.generated(lambda: sampler.completions(prompt_ids, None, done)) if greedy else []
    best_verdicts = ranks.agreed(lambda: _verdicts(reward, dataset, best, 1, correct_at))
    repeated = [ids for ids in prompt_ids for _ in range(num_samples)]
    more = {} if seeds is None else {"seeds": seeds}
    sampled = ranks.generated(lambda: sampler.completions(repeated, temperature, done, **more))
    verdicts = ranks.agreed(lambda: _verdicts(reward, dataset, sampled, num_samples, correct_at))
    greedy_records = [_record(*pair) for pair in zip(best, best_verdicts, strict=True)] or [None] * len(dataset)
    records = [_record(*pair) for pair in zip(sampled, verdicts, strict=True)]
    answers = dataset["answer"] if "answer" in dataset.column_names else [None] * len(dataset)
    return [
        {
            "prompt": prompt,
            "answer": answer,
            "greedy": greedy_records[row],
            "completions": records[row * num_samples : (row + 1) * num_samples],
        }
        for row, (prompt, answer) in enumerate(zip(dataset["prompt"], answers, strict=True))
    ]


def summary(records: list[dict[str, Any]], ks: Sequence[int], *, temperature: float, seed: int) -> Evaluation:
    """The measures of `sample_records`.

    Args:
        records: of all prompts.
        ks: the k of pass@k and distinct@k.
        temperature: of the samples.
        seed: of the samples.
    """
    num_samples = len(records[0]["completions"])
    completions = [completion for record in records for completion in record["completions"]]
    correct = np.array([completion["verdict"] == "correct" for completion in completions]).reshape(-1, num_samples)
    scored = [completion["reward"] for completion in completions if completion["reward"] is not None]
    best = [record["greedy"]["verdict"] == "correct" for record in records if record["greedy"] is not None]
    lengths = np.array([completion["length"] for completion in completions])
    entropies = [completion.get("entropy") for completion in completions]
    entropy = None
    if None not in entropies and lengths.sum() > 0:
        entropy = float(np.average(np.array(entropies, dtype=float), weights=lengths))
    return Evaluation(
        num_prompts=len(records),
        num_samples=num_samples,
        temperature=float(temperature),
        seed=seed,
        average=_estimate(correct.mean(axis=1)),
        greedy=_estimate(best) if best else None,
        pass_at={k: _estimate(pass_at_k(correct.sum(axis=1), num_samples, k)) for k in ks},
        distinct_correct_at={k: _estimate([_distinct_correct(r["completions"], k) for r in records]) for k in ks},
        mean_length=float(lengths.mean()),
        truncated_fraction=float(np.mean([completion["truncated"] for completion in completions])),
        mean_reward=float(np.mean(scored)) if scored else None,
        mean_entropy=entropy,
        verdicts=dict(sorted(Counter(completion["verdict"] for completion in completions).items())),
        samples=records,
    )


def check_settings(
    dataset: Dataset, num_samples: int, ks: Sequence[int], temperature: float, max_new_tokens: int, batch_size: int
) -> None:
    """Refuses an empty data set and numbers out of range.

    Raises:
        InputError: naming the number.
    """
    if len(dataset) == 0:
        raise InputError("the data set to evaluate on is empty")
    for name, value in (("num_samples", num_samples), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        require(name, value, ">= 1", value >= 1, error=InputError)
    require("temperature", temperature, "> 0 and finite", 0 < temperature < math.inf, error=InputError)
    for k in ks:
        require("k of pass@k", k, f"in 1..num_samples={num_samples}", 1 <= k <= num_samples, error=InputError)


def _distinct_correct(completions: list[dict[str, Any]], k: int) -> float:
    """Expected number of different correct answers, or else texts, among k of the samples of one prompt."""
    counts = Counter(
        completion.get("given_answer", completion["text"])
        for completion in completions
        if completion["verdict"] == "correct"
    )
    return distinct_at_k(list(counts.values()), len(completions), k)


def _estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    low, high = bootstrap_interval(values)
    return Estimate(mean=float(np.mean(values)), low=low, high=high)


class _Judged(NamedTuple):
    reward: float | None
    verdict: str
    reason: str
    given_answer: str | None = None


def _verdicts(
    reward: RewardFunction, dataset: Dataset, completions: list[Completion], repeats: int, correct_at: float
) -> list[_Judged]:
    """The judgement of every completion: what math-verify says of it, or whether its reward suffices."""
    if isinstance(reward, MathReward) and completions:
        golds = [golds_of(answer) for answer in dataset["answer"] for _ in range(repeats)]
        judged = reward.pool.verdicts([completion.text for completion in completions], golds)
        return [
            _Judged(None if v.outcome == "bad_gold" else float(v.outcome == "correct"), v.outcome, v.reason)
            for v in judged
        ]
    rewards = rewards_of(reward, dataset, completions, repeats)
    answers = given_answers_of(reward, dataset, completions, repeats)
    return [
        _Judged(value, "unscored" if value is None else "correct" if value >= correct_at else "wrong", "", answer)
        for value, answer in zip(rewards, answers, strict=True)
    ]


def _record(completion: Completion, judged: _Judged) -> dict[str, Any]:
    record = {
        "text": completion.text,
        "reward": judged.reward,
        "verdict": judged.verdict,
        "reason": judged.reason,
        "length": len(completion.ids),
        "truncated": completion.truncated,
    }
    measured = {"entropy": completion.entropy, "given_answer": judged.given_answer}
    return record | {name: value for name, value in measured.items() if value is not None}
