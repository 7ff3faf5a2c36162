"""Failures before the work: what a host raises while a run is made ready is about its settings, and is one line.

From the first rollout on everything propagates as it is: it may be a mistake of this package, or of the machine.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

import equipoise
from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line

_OURS = str(Path(equipoise.__file__).parent)


def raised_by_host(error: BaseException) -> bool:
    """Whether the innermost frame of an exception is in another package."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not frames[-1].filename.startswith(_OURS)


class Beginning(TrainerCallback):
    """Knows whether a run has begun to work.

    Attributes:
        over: whether it has.
    """

    def __init__(self) -> None:
        self.over = False

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Comes before the first rollout."""
        self.over = True

    @contextmanager
    def failing_in_one_line(self) -> Iterator[None]:
        """Until the work begins, turns what a host raises into one line.

        Raises:
            InputError: in place of an exception of a host; those of this package propagate.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if self.over or not raised_by_host(error):
                raise
            raise InputError(f"the run cannot begin with these settings: {one_line(error)}") from error
