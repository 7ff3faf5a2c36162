"""Processes that run inputs one after the other, and are ended and replaced when one hangs or dies."""

import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz.kinds import KINDS
from fuzz.verdict import Ended, problems, running, snapshot

SECONDS = 20.0
"""Of one input."""

MEMORY = 4 << 30
"""Bytes of addresses that a worker may take beside what it begins with."""

MOMENT = 1.0
"""Seconds in which what a command leaves running may still end."""

WORDS_FILE = "words.json"
"""In the folder of a worker: kind, number and words of its input."""

INPUTS = 200
"""After so many a worker is replaced, so that what one leaves behind does not grow."""


class Begun(BaseException):
    """Raised in the place of the work: every check is passed."""


WORK = (
    "equipoise.trl.trainer.EquipoiseTrainer.train", "equipoise.commands.quickstart.warm_start_ladder",
    "equipoise.commands.quickstart._train_side_by_side", "equipoise.models.warm_starts.warm_start_ladder",
    "equipoise.models.warm_starts.warm_start_calculator", "equipoise.models.warm_starts.warm_start_text",
    "equipoise.commands.compare.runs.work",
    "equipoise.commands.compare.command.conditions_figure", "equipoise.models.sampling.Sampler.completions",
    "socketserver.BaseServer.serve_forever",
)  # fmt: skip
"""Where the work of a command begins, which takes seconds to days."""


@dataclass(frozen=True)
class Result:
    """What came of one input.

    Attributes:
        kind: of the input.
        number: of the input, among those of its kind.
        words: of its command line.
        problems: what does not hold.
        seconds: of the processor; of one that was ended, of the clock.
        begun: it passed every check.
        code: the exit code; None where there was none.
        told: what was printed, and the traceback.
    """

    kind: str
    number: int
    words: list[str]
    problems: list[str]
    seconds: float
    begun: bool = False
    code: int | None = None
    told: str = ""


def run_input(kind: str, seed: int, number: int, materials: Path, box: Path) -> Result:
    """Make an input in an empty folder, run it in this process and judge it.

    Args:
        kind: of `KINDS`.
        seed: of all inputs.
        number: of this one.
        materials: that `materials.make` made.
        box: where everything of this input lies: work/ is the working directory, home/ and tmp/ are beside it.
    """
    shutil.rmtree(box, ignore_errors=True)
    for name in ("work", "home", "tmp"):
        (box / name).mkdir(parents=True)
    rng = random.Random(f"{seed}/{kind}/{number}")
    words = KINDS[kind].make(rng, materials, box / "work")
    (box / WORDS_FILE).write_text(json.dumps([kind, number, words]))
    ended = Ended(words, before=snapshot(box), works=KINDS[kind].works)
    begin = time.process_time()
    with ExitStack() as stack:
        _surroundings(stack, box, works=KINDS[kind].works)
        before = running()
        _call(ended)
        ended.running = _still_running(before)
    seconds = time.process_time() - begin
    ended.after = snapshot(box)
    told = "\n".join([ended.output[-4000:], ended.error[-4000:], ended.traceback])
    return Result(kind, number, words, problems(ended), seconds, ended.begun, ended.code, told)


def _still_running(before: set[str]) -> list[str]:
    """What was not running before, and does not end by itself at once: threads that load a model are not waited for."""
    end = time.monotonic() + MOMENT
    while (left := running() - before) and time.monotonic() < end:
        time.sleep(0.02)
    return sorted(left)


def _surroundings(stack: ExitStack, box: Path, *, works: bool) -> None:
    """Everything of the process as a user's shell gives it, in the box."""
    stack.enter_context(contextlib.chdir(box / "work"))
    stack.enter_context(
        mock.patch.dict(os.environ, {"HOME": str(box / "home"), "TMPDIR": str(box / "tmp"), "COLUMNS": "120"})
    )
    stack.enter_context(mock.patch.object(tempfile, "tempdir", str(box / "tmp")))
    stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
    stack.enter_context(warnings.catch_warnings())
    stack.callback(logging.getLogger("equipoise").setLevel, logging.getLogger("equipoise").level)
    for place in () if works else WORK:
        stack.enter_context(mock.patch(place, _begun))


def _begun(*arguments: Any, **named: Any) -> None:
    raise Begun


def _call(ended: Ended) -> None:
    from equipoise.cli import main

    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    streams = [
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace")
    ]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            ended.code = main(list(ended.words))
        except Begun:
            ended.begun = True
        except BaseException as error:
            ended.raised, ended.traceback = _place(error), traceback.format_exc(limit=-25)
    ended.output, ended.error = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)


def _place(error: BaseException) -> str:
    """The kind of the exception, and where in equipoise it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/src/equipoise/" in f.filename] or frames
    last = own[-1]
    return f"{type(error).__name__} at {last.filename.rpartition('/equipoise/')[2]}:{last.lineno} in {last.name}"


def _serve(connection: Connection, seed: int, materials: Path, box: Path) -> None:
    """A worker: inputs by kind and number, until there are no more."""
    os.setsid()
    taken = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while (asked := connection.recv()) is not None:
        try:
            connection.send(run_input(*asked[:1], seed, asked[1], materials, box))
        except Exception as error:  # of the mutators themselves
            connection.send(
                Result(*asked, [], [f"could not be made: {_place(error)}"], 0.0, told=traceback.format_exc())
            )


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


class Worker:
    """One process; a new one takes its place when it hangs, dies or has done its share."""

    def __init__(self, seed: int, materials: Path, box: Path):
        self.seed, self.materials, self.box = seed, materials, box
        self.asked: tuple[str, int] | None = None
        self._start()

    def _start(self) -> None:
        context = get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(
            target=_serve, args=(theirs, self.seed, self.materials, self.box), daemon=False
        )
        self.process.start()
        theirs.close()
        self.done = 0

    def ask(self, kind: str, number: int) -> None:
        if self.done >= INPUTS:
            self.stop()
            self._start()
        self.asked, self.since = (kind, number), time.monotonic()
        self.connection.send(self.asked)

    def answer(self) -> Result | None:
        """What came of the input; None while it runs."""
        assert self.asked is not None
        if self.connection.poll():
            try:
                result = self.connection.recv()
            except EOFError:
                return self._replaced("killed the process")
            self.asked = None
            self.done += 1
            return result
        if time.monotonic() - self.since > SECONDS:
            return self._replaced(f"not ended after {SECONDS:g} s{_where(self.process.pid)}")
        return None

    def _replaced(self, problem: str) -> Result:
        assert self.asked is not None
        path = self.box / WORDS_FILE
        words = json.loads(path.read_text())[-1] if path.exists() else []
        result = Result(*self.asked, words, [problem], time.monotonic() - self.since)
        self.asked = None
        self.stop()
        self._start()
        return result

    def stop(self) -> None:
        """End the process and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may have had no time to make a group of its own
        self.process.join()
        self.connection.close()


def _where(pid: int) -> str:
    """What a process waits in, as far as the kernel tells."""
    with contextlib.suppress(OSError):
        return f" ({Path(f'/proc/{pid}/wchan').read_text() or 'computing'})"
    return ""


def results(inputs: Iterable[tuple[str, int]], seed: int, materials: Path, folder: Path, jobs: int) -> Iterator[Result]:
    """Run inputs in worker processes.

    Args:
        inputs: (kind, number).
        seed: of all of them.
        materials: that `materials.make` made.
        folder: where each worker gets one of its own.
        jobs: workers side by side.

    Yields:
        What came of each, as it comes.
    """
    waiting = iter(inputs)
    workers = [Worker(seed, materials, folder / f"worker-{number}") for number in range(jobs)]
    try:
        idle, busy = list(workers), []
        while True:
            while idle and (asked := next(waiting, None)) is not None:
                idle[-1].ask(*asked)
                busy.append(idle.pop())
            if not busy:
                return
            wait([worker.connection for worker in busy], timeout=1)
            for worker in list(busy):
                if (result := worker.answer()) is not None:
                    yield result  # the input lies in the worker's folder until it is asked again
                    busy.remove(worker)
                    idle.append(worker)
    finally:
        for worker in workers:
            worker.stop()
