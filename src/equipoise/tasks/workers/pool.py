"""Requests spread over workers; each comes back with an outcome, whatever it is and whatever happens to its worker."""

import atexit
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.errors import InputError
from equipoise.tasks.workers.limits import HARD_SECONDS
from equipoise.tasks.workers.process import Event, Request, WorkerProcess, how_it_ended

Outcome = Literal["done", "timeout", "memory", "refused", "error"]
SECONDS = 3.0
MEMORY_BYTES = 2 * 2**30
PIPELINE = 8  # requests that a worker holds, so that it never waits for us
MAX_WORKERS = 16
WATCH_SECONDS = 0.2  # how often the CPU time and the memory of workers are looked at from outside
WALL_FACTOR, WALL_SECONDS = 20, 60.0  # the far backstop: an answer that takes no CPU time either
STARTUP_SECONDS = 300.0  # importing sympy on a machine that is busy or reads from a network
MAX_STARTS = 5  # workers in a row that end before they are ready
TRIALS_IF_KILLED = 8  # a signal from outside says nothing about the answer
TRIALS_IF_CRASHED = 2
STOOD_STILL = "stood still"


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        outcome: "done"; "timeout" and "memory" (its limits), "refused" (it tried what a worker may not), or "error"
            (the job raised, or its worker died each time that it was tried).
        reason: what happened, where the outcome does not say it.
        value: of the job, for "done".
    """

    outcome: Outcome
    reason: str = ""
    value: Any = None


class WorkerPool:
    """Worker processes of one kind; each is started when there is work for it, and replaced when it dies.

    Attributes:
        num_workers: at most so many at a time.
        seconds: CPU time for one answer.
        memory_bytes: address space of one worker.
        walls: what confines the workers, once one has started: "audit", and "seccomp" where the kernel helps.
    """

    def __init__(
        self,
        kind: str,
        num_workers: int | None = None,
        *,
        seconds: float = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        wall_seconds: float | None = None,
    ) -> None:
        """No process is started yet.

        Args:
            kind: "math", "reasoning_gym" or "chat_template".
            num_workers: at most so many at a time; None: the cores that this process may use, shared among the ranks of
                this machine.
            seconds: of CPU time, for one answer, > 0.
            memory_bytes: address space of one worker.
            wall_seconds: after which an answer is given up even if it takes no CPU time; None: 60, or 20 times its
                limit of CPU time.

        Raises:
            ValueError: a number out of range.
        """
        if (num_workers is not None and num_workers < 1) or not seconds > 0 or memory_bytes < 2**28:
            raise ValueError(
                "num_workers must be >= 1, seconds > 0 and memory_bytes >= 2**28, got "
                f"num_workers={num_workers}, seconds={seconds}, memory_bytes={memory_bytes}"
            )
        self.kind, self.num_workers = kind, num_workers or default_workers()
        self.seconds, self.memory_bytes = seconds, memory_bytes
        self.wall_seconds = max(WALL_SECONDS, WALL_FACTOR * seconds) if wall_seconds is None else wall_seconds
        self.walls: list[str] = []
        self._jobs: dict[str, Any] = {}
        self._workers: list[WorkerProcess] = []
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._failed_starts = 0
        self._owner, self._lock = os.getpid(), threading.Lock()
        atexit.register(self.close)

    def add_job(self, arguments: Any) -> str:
        """The name of a new job, prepared by each worker before its first request.

        Args:
            arguments: for `prepared` of the kind; plain data (`equipoise.plain_data`).
        """
        name = f"job {len(self._jobs)}"
        self._jobs[name] = arguments
        return name

    def answers(
        self, job: str, payloads: Sequence[Any], *, done: Callable[[Answer], object] = lambda _: None
    ) -> list[Answer]:
        """One answer per payload, in order.

        Args:
            job: as `add_job` named it.
            payloads: for the job; plain data (`equipoise.plain_data`).
            done: called with every answer as it comes.

        Raises:
            InputError: workers that cannot be started, or cannot prepare the job.
            TypeError: a payload that is no plain data.
        """
        results: list[Answer | None] = [None] * len(payloads)
        waiting = deque(Request(index, job, payload, self.seconds) for index, payload in enumerate(payloads))
        self._forget_other_process()
        with self._lock:
            try:
                while waiting or any(worker.pending for worker in self._workers):
                    self._feed(waiting)
                    for request, answer in self._collect(waiting):
                        results[request.index] = answer
                        done(answer)
            except BaseException:  # interrupted: what is on its way would be taken for the next call's
                self.close()
                raise
        return [answer for answer in results if answer is not None]

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        if self._owner == os.getpid():
            for worker in self._workers:
                worker.kill()
        self._workers.clear()

    def _forget_other_process(self) -> None:
        """After a fork the workers belong to the parent, whose answers must not be read here."""
        if self._owner != os.getpid():
            self._workers.clear()
            self._events = queue.SimpleQueue()
            self._owner, self._lock = os.getpid(), threading.Lock()

    def _feed(self, waiting: deque[Request]) -> None:
        """What was tried before goes to a worker that holds nothing else, and is not joined there."""
        wanted = min(self.num_workers, -(-len(waiting) // PIPELINE))
        while len(self._workers) < wanted:
            self._workers.append(WorkerProcess(self.kind, self.memory_bytes, self._events))
        for worker in self._workers:
            while waiting and len(worker.pending) < PIPELINE:
                alone = waiting[0].deaths > 0 or any(request.deaths for request in worker.pending)
                if alone and worker.pending:
                    break
                self._send(worker, waiting.popleft())

    def _send(self, worker: WorkerProcess, request: Request) -> None:
        if request.job not in worker.jobs:
            worker.prepare(request.job, self._jobs[request.job])
        worker.send(request)

    def _collect(self, waiting: deque[Request]) -> list[tuple[Request, Answer]]:
        """The answers that have come in; waits for one, or until it is time to look at the workers."""
        collected = []
        try:
            event = self._events.get(timeout=WATCH_SECONDS)
            while True:
                collected += self._heard(*event, waiting)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        for worker in [worker for worker in self._workers if worker.pending]:
            if (answer := self._overrun(worker)) is not None:
                collected += self._lost(worker, waiting, answer, is_final=answer.reason != STOOD_STILL)
        return collected

    def _heard(
        self, worker: WorkerProcess, message: dict[str, Any] | None, waiting: deque[Request]
    ) -> list[tuple[Request, Answer]]:
        if worker not in self._workers:
            return []  # of one that was ended before
        if message is None:
            return self._lost(worker, waiting)
        if "failed" in message:
            raise InputError(f"a worker of {self.kind} cannot work: {message['failed']}")
        if "ready" in message:
            worker.ready, self._failed_starts, self.walls = True, 0, message["ready"]
        if "prepared" in message:
            worker.prepared.add(message["prepared"])
        if "identity" not in message:
            worker.begin()
            return []
        if not worker.pending or message["identity"] != worker.pending[0].identity:
            return self._lost(worker, waiting, Answer("error", "the worker wrote something else than an answer"))
        request = worker.pending.popleft()
        worker.begin()
        if message["retire"]:
            self._dismiss(worker, waiting)
        return [(request, Answer(message["outcome"], message["reason"], message["value"]))]

    def _overrun(self, worker: WorkerProcess) -> Answer | None:
        """What to say of the first request of a worker that has to be ended; None while all is well."""
        request, elapsed = worker.pending[0], worker.elapsed()
        if not worker.ready or request.job not in worker.prepared:
            return Answer("error", "the worker did not start") if elapsed > STARTUP_SECONDS else None
        if elapsed < WATCH_SECONDS:
            return None
        cpu, memory = worker.usage()
        if memory > self.memory_bytes:
            return Answer("memory", "needs more memory than a worker has")
        if cpu > request.seconds + 2 * HARD_SECONDS:
            return Answer("timeout", f"had to be ended after {cpu:.1f} s of CPU time")
        return Answer("timeout", STOOD_STILL) if elapsed > self.wall_seconds else None

    def _lost(
        self, worker: WorkerProcess, waiting: deque[Request], answer: Answer | None = None, *, is_final: bool = False
    ) -> list[tuple[Request, Answer]]:
        """Ends a worker, if it has not ended. The request it worked on has this answer, or is tried again alone."""
        started, first = worker.ready, worker.pending.popleft() if worker.pending else None
        code = self._dismiss(worker, waiting)
        if not started:
            self._count_failed_start(code)
        if first is None:
            return []
        first.deaths += started
        trials = TRIALS_IF_KILLED if answer is None and _was_killed(code) else TRIALS_IF_CRASHED
        if answer is None and _was_out_of_time(code):
            answer, is_final = Answer("timeout", f"took longer than {first.seconds:g} s of CPU time"), True
        if is_final or first.deaths >= trials:
            died = Answer("error", f"the worker died {first.deaths} times ({how_it_ended(code)})")
            return [(first, answer or died)]
        waiting.appendleft(_again(first))
        return []

    def _dismiss(self, worker: WorkerProcess, waiting: deque[Request]) -> int:
        """Ends a worker and puts back what it has not begun; its exit code."""
        self._workers.remove(worker)
        waiting.extendleft(_again(request) for request in reversed(worker.pending))
        worker.pending.clear()
        return worker.kill()

    def _count_failed_start(self, code: int) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_STARTS:
            self._failed_starts = 0
            raise InputError(
                f"workers of {self.kind} cannot be started: {MAX_STARTS} in a row died ({how_it_ended(code)})"
            )


def _was_killed(code: int) -> bool:
    """Whether a signal from outside ended a worker: the system, short of memory, or a person."""
    return -code in {
        getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
    }


def _was_out_of_time(code: int) -> bool:
    """Whether the worker's own timer ended it."""
    return hasattr(signal, "SIGVTALRM") and code == -signal.SIGVTALRM


def _again(request: Request) -> Request:
    """The request with another identity, so that a late answer is none."""
    return Request(request.index, request.job, request.payload, request.seconds, request.deaths)


def default_workers() -> int:
    """The cores that this process may use, shared among the ranks of this machine; 1 to 16."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)
    affinity = getattr(os, "sched_getaffinity", None)  # neither on macOS nor on Windows
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min(MAX_WORKERS, cores // ranks))
