"""`equipoise compare`: carry a study out, then write what it found."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from rich.markdown import Markdown
from tyro.conf import Positional, arg

from equipoise.commands.compare.figures import conditions_figure, differences_figure
from equipoise.commands.compare.results import evaluation_measures, markdown, rows_of, write_rows
from equipoise.commands.compare.runs import carry_out
from equipoise.commands.compare.study import file_name, read_study
from equipoise.errors import InputError, require
from equipoise.files import write_at_once
from equipoise.interrupts import advised


@dataclass(frozen=True)
class CompareOptions:
    """Run every method of a study under every condition from the same seeds, several side by side, and compare them.
    Interrupt it at any time: the same command goes on, and a finished run is never run again.

    Writes in the output folder: runs.csv (a row per run), table.md (means, paired differences with 95% intervals),
    differences-*.png, conditions.png, and every run folder under runs/. Exit code 1 when a run failed.
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY.yaml")] = field(
        metadata={"help": "What to compare; see recipes/studies."}
    )
    output: Path | None = field(
        default=None,
        metadata={"help": "The study's folder, which is continued; unset: runs/ and the name of the file."},
    )
    seeds: Annotated[tuple[int, ...] | None, arg(metavar="INT …")] = field(
        default=None, metadata={"help": "In place of the file's."}
    )
    jobs: int | None = field(
        default=None, metadata={"help": "Runs side by side; unset: one per core, or 1 with an accelerator."}
    )
    report: bool = field(default=False, metadata={"help": "Start no run: tables and figures of the finished ones."})

    def __post_init__(self) -> None:
        require("--jobs", self.jobs, ">= 1 and <= 1024", self.jobs is None or 1 <= self.jobs <= 1024)
        for seed in self.seeds or ():
            require("--seeds", seed, ">= 0 and < 2**32", 0 <= seed < 2**32)


def compare(options: CompareOptions) -> int:
    """Run what is missing, write runs.csv, table.md and the figures, print the tables.

    Returns:
        The exit code: 0, or 1 when a run failed.

    Raises:
        InputError: a study, folder or number that cannot be used.
    """
    output = options.output or Path("runs") / options.study.stem
    study = read_study(options.study, seeds=None if options.seeds is None else list(options.seeds))
    num_jobs = options.jobs or (1 if torch.accelerator.is_available() else os.cpu_count() or 1)
    with advised("the same command goes on with the runs that are not finished"):
        failures = {} if options.report else carry_out(study, output, num_jobs=num_jobs)
    rows = rows_of(study, output, failures)
    if not rows:
        raise InputError(f"{output} holds no finished run of {options.study}")
    write_rows(study, rows, output / "runs.csv")
    write_at_once(output / "table.md", markdown(study, rows))
    conditions_figure(study, rows, output / "conditions.png")
    for baseline in study.baselines:
        differences_figure(study, rows, output / f"differences-{file_name(baseline)}.png", baseline=baseline)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(Markdown(markdown(study, rows, evaluation_measures(study))))
    missing = len(study.runs) - len(rows)
    console.print(
        f"{len(rows) - len(failures)} runs, {len(failures)} failed, {missing} not run yet. Everything: {output}"
    )
    return 1 if failures else 0
