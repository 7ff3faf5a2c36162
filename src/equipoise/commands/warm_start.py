"""`equipoise warm-start`: the small model of a small task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from equipoise.errors import require
from equipoise.models import warm_starts


@dataclass(frozen=True)
class WarmStartOptions:
    """Supervised training of a small model until it can do a task now and then, without network."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")] = field(
        metadata={"help": "Where the model folder is written."}
    )
    task: str = field(default="ladder", metadata={"help": "ladder, calculator, or one of short texts."})
    steps: int | None = field(default=None, metadata={"help": "Optimizer steps; unset: those of the task."})
    seed: int = field(default=0, metadata={"help": "Of weights and data."})

    def __post_init__(self) -> None:
        require("--steps", self.steps, ">= 1 and < 2**31", self.steps is None or 1 <= self.steps < 2**31)
        require("--seed", self.seed, ">= 0 and < 2**32", 0 <= self.seed < 2**32)


def warm_start(options: WarmStartOptions) -> Path:
    """Make the model folder; returns it.

    Raises:
        InputError: an unknown task, or a folder that cannot be used.
    """
    folder = warm_starts.warm_start(options.task, options.folder, seed=options.seed, steps=options.steps)
    print(f"Done: {folder}")
    return folder
