"""The kind "reasoning_gym": scorers of data sets of that package, which evaluate answers in their own ways."""

import contextlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def warm() -> None:
    """Imports the package and what its scorers load at their first formula."""
    import reasoning_gym  # noqa: F401
    import sympy

    sympy.simplify(sympy.parse_expr("x**2/2 + sin(x)", evaluate=False).diff("x"))


def modules_with_eval() -> list[ModuleType]:
    """All modules of the package: some evaluate an answer that looks like a list."""
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "reasoning_gym" and module]


def prepared(arguments: tuple[str, Any, tuple[str, dict] | None]) -> Callable[[tuple[str, dict]], float]:
    """The scorer of a data set.

    Args:
        arguments: the registered name, the configuration, and an answer with its entry to warm the scorer with.

    Returns:
        A function of (answer, entry) to the score.
    """
    from reasoning_gym.factory import DATASETS

    name, config, example = arguments
    scorer = DATASETS[name][0](config)

    def score(payload: tuple[str, dict]) -> float:
        answer, entry = payload
        return float(scorer.score_answer(answer, entry))

    if example is not None:
        with contextlib.suppress(Exception):  # it will fail again, and be counted then
            score(example)
    return score
