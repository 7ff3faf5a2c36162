"""Episodes in TRL's loop of generating and calling tools: steps side by side, and evaluation on held-out prompts."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from equipoise.diagnostics.estimators import bootstrap_interval
from equipoise.models.evaluation_ranks import seed_of
from equipoise.models.randomness import seeded
from equipoise.models.sampling import evaluation_mode
from equipoise.progress import progress_bar
from equipoise.tasks.environments import Episode, EpisodeReward
from equipoise.trl.ranks import evaluation_ranks

logger = logging.getLogger("equipoise")


class Transcript(list):
    """The messages of one completion, as TRL collects them; a tool call that is added begins at once.

    TRL's loop asks for the steps of one episode after the other and waits for each. All calls of a turn are known
    before the first is asked for, so that a turn costs the time of its slowest step and not their sum.
    The loop ends after `most` turns with calls: a call that it would not ask for must not begin.
    """

    def __init__(self, messages: list[dict[str, Any]], episode: Episode, most: int) -> None:
        super().__init__(messages)
        self.episode, self.left = episode, most
        for message in messages:
            self._begin(message)

    def append(self, message: dict[str, Any]) -> None:
        """Add a message; its tool calls begin."""
        super().append(message)
        self._begin(message)

    def __reduce__(self) -> tuple:
        """A plain list for other processes: the episode, its environment and its thread stay in this one."""
        return list, (list(self),)

    def _begin(self, message: dict[str, Any]) -> None:
        calls = message.get("tool_calls") or []
        if not calls or self.left == 0:
            return
        self.left -= 1
        for call in calls:
            function = call.get("function") or {}
            if isinstance(function.get("arguments"), dict):
                self.episode._begin(str(function.get("name")), function["arguments"])


def transcript(messages: list[dict[str, Any]], environment: Any, most: int) -> list[dict[str, Any]]:
    """The messages of one completion, in an environment of ours as a `Transcript`; in others they are left alone."""
    return Transcript(messages, environment, most) if isinstance(environment, Episode) else messages


def neutral_rewards(
    rewards: Tensor, functions: Sequence[Any], num_generations: int, gather: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rewards in which a failed episode has the mean of its whole group, of which other processes may have a part.

    Args:
        rewards: [completions of all ranks, functions], as TRL gathers them; the completions of a group stand together.
        functions: of the columns; those that are `EpisodeReward`s know which episodes of this rank failed.
        num_generations: of a group.
        gather: rows of every rank, in order of rank.

    Returns:
        The same shape; columns of other functions are as they were.
    """
    rewards = rewards.clone()
    for column, function in enumerate(functions):
        if isinstance(function, EpisodeReward):
            own = [math.nan if score is None else score for score in function.last_scores]
            groups = gather(torch.tensor(own, dtype=torch.float64, device=rewards.device)).view(-1, num_generations)
            means = groups.nanmean(dim=1, keepdim=True).nan_to_num(0.0)  # 0 where all of a group failed
            rewards[:, column] = torch.where(groups.isnan(), means, groups).flatten().to(rewards)
    return rewards


@torch.no_grad()
def evaluate_episodes(
    trainer: Any, dataset: Dataset, reward: Any, *, seed: int = 0, correct_at: float = 1.0, progress: bool = False
) -> dict[str, Any]:
    """What the policy reaches on held-out prompts, sampling as in training; nothing of the training state changes.

    Several processes share the prompts, and all have to call it. Each plays as many episodes as any other, as TRL's
    loop wants it: one that has no prompt left plays another's, and what comes of it does not count.

    Args:
        trainer: with an environment.
        dataset: the held-out prompts.
        reward: the `EpisodeReward` that the trainer scores with.
        seed: of the samples; on several processes they follow from the number of processes too.
        correct_at: an episode is correct when its reward is at least this.
        progress: show a bar on stderr, on the main process.

    Returns:
        "num_prompts", "num_samples" per prompt, "pass_at" {"1": {"mean", "low", "high"}} with a 95% bootstrap interval
        over prompts, "mean_reward" and "failed_fraction". Failed episodes count as neither right nor wrong.
    """
    samples, ranks = trainer.num_generations_eval, evaluation_ranks(trainer.accelerator)
    own = ranks.part(len(dataset))
    most = math.ceil(len(dataset) / ranks.count)
    scores = _scores(
        trainer,
        dataset.select(own + [0] * (most - len(own))),
        reward,
        seed=seed if ranks.count == 1 else seed_of(seed, ranks.rank),
        progress=progress and ranks.rank == 0,
    )
    measured = {"num_prompts": len(dataset), "num_samples": samples, "temperature": trainer.temperature, "seed": seed}
    return measured | _measures(ranks.merged(scores[: len(own)]), correct_at)


def _scores(trainer: Any, dataset: Dataset, reward: Any, *, seed: int, progress: bool) -> list[list[float | None]]:
    """The scores of every prompt's episodes, None for a failed one."""
    samples = trainer.num_generations_eval
    at_once = max(1, 256 // samples)
    scores = []
    try:
        with (
            evaluation_mode(trainer.model),
            seeded(seed),
            progress_bar("evaluate", len(dataset), "prompt", shown=progress) as bar,
        ):
            for begin in range(0, len(dataset), at_once):
                rows = dataset.select(range(begin, min(begin + at_once, len(dataset)))).to_list()
                trainer._generate_and_score_completions([row for row in rows for _ in range(samples)])
                scores += [reward.last_scores[n * samples : (n + 1) * samples] for n in range(len(rows))]
                bar.update(len(rows))
    finally:
        trainer._metrics["eval"].clear()
    return scores


def _measures(scores: list[list[float | None]], correct_at: float) -> dict[str, Any]:
    """Of the scores of every prompt's episodes, None for a failed one."""
    known = [[score for score in of_prompt if score is not None] for of_prompt in scores]
    rates = [sum(score >= correct_at for score in of_prompt) / len(of_prompt) for of_prompt in known if of_prompt]
    rewards = [score for of_prompt in known for score in of_prompt]
    total = sum(map(len, scores))
    low, high = bootstrap_interval(rates) if rates else (math.nan, math.nan)
    mean = sum(rates) / len(rates) if rates else math.nan
    return {
        "pass_at": {"1": {"mean": mean, "low": low, "high": high}},
        "mean_reward": sum(rewards) / len(rewards) if rewards else math.nan,
        "failed_fraction": (total - len(rewards)) / total if total else math.nan,
    }
