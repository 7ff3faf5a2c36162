"""The one progress bar: on stderr or in a notebook. A file or a pipe gets no control characters."""

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
