"""The kind "math" of workers: answers that a model wrote, judged in a process with limits (`workers.worker`).

It imports nothing of equipoise that loads torch, so that it starts in a second and has little memory of its own.
"""

from collections.abc import Callable
from types import ModuleType

from equipoise.tasks import mathematics


def warm() -> None:
    """The first answer imports and builds what all need, and takes as long; sums and products load numerics."""
    import scipy.special  # noqa: F401

    mathematics.warm()


def modules_with_eval() -> list[ModuleType]:
    """None: expressions are evaluated through sympy alone, whose parser is closed."""
    return []


def prepared(arguments: None) -> Callable[[tuple[str, list[str]]], tuple[str, str]]:
    """The function of (text, golds) to (outcome, reason); there is nothing to prepare."""
    return judged


def judged(payload: tuple[str, list[str]]) -> tuple[str, str]:
    """The outcome of a text against the expected answers, any of which is right, and the reason where there is one."""
    return mathematics.verdict(*payload)
