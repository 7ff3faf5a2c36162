"""Work in processes of their own, several side by side: the runs of a study and those of the quick start.

The processes are forked from one that has imported everything (`job_server`), so a run of half a minute does not spend
a quarter of it on imports. What a process prints goes to a log beside its folder.
"""

import atexit
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise import plain_data
from equipoise.diagnostics.run_folder import METRICS_FILE, latest_checkpoint
from equipoise.progress import progress_bar

PRELOADED = ["equipoise.trl.run", "equipoise.models.warm_starts"]
POLL_SECONDS = 0.2
_SERVER = Path(__file__).with_name("job_server.py")


@dataclass(frozen=True)
class Job:
    """Work for one process: `function(folder, *arguments)`.

    Attributes:
        name: on the bar, and of the failure.
        folder: what the work makes; the folders above it are made.
        function: of a module, not of another function.
        arguments: plain data (`equipoise.plain_data`).
        num_updates: of the run in `folder`, where it is known.
    """

    name: str
    folder: Path
    function: Callable[..., None]
    arguments: tuple = ()
    num_updates: int | None = None

    @property
    def log(self) -> Path:
        """What the process prints, beside its folder."""
        return self.folder.with_name(self.folder.name + ".log")


def work(jobs: list[Job], num_jobs: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Do all jobs, `num_jobs` at a time.

    Args:
        jobs: with different names.
        num_jobs: processes side by side.
        environment: variables of the processes, as far as their parent is not running yet; not of this one.

    Returns:
        Name -> last line of the jobs that failed.
    """
    if not jobs:
        return {}
    server = _server(environment)
    waiting, failures = list(reversed(jobs)), {}
    running: dict[str, Job] = {}
    with _Bars(len(jobs)) as bars:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    job = waiting.pop()
                    running[job.name] = job
                    server.start(job)
                time.sleep(POLL_SECONDS)
                ended = server.ended(list(running))
                for name, job in list(running.items()):
                    bars.show(job)
                    if name in ended:
                        del running[name]
                        if ended[name]:
                            failures[name] = _last_line(job.log, ended[name])
                        bars.finish(job, failures.get(name))
        finally:
            if running:
                server.close()
    return failures


def train_or_continue(folder: Path, values: dict[str, Any], begin: Callable[[], object] = lambda: None) -> None:
    """A run in `folder`: from its newest checkpoint, or from the beginning where it has none. In a process of its own.

    Args:
        folder: of the run.
        values: checked keys.
        begin: called before a run begins, in place of what may be left of another.
    """
    from equipoise.trl import run

    if latest_checkpoint(folder) is not None:
        run.resume(folder, {}, given=values)
        return
    shutil.rmtree(folder, ignore_errors=True)
    begin()
    run.train(values | {"output_dir": str(folder)})


class _Server:
    """The parent of all processes with one environment, and what it tells of them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_SERVER), plain_data.written(sys.path), *PRELOADED],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | environment,
        )  # fmt: skip
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(self.close)

    def start(self, job: Job) -> None:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "name": job.name, "folder": job.folder, "arguments": job.arguments, "log": str(job.log),
            "function": f"{job.function.__module__}:{job.function.__qualname__}", "path": sys.path, "cwd": os.getcwd(),
        }  # fmt: skip
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which `ended` tells
            self.process.stdin.write(plain_data.written(request).encode() + b"\n")
            self.process.stdin.flush()

    def ended(self, names: list[str]) -> dict[str, int]:
        """The exit codes of those that have ended since; of all of them, where this server has."""
        codes = dict.fromkeys(names, 1) if not self._reader.is_alive() else {}
        with suppress(queue.Empty):
            while True:
                answer = self._answers.get_nowait()
                codes[answer["name"]] = answer["code"]
        return codes

    def close(self) -> None:
        """End it, and with it every process that still runs."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers:
            for line in answers:
                self._answers.put(plain_data.read(line))


_servers: dict[tuple, _Server] = {}


def _server(environment: Mapping[str, str]) -> _Server:
    """The server with these variables; started once, and anew where it has ended."""
    key = tuple(sorted(environment.items()))
    if key not in _servers or _servers[key].process.poll() is not None:
        _servers[key] = _Server(environment)
    return _servers[key]


class _Bars:
    """A bar over all jobs and one for each that runs; without a terminal, a line for each that has ended."""

    def __init__(self, num_jobs: int):
        self.num_jobs, self.num_done = num_jobs, 0
        self.all = progress_bar("all", num_jobs, "run")
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_) -> None:
        for bar in (*self.bars.values(), self.all):
            bar.close()

    def show(self, job: Job) -> None:
        if job.name not in self.bars:
            self.bars[job.name] = progress_bar(job.name, job.num_updates, "update")
        bar = self.bars[job.name]
        bar.update(num_updates(job.folder) - bar.n)

    def finish(self, job: Job, failure: str | None) -> None:
        self.num_done += 1
        self.bars.pop(job.name).close()
        self.all.update()
        if failure or self.all.disable:
            line = f"{self.num_done}/{self.num_jobs} {job.name}" + (f" FAILED: {failure}" if failure else "")
            self.all.write(line, file=sys.stdout)
            sys.stdout.flush()


def _last_line(log: Path, code: int) -> str:
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].removeprefix('equipoise: ')} (see {log})"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"it ended without a word ({how})"


def num_updates(run_folder: Path) -> int:
    """Updates that a run has logged so far."""
    with suppress(FileNotFoundError), (run_folder / METRICS_FILE).open("rb") as file:
        return sum(1 for _ in file)
    return 0
