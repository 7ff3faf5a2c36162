"""How long a probe will take, from a timed beginning of it, and a bar that moves through samples and passes alike."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from equipoise.commands.probe_passes import Rollout, passes
from equipoise.models.sampling import Completion, Sampler
from equipoise.progress import SamplingBar

PASSES = {"objective": 3, "entropy": 3, "after the step": 1}
"""The passes of a batch over its completions, in forward passes: a backward pass takes the time of two."""

TIMED_STEPS = 4
"""Tokens that are sampled to know the time of one."""


@dataclass(frozen=True)
class ProbeTime:
    """Seconds of one batch, if every completion has its greatest length.

    Attributes:
        sampling: of its completions.
        forward: of one forward pass over them.
    """

    sampling: float
    forward: float

    @property
    def seconds(self) -> float:
        """Of the whole batch."""
        return self.sampling + sum(PASSES.values()) * self.forward

    def share(self, name: str | None) -> float:
        """The part of the time that a pass of that name takes, or the sampling (None)."""
        taken = self.sampling if name is None else PASSES[name] * self.forward
        return taken / self.seconds


def timed_beginning(model: Any, sampler: Sampler, prompt_ids: list[list[int]], batch_size: int) -> ProbeTime:
    """The time of a batch, from the first tokens and one forward pass of its longest sequences; no random numbers.

    Args:
        model: with the statistics head.
        sampler: of the model, with the length of the completions.
        prompt_ids: of the batch, one per completion.
        batch_size: sequences at a time.
    """
    rows = sorted(prompt_ids, key=len, reverse=True)[:batch_size]
    _, steps = _sampled(sampler, rows, 1)  # whatever is done once only
    first, _ = _sampled(sampler, rows, 1)
    more, steps = _sampled(sampler, rows, 1 + TIMED_STEPS)
    step = max(more - first, 0) / max(steps - 1, 1)
    begun = time.perf_counter()
    again = [Completion(ids, "", truncated=True) for ids in rows]
    with torch.no_grad():
        for _ in passes(model, Rollout(rows, again, torch.zeros(len(rows)), []), batch_size):
            pass
    _synchronize()
    token = (time.perf_counter() - begun) / sum(2 * len(ids) for ids in rows)
    tokens = sum(map(len, prompt_ids)) + len(prompt_ids) * sampler.max_new_tokens
    micro_batches = -(-len(prompt_ids) // batch_size)
    sampling = micro_batches * (first + step * (sampler.max_new_tokens - 1))
    return ProbeTime(max(sampling, 1e-9), tokens * token)


def _sampled(sampler: Sampler, rows: list[list[int]], length: int) -> tuple[float, int]:
    """Seconds of so many greedy tokens of each row, and how many the longest has."""
    most, watch = sampler.max_new_tokens, sampler.watch
    sampler.max_new_tokens, sampler.watch = min(length, most), None
    try:
        begun = time.perf_counter()
        completions = sampler.completions(rows, None, lambda number: None)
        return time.perf_counter() - begun, max(len(completion.ids) for completion in completions)
    finally:
        sampler.max_new_tokens, sampler.watch = most, watch


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def duration(seconds: float) -> str:
    """In the unit that a reader thinks in, to two digits: "40 s", "3.5 min", "2.1 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{max(seconds, 1):.0f} s"


class ProbeBar(SamplingBar):
    """A bar over the completions of a probe, each of which is sampled and passed over three times.

    Args:
        total: completions.
        expected: how long each part of a batch takes, which is what it counts for.
    """

    def __init__(self, total: int, expected: ProbeTime) -> None:
        super().__init__("probe", total)
        self.expected = expected

    def step(self, tokens: int, completions: float) -> None:
        """As `SamplingBar.step`; speed is that of the sampling alone."""
        super().step(tokens, completions * self.expected.share(None))

    def update(self, completions: float) -> None:
        """So many completions are sampled."""
        super().update(completions * self.expected.share(None))

    def left_out(self, completions: int) -> None:
        """So many sampled completions have no advantage: nothing passes over them."""
        super().update(completions * (1 - self.expected.share(None)))

    @contextmanager
    def passing(self, name: str) -> Iterator[Callable[[int], None]]:
        """A pass over the completions of a batch; what it gives is told how many more it has seen."""
        begun = time.monotonic()
        self.bar.set_postfix_str(name, refresh=False)

        def passed(completions: int) -> None:
            super(ProbeBar, self).update(completions * self.expected.share(name))

        try:
            yield passed
        finally:
            self.begun += time.monotonic() - begun
