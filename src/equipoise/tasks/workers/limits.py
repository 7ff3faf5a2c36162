"""Limits of one worker: memory, and CPU time for each answer, so that a busy machine takes nothing from anybody.

What a system does not have (Windows has none of it, macOS does not keep the limit of memory) is left to the trainer,
which watches CPU time and memory of its workers from outside.
"""

import contextlib
import signal
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

HARD_SECONDS = 0.5  # after the timer, which the interpreter may not notice within one long operation
_AGAIN_SECONDS = 0.05  # a scorer may swallow the first interruption


class OutOfTimeError(BaseException):
    """Raised by the timer; no `except Exception` on the way may swallow it."""


def limit_memory(memory_bytes: int) -> None:
    """Limits the address space of this process and forbids core files."""
    _set("RLIMIT_AS", memory_bytes)
    _set("RLIMIT_CORE", 0)


def forbid_growing_files() -> None:
    """No file can grow, and no process be started, by this one; the superuser may start some."""
    _set("RLIMIT_FSIZE", 0)
    _set("RLIMIT_NPROC", 0)


def _set(name: str, value: int) -> None:
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(getattr(resource, name), (value, value))


class CpuTimer:
    """Interrupts this process when an answer has used its CPU time; where timers are missing, does nothing.

    At the limit `OutOfTimeError` is raised, again and again. Half a second later the kernel ends the process, as one
    long operation hears of no signal.

    Attributes:
        expired: whether the last function was interrupted.
    """

    def __init__(self) -> None:
        self.expired, self._armed = False, False
        self._available = hasattr(signal, "setitimer")
        if self._available:
            signal.signal(signal.SIGPROF, self._out_of_time)
            signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # ends the process

    def limited(self, function: Callable[[], Value], seconds: float) -> Value | None:
        """The function's value; None when it was interrupted after so many seconds of CPU time."""
        self.expired, self._armed = False, True
        value = None
        try:
            self._set(seconds)
            value = function()
            self._armed = False  # the timer may ring until here
        except OutOfTimeError:
            pass
        self._armed = False
        self._set(0)
        return value

    def _set(self, seconds: float) -> None:
        if self._available:
            signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN_SECONDS if seconds else 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds + HARD_SECONDS if seconds else 0)

    def _out_of_time(self, number: int, frame: object) -> None:
        if self._armed:
            self.expired = True
            raise OutOfTimeError
