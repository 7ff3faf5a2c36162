"""The kind "reasoning_gym": scorers of data sets of that package, which evaluate answers in their own ways."""

import contextlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

FULL = 0.99
"""A score that says that an answer is right."""
NONSENSE = "no answer to this question is spelt like that"
_NO_VALUE = re.compile(r"(?<![^\W\d_])(?:nan|inf|infinity)j?(?![^\W\d_])", re.IGNORECASE)


def warm() -> None:
    """Imports the package and what its scorers load at their first formula."""
    import reasoning_gym  # noqa: F401
    import sympy

    sympy.simplify(sympy.parse_expr("x**2/2 + sin(x)", evaluate=False).diff("x"))


def modules_with_eval() -> list[ModuleType]:
    """All modules of the package: some evaluate an answer that looks like a list."""
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "reasoning_gym" and module]


def prepared(arguments: tuple[str, dict[str, Any], tuple[str, dict] | None]) -> Callable[[tuple[str, dict]], float]:
    """The scorer of a data set.

    Args:
        arguments: the registered name, the keywords of its configuration, and an answer with its entry to warm the
            scorer with.

    Returns:
        A function of (answer, entry) to the score.
    """
    from reasoning_gym.factory import DATASETS

    name, keywords, example = arguments
    dataset_class, config_class = DATASETS[name]
    config = config_class(**keywords)
    if hasattr(config, "validate"):  # as where the examples were made: it may complete the configuration
        config.validate()
    scorer = dataset_class(config)

    def score(payload: tuple[str, dict]) -> float:
        answer, entry = payload
        if _has_no_value(answer, str(entry["answer"])):
            return 0.0
        value = float(scorer.score_answer(answer, entry))
        if value >= FULL and not _is_expected(answer, entry) and _accepts(scorer, NONSENSE, entry):
            return 0.0
        return value

    if example is not None:
        with contextlib.suppress(Exception):  # it will fail again, and be counted then
            score(example)
    return score


def _has_no_value(answer: str, expected: str) -> bool:
    """Whether it names NaN or infinity, and the expected answer does not: min(1, NaN) is 1 in Python."""
    return bool(_NO_VALUE.search(answer)) and not _NO_VALUE.search(expected)


def _is_expected(answer: str, entry: dict) -> bool:
    return entry["answer"] is not None and answer.strip().casefold() == str(entry["answer"]).strip().casefold()


def _accepts(scorer: Any, answer: str, entry: dict) -> bool:
    """Whether the scorer calls an answer right: some take everything for right that is not the one wrong word."""
    try:
        return float(scorer.score_answer(answer, entry)) >= FULL
    except Exception:
        return False
