"""The reward of episodes: what their environments say, with failed episodes counted, recorded and kept neutral."""

import json
import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any

from equipoise.errors import InputError
from equipoise.redaction import without_secrets
from equipoise.tasks.datasets import shortened
from equipoise.tasks.environments.episode import FAILURES, Episode

logger = logging.getLogger("equipoise")

WINDOW = 256  # episodes over which the share of failed ones is measured
LEAST = 16  # episodes before it is judged
MAX_SAID = 5  # different causes that are said; the file has all


class EpisodesFailedError(InputError):
    """More episodes than allowed failed by their environment: what is learned from the others may not be the task."""


class EpisodeReward:
    """`get_reward()` of every episode's environment.

    A failed episode gets the mean reward of the other episodes of its prompt, so that its advantage is zero: it neither
    counts as a wrong answer nor moves the others. Shares of outcomes are logged as episodes/OUTCOME_fraction, every
    failed episode is written to `record` with its cause, and too many of them end the run.

    Attributes:
        max_failed_fraction: of the last 256 episodes, in (0, 1].
        record: JSONL file of failed episodes, appended to; None: they are not written.
        last_scores: of the last call, None where the episode failed.
    """

    def __init__(self, max_failed_fraction: float = 0.2, record: Path | None = None) -> None:
        if not 0 < max_failed_fraction <= 1:
            raise InputError(f"max_failed_fraction must be in (0, 1], got {max_failed_fraction}")
        self.__name__ = "episode_reward"
        self.max_failed_fraction, self.record = max_failed_fraction, record
        self.last_scores: list[float | None] = []
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._causes: Counter[str] = Counter()

    def __call__(self, *, prompts: list, completions: list, environments: list[Episode], **columns: Any) -> list[float]:
        """One reward per episode.

        Raises:
            EpisodesFailedError: more than `max_failed_fraction` of the recent episodes failed, with the causes.
        """
        scores = [episode._score() for episode in environments]
        self.last_scores = scores
        self._log(environments, columns)
        failed = [(prompt, episode) for prompt, episode in zip(prompts, environments, strict=True) if episode.failed]
        self._recent.extend(episode.failed for episode in environments)
        self._write(failed)
        fraction = sum(self._recent) / max(len(self._recent), 1)
        if len(self._recent) >= LEAST and fraction > self.max_failed_fraction:
            causes = "; ".join(f"{count}x {cause}" for cause, count in self._causes.most_common(3))
            raise EpisodesFailedError(
                f"{fraction:.0%} of the last {len(self._recent)} episodes failed by their environment, more than "
                f"max_failed_fraction={self.max_failed_fraction:g}: {causes}"
            )
        return self.neutral(prompts)

    def neutral(self, prompts: list) -> list[float]:
        """The last scores; a failed episode has the mean of the others of its prompt, or 0.0 when there are none."""
        return _neutral(prompts, self.last_scores)

    def _log(self, episodes: list[Episode], columns: dict[str, Any]) -> None:
        if "log_metric" in columns and episodes:
            counts = Counter(episode.outcome for episode in episodes)
            for outcome in ("step_limit", *FAILURES):
                columns["log_metric"](f"episodes/{outcome}_fraction", counts[outcome] / len(episodes))
            steps = sum(episode.num_steps for episode in episodes)
            columns["log_metric"]("episodes/steps_mean", steps / len(episodes))
        if "log_extra" in columns:
            columns["log_extra"]("episode", [episode.cause or episode.outcome for episode in episodes])

    def _write(self, failed: list[tuple[Any, Episode]]) -> None:
        for _, episode in failed:
            self._causes[episode.cause] += 1
            if self._causes[episode.cause] == 1 and len(self._causes) <= MAX_SAID:
                logger.warning("An episode failed (%s): %s.", episode.outcome, episode.cause)
        if failed and self.record is not None:
            lines = [json.dumps(_failure(prompt, episode)) for prompt, episode in failed]
            with self.record.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))


def _failure(prompt: Any, episode: Episode) -> dict[str, Any]:
    """What is written of an episode that failed."""
    cause, shown = without_secrets(episode.cause), shortened(prompt, 2000)
    return {"outcome": episode.outcome, "cause": cause, "steps": episode.num_steps, "prompt": shown}


def _neutral(prompts: list, scores: list[float | None]) -> list[float]:
    """The scores, with the mean of the neighbours of the same prompt in the place of None; 0.0 where all failed."""
    rewards = []
    begin = 0
    for end in range(1, len(scores) + 1):
        if end < len(scores) and prompts[end] == prompts[begin]:
            continue
        known = [score for score in scores[begin:end] if score is not None]
        mean = sum(known) / len(known) if known else 0.0
        rewards += [mean if score is None else score for score in scores[begin:end]]
        begin = end
    return rewards
