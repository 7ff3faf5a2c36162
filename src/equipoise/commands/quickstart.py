"""`equipoise quickstart`: from nothing to a reinforced model, and a picture of what happened, on a laptop.

Warm start, then plain GRPO and equipoise from the same weights on the same stale data, side by side in two processes of
one thread each; evaluation of both; a table, a PNG and a report. What is finished is kept: an interrupted quick start
goes on.
"""

from dataclasses import dataclass, field
from pathlib import Path

from equipoise.commands.evaluation_table import print_compared
from equipoise.commands.side_by_side import Job, train_or_continue, work
from equipoise.diagnostics.figure import comparison_figure
from equipoise.diagnostics.report import write_report
from equipoise.diagnostics.run_folder import MODEL_FOLDER, is_run_folder
from equipoise.diagnostics.runs import read_run
from equipoise.errors import InputError, require
from equipoise.interrupts import advised
from equipoise.models.architectures import recipe_folder
from equipoise.models.warm_starts import warm_start_ladder
from equipoise.settings.reading import read_yaml
from equipoise.trl import run
from equipoise.trl.keys import read_config

RECIPES = {"GRPO": "ladder_stale_grpo.yaml", "equipoise": "ladder_stale_equipoise.yaml"}
PICTURE, REPORT = "comparison.png", "report.html"

# One thread each: two runs share two cores, and threads of one small model would only wait for each other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


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

    def __post_init__(self) -> None:
        require("--seed", self.seed, ">= 0 and < 2**32", 0 <= self.seed < 2**32)


def quickstart(options: QuickstartOptions) -> None:
    """Everything once, in the output folder: base/, GRPO/, equipoise/, comparison.png, report.html.

    Raises:
        InputError: a folder of another seed, or a run that failed (with its last line).
    """
    folder, seed = options.output, options.seed
    _check_seed(folder, seed)
    with advised("the same command goes on"):
        _make(folder, seed)


def _make(folder: Path, seed: int) -> None:
    base = folder / "base"
    if not base.exists():
        print("1/3  Warm start: supervised training of a small transformer on random walks")
        warm_start_ladder(base, seed=seed)
    print("2/3  Plain GRPO and equipoise from the same weights, 8 updates per rollout batch")
    _train_side_by_side(folder, base, seed)
    print("3/3  Results on held-out prompts")
    records = [read_run(folder / name) for name in RECIPES]
    start = {"warm start": records[0].evaluations[0]}
    print_compared(start | {record.name: record.evaluations[-1] for record in records})
    comparison_figure(records, folder / PICTURE, title=f"Number ladder, 8 updates per rollout batch, seed {seed}")
    write_report([folder / name for name in RECIPES], folder / REPORT, title="Quick start", force=True)
    print(f"\nPicture: {folder / PICTURE}")
    print(f"Report:  {folder / REPORT} (open it in a browser: curves, and every recorded token)")
    print(f"Runs:    {', '.join(str(folder / name) for name in RECIPES)}")


def _check_seed(folder: Path, seed: int) -> None:
    for name in RECIPES:
        if not is_run_folder(folder / name):
            continue
        made_with = run.run_settings(folder / name).get("seed")
        if made_with != seed:
            raise InputError(
                f"{folder} holds a quick start with seed {made_with}, got seed {seed}; choose another --output"
            )


def _train_side_by_side(folder: Path, base: Path, seed: int) -> None:
    """Both runs; one that is complete is left alone, one that was interrupted goes on."""
    jobs = [
        Job(name, folder / name, _train, (recipe_folder() / recipe, base, seed), _num_updates(recipe))
        for name, recipe in RECIPES.items()
        if not (folder / name / MODEL_FOLDER).is_dir()
    ]
    failures = work(jobs, len(RECIPES), ENVIRONMENT)
    for name, line in failures.items():
        raise InputError(f"the run {name} failed: {line}")


def _train(folder: Path, recipe: Path, base: Path, seed: int) -> None:
    values = read_config(recipe)
    train_or_continue(folder, values | {"model": str(base), "seed": seed, "disable_tqdm": True})


def _num_updates(recipe: str) -> int | None:
    return read_yaml(recipe_folder() / recipe).get("max_steps")
