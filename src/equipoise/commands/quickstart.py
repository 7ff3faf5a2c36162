"""`equipoise quickstart`: from nothing to a reinforced model, and a picture of what happened, on a laptop.

Warm start, then plain GRPO and equipoise from the same weights on the same stale data, side by side in two processes of
one thread each; evaluation of both; a table, a PNG and a report. What is finished is kept: an interrupted quick start
goes on.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equipoise.commands.evaluate import print_table
from equipoise.diagnostics.figure import comparison_figure
from equipoise.diagnostics.report import write_report
from equipoise.diagnostics.runs import METRICS_FILE, read_run
from equipoise.errors import InputError
from equipoise.models.architectures import recipe_folder
from equipoise.models.warm_starts.supervised import warm_start_ladder
from equipoise.settings.reading import read_yaml
from equipoise.trl import checkpoints, run

RECIPES = {"GRPO": "ladder_stale_grpo.yaml", "equipoise": "ladder_stale_equipoise.yaml"}
PICTURE, REPORT = "comparison.png", "report.html"


@dataclass(frozen=True)
class QuickstartOptions:
    """From nothing to a reinforced model, and a picture of what happened, on a laptop, in minutes. Interrupt it at any
    time: the same command goes on.
    """

    output: Path = field(
        default=Path("runs/quickstart"),
        metadata={"help": "New folder, or one of a quick start with the same seed, which is continued."},
    )
    seed: int = field(default=0, metadata={"help": "Of the warm start and of both runs."})


def quickstart(options: QuickstartOptions) -> None:
    """Everything once, in the output folder: base/, GRPO/, equipoise/, comparison.png, report.html.

    Raises:
        InputError: a folder of another seed, or a run that failed (with its last line).
    """
    folder, seed = options.output, options.seed
    _check_seed(folder, seed)
    base = folder / "base"
    if not base.exists():
        print("1/3  Warm start: supervised training of a small transformer on random walks")
        warm_start_ladder(base, seed=seed)
    print("2/3  Plain GRPO and equipoise from the same weights, 8 updates per rollout batch")
    _train_side_by_side(folder, base, seed)
    print("3/3  Results on held-out prompts")
    records = [read_run(folder / name) for name in RECIPES]
    start = {"warm start": records[0].evaluations[0]}
    print_table(start | {record.name: record.evaluations[-1] for record in records})
    comparison_figure(records, folder / PICTURE, title=f"Number ladder, 8 updates per rollout batch, seed {seed}")
    write_report([folder / name for name in RECIPES], folder / REPORT, title="Quick start", force=True)
    print(f"\nPicture: {folder / PICTURE}")
    print(f"Report:  {folder / REPORT} (open it in a browser: curves, and every recorded token)")
    print(f"Runs:    {', '.join(str(folder / name) for name in RECIPES)}")


def _check_seed(folder: Path, seed: int) -> None:
    for name in RECIPES:
        if not (folder / name / run.CONFIG_FILE).exists():
            continue
        made_with = run.run_settings(folder / name).get("seed")
        if made_with != seed:
            raise InputError(
                f"{folder} holds a quick start with seed {made_with}, got seed {seed}; choose another --output"
            )


def _train_side_by_side(folder: Path, base: Path, seed: int) -> None:
    processes = {name: _start(folder, name, recipe, base, seed) for name, recipe in RECIPES.items()}
    try:
        _show_progress(folder, {name: process for name, process in processes.items() if process is not None})
    finally:
        for process in processes.values():
            if process is not None:
                if process.poll() is None:
                    process.terminate()
                process.wait()
    for name, process in processes.items():
        if process is not None and process.returncode != 0:
            lines = (folder / f"{name}.log").read_text().strip().splitlines() or ["no output"]
            raise InputError(f"the run {name} failed: {lines[-1]} (see {folder / name}.log)")


def _start(folder: Path, name: str, recipe: str, base: Path, seed: int) -> subprocess.Popen | None:
    """Start or continue a run in a process of its own; None when it is complete."""
    run_folder = folder / name
    if (run_folder / run.MODEL_FOLDER).is_dir():
        return None
    if checkpoints.latest_checkpoint(run_folder) is not None:
        arguments = ["--resume", str(run_folder)]
    else:
        shutil.rmtree(run_folder, ignore_errors=True)
        arguments = ["--config", str(recipe_folder() / recipe), "--model", str(base)]
        arguments += ["--output_dir", str(run_folder), "--seed", str(seed), "--disable_tqdm", "true"]
    # One thread each: two runs share two cores, and threads of one small model would only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with (folder / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "equipoise", "train", *arguments]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _show_progress(folder: Path, processes: dict[str, subprocess.Popen]) -> None:
    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        totals = {name: read_yaml(recipe_folder() / RECIPES[name])["max_steps"] for name in processes}
        bars = {name: progress.add_task(name, total=totals[name]) for name in processes}
        while True:
            running = [name for name, process in processes.items() if process.poll() is None]
            for name, bar in bars.items():
                progress.update(bar, completed=_num_updates(folder / name))
            if not running:
                return
            time.sleep(0.5)


def _num_updates(run_folder: Path) -> int:
    with suppress(FileNotFoundError), (run_folder / METRICS_FILE).open("rb") as file:
        return sum(1 for _ in file)
    return 0
