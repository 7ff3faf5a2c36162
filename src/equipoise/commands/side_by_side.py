"""Work in processes of their own, several side by side: the runs of a study and those of the quick start.

The processes are forked from one that has imported everything, so a run of half a minute does not spend a quarter of it
on imports. What a process prints goes to a log beside its folder.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from equipoise.diagnostics.run_folder import METRICS_FILE, latest_checkpoint
from equipoise.errors import InputError
from equipoise.progress import progress_bar

PRELOADED = ["equipoise.trl.run", "equipoise.models.warm_starts"]
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """Work for one process: `function(folder, *arguments)`.

    Attributes:
        name: on the bar, and of the failure.
        folder: what the work makes; the folders above it are made.
        function: of a module, not of another function.
        arguments: that can be pickled.
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _environment(environment):
        forkserver.ensure_running()  # the parent of all processes: they have its environment
    waiting, failures = list(reversed(jobs)), {}
    running: dict[str, tuple[Job, Any]] = {}
    with _Bars(len(jobs)) as bars:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    job = waiting.pop()
                    running[job.name] = job, _started(job, context)
                time.sleep(POLL_SECONDS)
                for name, (job, process) in list(running.items()):
                    bars.show(job)
                    if not process.is_alive():
                        del running[name]
                        if process.exitcode:
                            failures[name] = _last_line(job.log)
                        bars.finish(job, failures.get(name))
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()
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
        run.resume(folder, {})
        return
    shutil.rmtree(folder, ignore_errors=True)
    begin()
    run.train(values | {"output_dir": str(folder)})


def _started(job: Job, context: Any) -> Any:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(job,))
    process.start()
    return process


def _child(job: Job) -> None:
    with job.log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        job.function(job.folder, *job.arguments)
    except InputError as error:
        print(f"equipoise: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _last_line(log: Path) -> str:
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].removeprefix('equipoise: ')} (see {log})"
    return "it ended without a word"


def num_updates(run_folder: Path) -> int:
    """Updates that a run has logged so far."""
    with suppress(FileNotFoundError), (run_folder / METRICS_FILE).open("rb") as file:
        return sum(1 for _ in file)
    return 0
