"""One worker as the trainer sees it: a process, the requests it holds, and two threads that wait in its place.

Threads and blocking pipes behave alike on all systems; pipes that do not block, and waiting for several, do not.
"""

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from equipoise import plain_data

_SCRIPT = Path(__file__).with_name("start.py")
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "SYSTEMROOT", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "TEMP", "TMP",
)  # fmt: skip
"""What a worker is told of the environment beside PYTHON…; the rest may hold keys and tokens."""


@dataclass
class Request:
    """One answer to judge.

    Attributes:
        index: its place in the batch.
        job: the name of the job that judges it.
        payload: for the job; plain data.
        seconds: of CPU time.
        deaths: workers that died while they worked on it. Such a request is tried again with nothing beside it.
        identity: of the trial, random.
    """

    index: int
    job: str
    payload: Any
    seconds: float
    deaths: int = 0
    identity: str = field(default_factory=lambda: secrets.token_hex(8))


Event = tuple["WorkerProcess", dict[str, Any] | None]
"""A worker and what it answered; None when its pipe has ended."""


class WorkerProcess:
    """A process of one kind of work.

    Attributes:
        pending: the requests it holds, oldest first; it works on the first.
        jobs: the jobs it was told of.
        prepared: those of them that it has prepared.
        ready: whether it has done its imports, and is confined.
    """

    def __init__(self, kind: str, memory_bytes: int, events: "queue.SimpleQueue[Event]") -> None:
        """Starts it; everything that it answers, and its end, goes to `events`."""
        self.pending: deque[Request] = deque()
        self.jobs: set[str] = set()
        self.prepared: set[str] = set()
        self.ready = False
        self.process = subprocess.Popen(
            # -P: the folder of the script must not come before installed packages. -B: no byte code is written.
            [sys.executable, "-P", "-B", str(_SCRIPT), kind, str(memory_bytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=_environment(), start_new_session=os.name == "posix",
        )  # fmt: skip
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._watched = _Watched(time.monotonic(), None, 0.0)
        for target, arguments in ((_write, (self.process, self._outgoing)), (_read, (self, events))):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def prepare(self, job: str, arguments: Any) -> None:
        """Tells it of a job; it answers {"prepared"}."""
        self.jobs.add(job)
        self._outgoing.put(_line(("prepare", job, arguments)))

    def send(self, request: Request) -> None:
        """Gives it one more request; never waits."""
        if not self.pending:
            self.begin()
        self.pending.append(request)
        message = ("answer", request.identity, request.job, request.payload, request.seconds)
        self._outgoing.put(_line(message))

    def begin(self) -> None:
        """It begins with the first request now."""
        self._watched = _Watched(time.monotonic(), None, 0.0)

    def elapsed(self) -> float:
        """Seconds since it began with the first request."""
        return time.monotonic() - self._watched.since

    def usage(self) -> tuple[float, int]:
        """CPU time since the first look at the present request, in seconds, and resident memory, in bytes.

        The first look comes a moment after the beginning: the difference is in favour of the answer.
        """
        try:
            process = psutil.Process(self.process.pid)
            times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.Error:
            return 0.0, 0  # it has just ended
        cpu = times.user + times.system
        if self._watched.identity != self.pending[0].identity:
            self._watched = _Watched(self._watched.since, self.pending[0].identity, cpu)
        return cpu - self._watched.cpu, memory

    def kill(self) -> int:
        """Ends it and whatever it has started; its exit code, which tells how it ended if it had ended before."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self._outgoing.put(None)
        return self.process.wait()


@dataclass(frozen=True)
class _Watched:
    """Since when the first request is worked on, and the CPU time of the process at the first look at it."""

    since: float
    identity: str | None
    cpu: float


def _line(message: tuple) -> bytes:
    return plain_data.written(list(message)).encode() + b"\n"


def how_it_ended(code: int) -> str:
    """The name of the signal, or the exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in _ENVIRONMENT or key.startswith(("PYTHON", "LC_"))}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _write(process: subprocess.Popen, outgoing: "queue.SimpleQueue[bytes | None]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # the worker has ended
        while (message := outgoing.get()) is not None:
            process.stdin.write(message)
            process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()


def _read(worker: WorkerProcess, events: "queue.SimpleQueue[Event]") -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as stream:
        for line in stream:
            try:
                answer = json.loads(line)
            except ValueError:
                break  # no worker of ours writes this
            events.put((worker, answer if isinstance(answer, dict) else {}))
    events.put((worker, None))
