"""A worker: it answers requests one after another, each within its CPU time, and has no rights.

It imports what its kind needs, gives up its rights (`confinement`), and does as it is told through a pipe. Requests are
lines of plain data (`equipoise.plain_data`): ["prepare", job, arguments], or ["answer", identity, job, payload,
seconds]. Answers are lines of JSON: {"ready"}, {"prepared"}, {"identity", "outcome", "reason", "value", "retire"}, or
{"failed"}. Identities are random, so that nothing that a text brings into the pipe can be an answer.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from equipoise import plain_data
from equipoise.tasks.workers import closed_parser, limits
from equipoise.tasks.workers.confinement import Confinement, RefusedError

Handler = Callable[[Any], Any]

KINDS = {
    "math": "equipoise.tasks.verification_worker",
    "reasoning_gym": "equipoise.tasks.workers.scorers",
    "chat_template": "equipoise.models.template_worker",
}


class Worker:
    """What a worker knows: its rights, its timer, and the handlers of its jobs."""

    def __init__(self, kind: str, memory_bytes: int) -> None:
        limits.limit_memory(memory_bytes)
        self.confinement, self.timer = Confinement(), limits.CpuTimer()
        self.out_of_memory = False
        self.handlers: dict[str, Handler] = {}
        self.kind = importlib.import_module(KINDS[kind])
        self.kind.warm()  # what the first answer would import, and the time that takes, is nobody's
        if "sympy" in sys.modules:  # all kinds import what they use in warm()
            closed_parser.close_sympy(self.confinement.refusal, self._note_memory)
        closed_parser.close_eval(self.kind.modules_with_eval(), self.confinement.refusal)

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Answer requests until the pipe is closed."""
        _send(answers, {"ready": self.confinement.begin()})
        while True:
            with self.confinement.trusted():
                if not (line := requests.readline()):
                    return
                what, *rest = plain_data.read(line)
                if what == "prepare":
                    job, arguments = rest
                    self.handlers[job] = self.kind.prepared(arguments)
                    _send(answers, {"prepared": job})
                    continue
            identity, job, payload, seconds = rest
            _send(answers, {"identity": identity} | self.answer(self.handlers[job], payload, seconds))

    def answer(self, handler: Handler, payload: Any, seconds: float) -> dict[str, Any]:
        """The outcome "done" with the handler's value, or "timeout", "memory", "refused" or "error" with a reason."""
        self.confinement.forget()
        self.out_of_memory = False
        ended = self.timer.limited(lambda: _called(handler, payload, self._note_memory), seconds)
        value, reason = ended or (None, "")
        outcome = "error" if reason else "done"
        if self.timer.expired:
            outcome, reason = "timeout", f"took longer than {seconds:g} s of CPU time"
        elif self.out_of_memory:
            outcome, reason = "memory", "needs more memory than a worker has"
        elif self.confinement.refusals:
            outcome, reason = "refused", self.confinement.refusals[0]
        return {
            "outcome": outcome,
            "reason": reason,
            "value": value if outcome == "done" else None,
            # Something ran that should not have: it may have changed what later answers are judged by.
            "retire": self.confinement.was_needed or threading.active_count() > 1,
        }

    def _note_memory(self) -> None:
        self.out_of_memory = True


def _called(handler: Handler, payload: Any, note_memory: Callable[[], None]) -> tuple[Any, str]:
    try:
        return handler(payload), ""
    except MemoryError:
        note_memory()
        return None, "needs more memory than a worker has"
    except RefusedError as error:
        return None, str(error)
    except RecursionError:
        return None, "is nested too deeply"
    except limits.OutOfTimeError:
        raise
    except BaseException as error:  # a scorer that exits is one that fails
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _own_channels() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under numbers of their own, with nothing behind the standard streams."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    return requests, answers


def main(kind: str, memory_bytes: int) -> None:
    """Runs the worker; what keeps it from working at all is told to whoever waits for it."""
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is trained
    requests, answers = _own_channels()
    try:
        worker = Worker(kind, memory_bytes)
        worker.serve(requests, answers)
    except Exception as error:
        _send(answers, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
