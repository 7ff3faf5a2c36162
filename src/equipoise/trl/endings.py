"""How a run that does not reach its end says so: what is left of it, and whether it can go on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.diagnostics.run_folder import METRICS_FILE, latest_checkpoint
from equipoise.errors import InputError

NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a system says where a disk takes no more."""


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Within the block, a disk that takes no more is one line, and an interruption says what is left of the run.

    Metrics, evaluations and records go to the disk all the time.

    Args:
        folder: of the run.

    Raises:
        InputError: the disk takes no more.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        latest = latest_checkpoint(folder)
        advice = f"continue with --resume {folder}" if latest else "start again: there is no complete checkpoint"
        raise InputError(f"{folder} cannot be written: {error.strerror}; once that is mended, {advice}") from error
    except KeyboardInterrupt as error:
        error.args = (f"interrupted; {_what_is_left(folder)}",)
        raise


def _what_is_left(folder: Path) -> str:
    if latest_checkpoint(folder) is not None:
        return f"continue with --resume {folder}"
    if (folder / METRICS_FILE).exists():
        return f"no checkpoint is complete: {folder} holds metrics, and cannot be resumed"
    return "before the first update: nothing is kept"
