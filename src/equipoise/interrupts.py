"""SIGTERM, which clusters send, does what Ctrl-C does: an exception, so that everything that is open is closed.

Python's own reaction to SIGTERM is to be gone, with temporary files and half a run left behind.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Somebody wants the process to end.

    Attributes:
        signal: that said so; the exit code is 128 and its number.
    """

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.signal = number


def raise_interrupted(number: int, _frame: FrameType | None = None) -> None:
    """A handler that ends what is being done.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(number)


@contextmanager
def advised(advice: str) -> Iterator[None]:
    """Within the block, an interruption says what is to be done next."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = (f"interrupted; {advice}",)
        raise


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Within the block, these signals come to `handler`; signals that are ignored, or handled outside Python, stay so.

    Does nothing in a thread, where Python takes no handlers. A process that is forked within the block ends by the
    signal, as it would without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def in_owner(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number, held in before.items() if held not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, in_owner)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
