"""Where a training step makes the processor wait for the device.

torch says so itself (`torch.cuda.set_sync_debug_mode`), by a warning from the call that waits. Each is put down to the
phase of the step and to the innermost function of equipoise, TRL, transformers or accelerate that was running.
"""

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

WORDS = "synchronizing CUDA operation"
OWNERS = ("equipoise", "trl", "transformers", "accelerate")


class SyncCounter:
    """Counts while it is on.

    Attributes:
        phase: of the step that is running.
        found: how many waits by (phase, package, place).
        updates: that were counted.
    """

    def __init__(self) -> None:
        self.phase, self.updates = "between", 0
        self.found: Counter[tuple[str, str, str]] = Counter()

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """That phase, and the one before again after it."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Count what waits within the block."""
        gpu = torch.cuda.is_available()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            show = warnings.showwarning

            def noted(message, *details, **more):
                if WORDS in str(message):
                    self.found[self.phase, *place()] += 1
                else:
                    show(message, *details, **more)

            warnings.showwarning = noted
            if gpu:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if gpu:
                    torch.cuda.set_sync_debug_mode("default")

    def per_update(self) -> dict[str, float]:
        """By phase."""
        total: Counter[str] = Counter()
        for (phase, _, _), count in self.found.items():
            total[phase] += count
        return {phase: round(count / max(self.updates, 1), 2) for phase, count in sorted(total.items())}

    def own_in_micro_batch(self) -> float:
        """Those of equipoise within forward, loss and backward of a micro-batch, per update."""
        own = sum(
            n for (phase, package, _), n in self.found.items() if (phase, package) == ("micro-batch", "equipoise")
        )
        return round(own / max(self.updates, 1), 2)

    def places(self, most: int = 12) -> list[str]:
        """The places that wait most often, per update."""
        return [
            f"{phase}: {count / max(self.updates, 1):g} × {package} {where}"
            for (phase, package, where), count in self.found.most_common(most)
        ]


def place() -> tuple[str, str]:
    """Package and file:line of the innermost function of one of `OWNERS`; torch's own where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if owner in OWNERS:
            return owner, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch", "backward or optimizer"
