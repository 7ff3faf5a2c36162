"""Warm starts: small models of small tasks, supervised for a while, where reinforcement starts without a network.

`warm_start` makes the one of a task by the task's name. ladder.py and calculator.py have generators of their own, and
the toy tokenizers that go with them; text.py learns any task of short texts; supervised.py is what they share.
"""

from pathlib import Path
from typing import Any

from equipoise.models.warm_starts.calculator import calculator_tokenizer, warm_start_calculator
from equipoise.models.warm_starts.ladder import ladder_tokenizer, warm_start_ladder
from equipoise.models.warm_starts.text import warm_start_text
from equipoise.tasks import check_task_name, named_task

__all__ = [
    "calculator_tokenizer",
    "ladder_tokenizer",
    "warm_start",
    "warm_start_calculator",
    "warm_start_ladder",
    "warm_start_text",
]


def warm_start(task: str, folder: Path, *, seed: int = 0, steps: int | None = None, progress: bool = True) -> Path:
    """The folder of a small model that can nearly do a task: made on a CPU in seconds to minutes, without network.

    Args:
        task: ladder and calculator have generators of their own; any other is learnt from its training data, as
            characters.
        folder: to create; it may exist if it is empty.
        seed: of weights and data.
        steps: optimiser steps; None for the task's own number.
        progress: show a progress bar on stderr.

    Raises:
        InputError: an unknown task, or as the warm start of that kind.
    """
    check_task_name(task)
    own: dict[str, Any] = {"seed": seed, "progress": progress} | ({} if steps is None else {"steps": steps})
    if task == "ladder":
        return warm_start_ladder(folder, **own)
    if task == "calculator":
        return warm_start_calculator(folder, **own)
    return warm_start_text(named_task(task), folder, **own)
