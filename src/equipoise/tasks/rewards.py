"""Reward functions: exact match, mathematical equality, and the user's own, whose results are checked."""

import functools
import importlib
import inspect
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from datasets import Dataset
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.task import RewardFunction

PARSE_SECONDS, VERIFY_SECONDS = 5, 5


def reward_function(name: str) -> RewardFunction:
    """The reward function of that name: "exact", "math", or the user's own as "module:function".

    A module may lie in the current directory. The user's function is wrapped by `checked`.

    Raises:
        InputError: when the name is none of these, or the function cannot be imported, called, or is asynchronous.
    """
    return _BUILT_IN[name] if name in _BUILT_IN else checked(_imported(name))


def exact_reward(*, completions: list, answer: list[str], **columns: Any) -> list[float]:
    """1.0 where the completion's text equals the answer, white space at both ends aside, else 0.0.

    Args:
        completions: strings or lists of chat messages, of which the last counts.
        answer: the expected texts.
        columns: ignored.
    """
    texts = map(_text, completions)
    return [float(text.strip() == gold.strip()) for text, gold in zip(texts, answer, strict=True)]


def math_reward(*, completions: list, answer: list[str], **columns: Any) -> list[float | None]:
    r"""1.0 where math-verify finds the completion's result equal to the answer, else 0.0.

    The result is taken from the last \boxed{} of the completion, or else its last LaTeX or plain expression; boxes
    within 70 characters of each other may be read as one set. An answer that cannot be parsed leaves its completion
    unscored (None); `check_answers` refuses such data before training.

    Args:
        completions: strings or lists of chat messages, of which the last counts.
        answer: the expected results, LaTeX with or without delimiters.
        columns: ignored.
    """
    return [_math_score(_text(completion), gold) for completion, gold in zip(completions, answer, strict=True)]


def check_answers(reward_name: str, dataset: Dataset, source: str) -> None:
    """Refuses, before training, answers that the reward function could never verify; only "math" has such.

    Args:
        reward_name: as given to `reward_function`.
        dataset: with a column "answer".
        source: what to call the data set in the message.

    Raises:
        InputError: naming the first row (from 1) whose answer math-verify cannot parse.
    """
    if reward_name != "math":
        return
    for number, answer in enumerate(dataset["answer"], start=1):
        if not _parsed_answer(answer):
            raise InputError(
                f"{source}, row {number}, column 'answer': the reward \"math\" needs an answer that math-verify can"
                f" parse (a bare word is none: write $abc$ for a product), got {shortened(answer)}"
            )


def checked(reward: Callable[..., Any]) -> RewardFunction:
    """The same function, whose failures and unusable results become an `InputError` of one line that names it.

    Single None values are kept: TRL leaves those completions unscored. The wrapper has the function's `__name__`.

    Raises:
        InputError: here, when the function is asynchronous; from a call, when the function raises, returns no
            sequence, one of another length than the completions, anything but finite numbers and None, or None for
            every completion.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004
        raise InputError(f"reward function {name!r} must not be asynchronous (async def)")

    @functools.wraps(reward)
    def checked_reward(*, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        try:
            returned = reward(prompts=prompts, completions=completions, **columns)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"reward function {name!r} raised {one_line(error)}") from error
        return _checked_rewards(name, returned, len(completions))

    checked_reward.__name__ = name  # functools.wraps leaves it alone for objects that have none
    return checked_reward


def _checked_rewards(name: str, returned: Any, expected: int) -> list[float | None]:
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # numpy and torch
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(f"reward function {name!r} must return a list of numbers, got {shortened(returned)}")
    if len(values) != expected:
        raise InputError(
            f"reward function {name!r} must return one reward per completion, {expected}, got {len(values)}"
        )
    rewards = [_checked_number(name, index, value) for index, value in enumerate(values)]
    if rewards and all(reward is None for reward in rewards):
        raise InputError(f"reward function {name!r} returned None for all {expected} completions of a batch")
    return rewards


def _checked_number(name: str, index: int, value: Any) -> float | None:
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # a numpy or torch scalar
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(
            f"reward function {name!r} must return finite numbers or None,"
            f" got {shortened(value)} for completion {index}"
        )
    return float(value)


def _text(completion: str | list) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _math_score(text: str, gold: str) -> float | None:
    expected = _parsed_answer(gold)
    if not expected:
        return None
    # Priority 0: a boxed result counts before any later formula.
    extraction = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found = parse(text, extraction, parsing_timeout=_timeout(PARSE_SECONDS))
    return float(verify(list(expected), found, timeout_seconds=_timeout(VERIFY_SECONDS)))


@functools.lru_cache(maxsize=65536)
def _parsed_answer(gold: str) -> tuple:
    r"""What math-verify makes of an answer, as (expression, text); empty when it is none.

    Without delimiters math-verify reads plain arithmetic only: \sqrt{2} would be nothing and 2\pi would be 2. So a bare
    answer is read as LaTeX, unless it has words, which LaTeX takes for products of letters.
    """
    bare = not re.search(r"\$|\\boxed|\\\(|\\\[", gold)
    has_words = re.search(r"[^\W\d_]{3,}", re.sub(r"\\text\s*\{[^}]*\}|\\[A-Za-z]+", " ", gold))
    text = f"${gold}$" if bare and not has_words else gold
    parsed = parse(text, fallback_mode="no_fallback", parsing_timeout=_timeout(PARSE_SECONDS))
    return (*parsed, gold.strip()) if parsed else ()


def _timeout(seconds: int) -> int:
    """0 (none) outside the main thread, where math-verify's timer (a signal) cannot be set."""
    return seconds if threading.current_thread() is threading.main_thread() else 0


def _imported(name: str) -> Callable[..., Any]:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise InputError(f'the reward must be one of {", ".join(_BUILT_IN)} or "module:function", got {name!r}')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a local file never hides an installed package
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise InputError(f"reward {name!r}: module {module_name!r} cannot be imported ({one_line(error)})") from error
    if not hasattr(module, attribute):
        raise InputError(f"reward {name!r}: {getattr(module, '__file__', module_name)} has no {attribute!r}")
    function = getattr(module, attribute)
    if not callable(function):
        raise InputError(f"reward {name!r}: must be a function, got {shortened(function)}")
    return function


_BUILT_IN: dict[str, RewardFunction] = {"exact": exact_reward, "math": math_reward}
