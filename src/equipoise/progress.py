"""The one progress bar: on stderr or in a notebook. A file or a pipe gets no control characters."""

import time
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    name: str, total: int | None, unit: str = "it", *, done: int = 0, shown: bool = True, stays: bool = False
) -> Any:
    """A bar with the time left: a context, with `update(number)`, `set_postfix` and `close` of tqdm.

    Args:
        name: before the bar.
        total: of the units; None where it is not known.
        unit: of what is counted.
        done: units that were done before.
        shown: False for no bar at all.
        stays: leave the bar on the screen when it is closed.
    """
    return tqdm(
        desc=name, total=total, unit=unit, initial=done, leave=stays, smoothing=0.1, disable=None if shown else True
    )


class SamplingBar:
    """A bar over completions that moves with every step of a batch: with tokens per second, and the time left.

    A completion that is being sampled counts for the part of the longest one that it has. The time left is from the
    mean speed since the bar began, so that it is too long, not too short, while completions end before they must.

    Args:
        name: before the bar.
        total: completions.
        done: completions that were there before.
        shown: False for no bar at all.
    """

    FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} {unit}s [{elapsed}<{remaining}{postfix}]"

    def __init__(self, name: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        self.bar = progress_bar(name, total, "completion", done=done, shown=shown)
        self.bar.smoothing, self.bar.bar_format = 0, self.FORMAT
        self.completions: float = done
        self.num_tokens, self.begun = 0, time.monotonic()

    def __enter__(self) -> Any:  # itself: a subclass its own
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    @property
    def watch(self) -> "SamplingBar | None":
        """Itself, for a sampler to tell its steps; None where nothing is drawn: then no step has to be told."""
        return None if self.bar.disable else self

    def step(self, tokens: int, completions: float) -> None:
        """So many tokens more, and what the batch that is being sampled amounts to, in completions."""
        self.num_tokens += tokens
        speed = self.num_tokens / max(time.monotonic() - self.begun, 1e-9)
        self.bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)
        self._show(self.completions + completions)

    def update(self, completions: float) -> None:
        """So many completions are done."""
        self.completions += completions
        self._show(self.completions)

    def _show(self, completions: float) -> None:
        self.bar.update(max(completions - self.bar.n, 0))
