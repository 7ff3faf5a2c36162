"""Carrying out a study: warm starts, then every run in a process of its own, several side by side.

What is finished is never run again; a run that was interrupted goes on from its newest checkpoint, or starts anew where
it has none.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from equipoise.commands.compare.study import Study, StudyRun
from equipoise.commands.side_by_side import Job, train_or_continue, work
from equipoise.diagnostics.run_folder import MODEL_FOLDER, checkpoint_folders, latest_checkpoint
from equipoise.errors import InputError
from equipoise.files import write_at_once
from equipoise.inputs.yaml_text import yaml_lines, yaml_mapping, yaml_value
from equipoise.redaction import redacted


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
    # One thread each, if nothing else is asked for: threads of small models on shared cores only wait for each other.
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if study.warm_start:
        bases = {run.base(output): run for run in study.runs}
        bases_to_make = [_warm_start_job(run, base) for base, run in bases.items() if not base.exists()]
        failed = work(bases_to_make, num_jobs, environment)
        if failed:
            raise InputError(f"{next(iter(failed))} failed: {next(iter(failed.values()))}")
    unfinished = [run for run in study.runs if not is_finished(run, output)]
    for run in unfinished:
        _check_interrupted(run, output)
    jobs = {_label(run): run for run in unfinished}
    runs_to_make = [Job(name, run.folder(output), _train, _arguments(run, study, output)) for name, run in jobs.items()]
    failures = work(runs_to_make, num_jobs, environment)
    return {jobs[name]: line for name, line in failures.items()}


def is_finished(run: StudyRun, output: Path) -> bool:
    """Whether the run is complete.

    Raises:
        InputError: it is there with other settings.
    """
    folder = run.folder(output)
    if not (folder / MODEL_FOLDER).is_dir():
        return False
    _check_settings(run, folder, "is finished")
    return True


def _check_interrupted(run: StudyRun, output: Path) -> None:
    """A run that was interrupted goes on with its own settings, so they must be the study's."""
    folder = run.folder(output)
    if latest_checkpoint(folder) is not None:
        _check_settings(run, folder, "was begun")


def _check_settings(run: StudyRun, folder: Path, state: str) -> None:
    path, wanted = _settings_file(folder), _settings(run)
    made_with = yaml_mapping(path, "") if path.exists() else {}
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
    """All that makes the run what it is, without secrets, as it comes back from YAML."""
    return yaml_value(yaml_lines(redacted(run.keys) | {"warm_start_steps": run.warm_start_steps}))


def _warm_start_job(run: StudyRun, base: Path) -> Job:
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
    from equipoise.models.warm_starts import warm_start

    warm_start(task, folder, seed=seed, steps=steps, progress=False)


def _train(folder: Path, values: dict[str, Any], settings: dict[str, Any]) -> None:
    text = yaml_lines(settings)
    train_or_continue(folder, values, begin=lambda: write_at_once(_settings_file(folder), text))
    for checkpoint in checkpoint_folders(folder):  # a finished run needs none, and a study has hundreds of runs
        shutil.rmtree(checkpoint)
