"""A trainer of TRL or of ours with a clock around its updates, fixed rollouts, and a counter of device waits."""

import contextlib
import time
from typing import Any

import torch
from transformers import TrainerCallback

from on_a_gpu_parts.step_shapes import Shape, completions
from on_a_gpu_parts.syncs import SyncCounter

UPDATES_PER_ROLLOUT = 4


def measured(base: type) -> type:
    """The trainer class with its generation replaced, and times and phases noted."""

    class Measured(base):
        shape: Shape
        syncs: SyncCounter
        rollout_seconds = 0.0
        rollouts = 0

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            self.rollouts += 1
            return completions(self.shape, len(prompt_ids), self.rollouts), None

        def _generate_and_score_completions(self, inputs):
            synchronize()
            start = time.perf_counter()
            with self.syncs.during("rollout"):
                batch = super()._generate_and_score_completions(inputs)
            synchronize()
            self.rollout_seconds += time.perf_counter() - start
            return batch

        def training_step(self, *args, **kwargs):
            with self.syncs.during("micro-batch"):
                return super().training_step(*args, **kwargs)

    for name, phase in (("_open_update", "opening of the update"), ("_close_update", "close of the update")):
        if hasattr(base, name):
            setattr(Measured, name, in_phase(getattr(base, name), phase))
    Measured.__name__ = f"Measured{base.__name__}"
    return Measured


def in_phase(method, phase: str):
    def call(self, *args, **kwargs):
        with self.syncs.during(phase):
            return method(self, *args, **kwargs)

    return call


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """Seconds of every counted update without its rollout, peak memory, and device waits of the uncounted ones."""

    def __init__(self, trainer: Any, count_syncs: bool) -> None:
        self.trainer, self.count_syncs = trainer, count_syncs
        self.seconds: list[float] = []
        self.rollout_seconds: list[float] = []
        self.peak_mb: float | None = None
        self._counting = contextlib.ExitStack()

    def on_step_begin(self, args, state, control, **kwargs):
        # Of the first rollout batch updates are not timed: two to four, whose data has moved, count waits instead.
        if self.count_syncs and 1 <= state.global_step < UPDATES_PER_ROLLOUT:
            self._counting.enter_context(self.trainer.syncs.on())
            self.trainer.syncs.updates += 1
        synchronize()
        if state.global_step == UPDATES_PER_ROLLOUT and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._rollout_before = self.trainer.rollout_seconds
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._counting.close()
        synchronize()
        whole, rollout = time.perf_counter() - self._start, self.trainer.rollout_seconds - self._rollout_before
        if state.global_step > UPDATES_PER_ROLLOUT:
            self.seconds.append(whole - rollout)
            self.rollout_seconds += [rollout] if rollout else []
            if torch.cuda.is_available():
                self.peak_mb = round(torch.cuda.max_memory_allocated() / 1e6, 1)
