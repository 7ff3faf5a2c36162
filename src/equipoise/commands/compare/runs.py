"""Carrying out a study: warm starts, then every run in a process of its own, several side by side.

What is finished is never run again; a run that was interrupted goes on from its newest checkpoint, or starts anew where
it has none. The processes are forked from one that has imported everything, so a run of half a minute does not spend a
quarter of it on imports.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from equipoise.commands.compare.study import Study, StudyRun
from equipoise.diagnostics.runs import METRICS_FILE
from equipoise.errors import InputError
from equipoise.files import write_at_once
from equipoise.trl import checkpoints

LOG_SUFFIX = ".log"


def carry_out(study: Study, output: Path, *, num_jobs: int) -> dict[StudyRun, str]:
    """Run what is not finished yet.

    Args:
        study: what to run.
        output: the study's folder; made where it does not exist.
        num_jobs: runs side by side.

    Returns:
        The last line of every run that failed; the others go on.

    Raises:
        InputError: a folder that cannot be written, or a finished run with other settings than the study's.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made: {error.strerror}") from error
    # One thread each: threads of small models on shared cores only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if study.warm_start:
        bases = {run.base(output): run for run in study.runs}
        work = [_warm_start_job(run, base) for base, run in bases.items() if not base.exists()]
        failed = _work(work, num_jobs)
        if failed:
            raise InputError(f"{next(iter(failed))} failed: {next(iter(failed.values()))}")
    unfinished = [run for run in study.runs if not is_finished(run, output)]
    for run in unfinished:
        _check_interrupted(run, output)
    jobs = {_label(run): run for run in unfinished}
    work = [Job(name, run.folder(output), _train, _arguments(run, study, output)) for name, run in jobs.items()]
    failures = _work(work, num_jobs)
    return {jobs[name]: line for name, line in failures.items()}


def is_finished(run: StudyRun, output: Path) -> bool:
    """Whether the run is complete.

    Raises:
        InputError: it is there with other settings.
    """
    folder = run.folder(output)
    if not (folder / "model").is_dir():
        return False
    _check_settings(run, folder, "is finished")
    return True


def _check_interrupted(run: StudyRun, output: Path) -> None:
    """A run that was interrupted goes on with its own settings, so they must be the study's."""
    folder = run.folder(output)
    if checkpoints.latest_checkpoint(folder) is not None:
        _check_settings(run, folder, "was begun")


def _check_settings(run: StudyRun, folder: Path, state: str) -> None:
    path, wanted = _settings_file(folder), _settings(run)
    made_with: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {}
    different = sorted(k for k in {*made_with, *wanted} if made_with.get(k) != wanted.get(k))
    if different:
        raise InputError(
            f"{folder} {state}, but with other settings than the study's ({', '.join(different)}); remove it, or "
            f"choose another --output"
        )


def _settings_file(folder: Path) -> Path:
    """Beside the run folder, written before the run begins."""
    return folder.with_name(folder.name + ".yaml")


def _settings(run: StudyRun) -> dict[str, Any]:
    """All that makes the run what it is, as it comes back from YAML."""
    return yaml.safe_load(yaml.safe_dump(run.keys | {"warm_start_steps": run.warm_start_steps}))


def _warm_start_job(run: StudyRun, base: Path) -> "Job":
    task = run.keys["task"]
    return Job(f"warm start, {task}, seed {run.seed}", base, _warm_start, (task, run.seed, run.warm_start_steps))


def _label(run: StudyRun) -> str:
    return ", ".join(filter(None, (run.condition, run.method, f"seed {run.seed}")))


def _arguments(run: StudyRun, study: Study, output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    values = run.keys | {"seed": run.seed, "disable_tqdm": True}
    if study.warm_start:
        values["model"] = str(run.base(output))
    return values, _settings(run)


# ---- in the process of a run ----------------------------------------------------------------------------------------


def _warm_start(folder: Path, task: str, seed: int, steps: int | None) -> None:
    from equipoise.models.warm_starts.by_task import warm_start

    warm_start(task, folder, seed=seed, steps=steps, progress=False)


def _train(folder: Path, values: dict[str, Any], settings: dict[str, Any]) -> None:
    from equipoise.trl import run

    if checkpoints.latest_checkpoint(folder) is not None:
        run.resume(folder, {})
    else:
        shutil.rmtree(folder, ignore_errors=True)
        write_at_once(_settings_file(folder), yaml.safe_dump(settings, sort_keys=False))
        run.train(values | {"output_dir": str(folder)})
    for checkpoint in folder.glob("checkpoint-*"):  # a finished run needs none, and a study has hundreds of runs
        shutil.rmtree(checkpoint)


def _child(job: "Job") -> None:
    with job.log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        job.function(job.folder, *job.arguments)
    except InputError as error:
        print(f"equipoise: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)


# ---- beside the processes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Work for one process: `function(folder, *arguments)`."""

    name: str
    folder: Path
    function: Callable[..., None]
    arguments: tuple

    @property
    def log(self) -> Path:
        """What the process prints, beside its folder."""
        return self.folder.with_name(self.folder.name + LOG_SUFFIX)


def _work(jobs: list[Job], num_jobs: int) -> dict[str, str]:
    """Do all jobs, `num_jobs` at a time; returns the last line of those that failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["equipoise.trl.run", "equipoise.models.warm_starts.by_task"])
    waiting, failures = list(reversed(jobs)), {}
    running: dict[str, tuple[Job, Any]] = {}
    with _Bars(len(jobs)) as bars:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    job = waiting.pop()
                    job.folder.parent.mkdir(parents=True, exist_ok=True)
                    process = context.Process(target=_child, args=(job,))
                    process.start()
                    running[job.name] = job, process
                time.sleep(0.2)
                for name, (job, process) in list(running.items()):
                    bars.show(name, _num_updates(job.folder))
                    if not process.is_alive():
                        del running[name]
                        if process.exitcode:
                            failures[name] = _last_line(job.log)
                        bars.finish(name, failures.get(name))
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()
    return failures


class _Bars:
    """A bar over all jobs and a line for each that runs; without a terminal, a line for each that has ended."""

    def __init__(self, num_jobs: int):
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = Console()
        self.terminal, self.num_jobs, self.num_done = console.is_terminal, num_jobs, 0
        self.progress = Progress(*columns, console=console, disable=not self.terminal)
        self.total = self.progress.add_task("all", total=num_jobs)
        self.lines: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def show(self, name: str, num_updates: int) -> None:
        if name not in self.lines:
            self.lines[name] = self.progress.add_task(name, total=None)
        self.progress.update(self.lines[name], completed=num_updates)

    def finish(self, name: str, failure: str | None) -> None:
        self.num_done += 1
        self.progress.remove_task(self.lines.pop(name))
        self.progress.advance(self.total)
        if failure or not self.terminal:
            self.progress.print(
                f"{self.num_done}/{self.num_jobs} {name}" + (f" FAILED: {failure}" if failure else ""), soft_wrap=True
            )
            if not self.terminal:
                sys.stdout.flush()


def _last_line(log: Path) -> str:
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].removeprefix('equipoise: ')} (see {log})"
    return "it ended without a word"


def _num_updates(run_folder: Path) -> int:
    with suppress(FileNotFoundError), (run_folder / METRICS_FILE).open("rb") as file:
        return sum(1 for _ in file)
    return 0
