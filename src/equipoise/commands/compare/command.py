"""`equipoise compare`: carry a study out, then write what it found."""

import os
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from equipoise.commands.compare.figures import conditions_figure, differences_figure
from equipoise.commands.compare.results import EVALUATION, markdown, rows_of, write_rows
from equipoise.commands.compare.runs import carry_out
from equipoise.commands.compare.study import file_name, read_study
from equipoise.errors import InputError
from equipoise.files import write_at_once


def compare(study_file: Path, output: Path, *, seeds: list[int] | None, num_jobs: int | None, only_report: bool) -> int:
    """Run what is missing, write runs.csv, table.md and the figures, print the tables.

    Args:
        study_file: YAML.
        output: the study's folder; one that exists is continued.
        seeds: in place of the file's.
        num_jobs: runs side by side; None for one per core, or one where there is an accelerator.
        only_report: start nothing.

    Returns:
        The exit code: 0, or 1 when a run failed.

    Raises:
        InputError: a study, folder or number that cannot be used.
    """
    if num_jobs is not None and num_jobs < 1:
        raise InputError(f"--jobs must be >= 1, got {num_jobs}")
    study = read_study(study_file, seeds=seeds)
    if num_jobs is None:
        num_jobs = 1 if torch.accelerator.is_available() else os.cpu_count() or 1
    failures = {} if only_report else carry_out(study, output, num_jobs=num_jobs)
    rows = rows_of(study, output, failures)
    if not rows:
        raise InputError(f"{output} holds no finished run of {study_file}")
    write_rows(rows, output / "runs.csv")
    write_at_once(output / "table.md", markdown(study, rows))
    conditions_figure(study, rows, output / "conditions.png")
    for baseline in study.baselines:
        differences_figure(study, rows, output / f"differences-{file_name(baseline)}.png", baseline=baseline)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(Markdown(markdown(study, rows, EVALUATION)))
    missing = len(study.runs) - len(rows)
    console.print(
        f"{len(rows) - len(failures)} runs, {len(failures)} failed, {missing} not run yet. Everything: {output}"
    )
    return 1 if failures else 0
