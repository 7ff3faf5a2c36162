"""Reward functions by name: exact match, mathematical equality, the user's own, and sums with terms that shape."""

import contextlib
import functools
import inspect
import logging
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.mathematics import marked_answer
from equipoise.tasks.shaping import TERMS
from equipoise.tasks.task import MAX_REWARD, AnswerReader, RewardFunction, completion_text
from equipoise.tasks.terms import Term, called, nearest, parsed_terms
from equipoise.tasks.verification import VerifierPool, shared_pool
from equipoise.user_modules import import_of_the_user

logger = logging.getLogger("equipoise")

COUNTED = ("unparsable", "timeout", "memory", "refused", "error", "bad_gold")
"""Outcomes whose share is logged as verification/OUTCOME_fraction."""

MISSING = object()
"""In the place of a function that a module does not have."""
BUILT_IN = frozenset(("exact", "math", *TERMS))
"""Names of rewards that are ours; any other is code of the user."""

SLOW_SECONDS = 60.0
"""After which a call of a user's function that still runs is reported."""


def reward_function(text: str) -> RewardFunction:
    """The reward of that name, or a weighted sum: "math + 0.1*format?style=boxed + overlong?max=2048&buffer=512".

    The first term says what is correct: "exact", "math", or the user's own function as "module:function". Those after
    it may also be "format", "length" and "overlong". A module may lie in the current directory; the user's functions
    are wrapped by `checked`.

    Raises:
        InputError: when a name is none of these, a parameter is wrong, or a function cannot be imported, called, or is
            asynchronous.
    """
    first, *others = _terms(text)
    verifier = _verifier(first)
    if not others and first.weight == 1:
        return verifier
    named = [(first.name, first.weight, verifier)]
    named += [(term.name, term.weight, _shaping(term) if term.name in TERMS else _verifier(term)) for term in others]
    return RewardSum(named)


def verifier_function(text: str) -> RewardFunction:
    """The first term of a reward, without its weight: 1.0 for a correct completion.

    Raises:
        InputError: as `reward_function`.
    """
    return _verifier(_terms(text)[0])


def verifier_name(text: str) -> str:
    """The name of the first term of a reward.

    Raises:
        InputError: as `reward_function`.
    """
    return _terms(text)[0].name


class RewardSum:
    """The weighted sum of several rewards; None where any of them is None. The mean of each is logged."""

    def __init__(self, terms: Sequence[tuple[str, float, RewardFunction]]) -> None:
        self.__name__ = "reward_sum"
        self.terms = terms

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One sum per completion; the means of the terms, before their weights, are logged as reward/NAME.

        Raises:
            InputError: a sum beyond ±`MAX_REWARD`, with its completion.
        """
        totals: list[float | None] = [0.0] * len(completions)
        for name, weight, reward in self.terms:
            values = reward(prompts=prompts, completions=completions, **columns)
            totals = [
                None if total is None or value is None else total + weight * value
                for total, value in zip(totals, values, strict=True)
            ]
            scored = [value for value in values if value is not None]
            if scored and "log_metric" in columns:
                columns["log_metric"](f"reward/{name}", sum(scored) / len(scored))
        return [_checked_number("the sum of the rewards", i, total, prompts) for i, total in enumerate(totals)]


def exact_reward(*, completions: list, answer: list, **columns: Any) -> list[float]:
    r"""1.0 where the completion's text equals the answer, or one of several, white space at both ends aside, else 0.0.

    A completion with <answer> tags or a \boxed{} is right as well when what stands in the last of them equals the
    answer.

    Args:
        completions: strings or lists of chat messages, of which the last counts.
        answer: the expected texts; a list of texts where any of them is right.
        columns: ignored.
    """
    scores = []
    for completion, expected in zip(completions, answer, strict=True):
        text = completion_text(completion)
        given = {text.strip(), (marked_answer(text) or text).strip()}
        scores.append(float(not given.isdisjoint(gold.strip() for gold in golds_of(expected))))
    return scores


def forms_read(reward: RewardFunction) -> frozenset[str] | None:
    """The forms of an answer, of "boxed" and "answer_tags", that a reward reads; None where only its author knows."""
    if isinstance(reward, RewardSum):
        return forms_read(reward.terms[0][2])
    return frozenset(("boxed", "answer_tags")) if reward is exact_reward else getattr(reward, "reads", None)


class MathReward:
    r"""1.0 where the completion's answer is equal to the expected one, or to one of several, else 0.0.

    The result is taken from the last <answer> tags of the completion, or else its last \boxed{}, or else what follows
    "answer is", or else its last formula or number; boxes that "and", "or" or a comma joins are one answer. What counts
    as equal: docs/tasks.md. Completions without an answer, and those that go beyond a limit of the workers, are 0 and
    their shares logged as verification/unparsable_fraction, timeout_fraction, memory_fraction, refused_fraction and
    error_fraction. An answer that cannot be parsed leaves its completion unscored (None); `check_answers` refuses such
    data before training.
    """

    reads = frozenset(("boxed", "answer_tags"))

    def __init__(self, pool: VerifierPool | None = None) -> None:
        self.__name__ = "math_reward"
        self._pool, self._warned = pool, False

    @property
    def pool(self) -> VerifierPool:
        """The processes that verify; shared unless the reward was given its own."""
        return shared_pool() if self._pool is None else self._pool

    def __call__(self, *, completions: list, answer: list, **columns: Any) -> list[float | None]:
        """One reward per completion; `answer` holds LaTeX with or without delimiters, or lists of it."""
        texts = [completion_text(completion) for completion in completions]
        verdicts = self.pool.verdicts(texts, [golds_of(expected) for expected in answer])
        counts = Counter(verdict.outcome for verdict in verdicts)
        if "log_metric" in columns:
            for outcome in COUNTED:
                columns["log_metric"](f"verification/{outcome}_fraction", counts[outcome] / max(len(verdicts), 1))
        self._warn(counts, len(verdicts))
        return [None if v.outcome == "bad_gold" else float(v.outcome == "correct") for v in verdicts]

    def _warn(self, counts: Counter, total: int) -> None:
        if self._warned or total < 16 or sum(counts[outcome] for outcome in COUNTED[:-1]) < 0.9 * total:
            return
        self._warned = True
        found = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COUNTED if counts[outcome])
        logger.warning(
            'reward "math": hardly any of %d completions has an answer that can be verified (%s); does the prompt ask'
            " for one (prompt_template: boxed)?", total, found,
        )  # fmt: skip


def golds_of(answer: str | list[str]) -> list[str]:
    """The expected answers of a row: any of them is right."""
    return [answer] if isinstance(answer, str) else list(answer)


def checked(reward: Callable[..., Any]) -> RewardFunction:
    """The same function, whose failures and unusable results become an `InputError` of one line that names it.

    It runs in this process, as it is the user's own. The time that it takes is logged as reward/NAME_seconds, and a
    call that takes more than a minute is reported while it lasts. Single None values are kept: TRL leaves those
    completions unscored. The wrapper has the function's `__name__`, and its `given_answers` where it is an
    `AnswerReader`, whose failures and results are checked likewise.

    Raises:
        InputError: here, when the function is asynchronous; from a call, when the function raises (with file and line),
            returns no sequence, one of another length than the completions, anything but finite numbers within
            ±`MAX_REWARD` and None, or None for every completion.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004
        raise InputError(f"reward function {name!r} must not be asynchronous (async def)")

    @functools.wraps(reward)
    def checked_reward(*, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        begin = time.perf_counter()
        with _reported_while_it_lasts(name):
            try:
                returned = reward(prompts=prompts, completions=completions, **columns)
            except (InputError, KeyboardInterrupt):
                raise
            except BaseException as error:  # also one that exits
                raise InputError(f"reward function {name!r} raised {one_line(error)}{_place(error)}") from error
        if "log_metric" in columns:
            columns["log_metric"](f"reward/{name}_seconds", time.perf_counter() - begin)
        return _checked_rewards(name, returned, prompts, len(completions))

    checked_reward.__name__ = name  # functools.wraps leaves it alone for objects that have none
    if isinstance(reward, AnswerReader):
        vars(checked_reward)["given_answers"] = functools.partial(_checked_answers, name, reward)
    return checked_reward


def _checked_answers(name: str, reward: AnswerReader, **keywords: Any) -> list[str | None]:
    try:
        answers = reward.given_answers(**keywords)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"given_answers of {name!r} raised {one_line(error)}{_place(error)}") from error
    count = len(keywords["completions"])
    if not isinstance(answers, list | tuple) or len(answers) != count:
        raise InputError(f"given_answers of {name!r} must return a list of {count}, got {shortened(answers)}")
    for answer in answers:
        if answer is not None and not isinstance(answer, str):
            raise InputError(f"given_answers of {name!r} must return texts or None, got {shortened(answer)}")
    return list(answers)


@contextlib.contextmanager
def _reported_while_it_lasts(name: str) -> Iterator[None]:
    warn = functools.partial(logger.warning, "reward function %r has been running for %g s.", name, SLOW_SECONDS)
    timer = threading.Timer(SLOW_SECONDS, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _place(error: BaseException) -> str:
    """Where the innermost frame of an exception is, as " (file, line 3)"; nothing for one raised by calling."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _checked_rewards(name: str, returned: Any, prompts: Sequence, expected: int) -> list[float | None]:
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # numpy and torch
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(f"reward function {name!r} must return a list of numbers, got {shortened(returned)}")
    if len(values) != expected:
        raise InputError(
            f"reward function {name!r} must return one reward per completion, {expected}, got {len(values)}"
        )
    rewards = [_checked_number(f"reward function {name!r}", i, value, prompts) for i, value in enumerate(values)]
    if rewards and all(reward is None for reward in rewards):
        raise InputError(f"reward function {name!r} returned None for all {expected} completions of a batch")
    return rewards


def _checked_number(what: str, index: int, value: Any, prompts: Sequence) -> float | None:
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # a numpy or torch scalar
    if value is None:
        return None
    if not isinstance(value, Real) or value != value or abs(value) == math.inf:
        raise InputError(f"{what} must return finite numbers or None, got {shortened(value)} for completion {index}")
    size: Any = abs(value)
    if size > MAX_REWARD:
        shown = shortened(value) if size < 1e300 else "a number beyond 1e300"
        prompt = f" (prompt {shortened(prompts[index])})" if index < len(prompts) else ""
        raise InputError(f"{what} must be within ±{MAX_REWARD:g}, got {shown} for completion {index}{prompt}")
    return float(value)


def _terms(text: str) -> list[Term]:
    terms = parsed_terms(text, "reward")
    for number, term in enumerate(terms):
        if term.name in TERMS and number == 0:
            raise InputError(
                f'the first term of the reward must say what is correct (exact, math or "module:function"),'
                f" got {shortened(text)}"
            )
    if not terms[0].weight > 0:
        raise InputError(f"the weight of {terms[0].name}, which says what is correct, must be > 0, got {text!r}")
    return terms


def _verifier(term: Term) -> RewardFunction:
    label = f"reward {term.name}"
    if term.name == "math":
        return called(label, _math, term.parameters)
    if term.name == "exact":
        return called(label, lambda: exact_reward, term.parameters)
    return called(label, lambda: checked(imported(term.name, "reward")), term.parameters)


def _math(seconds: float = 0) -> RewardFunction:
    if seconds < 0:
        raise ValueError(f"seconds must be > 0, got {seconds}")
    return MathReward(VerifierPool(seconds=seconds)) if seconds else math_reward


def _shaping(term: Term) -> RewardFunction:
    return called(f"reward {term.name}", TERMS[term.name], term.parameters)


def imported(name: str, what: str) -> Callable[..., Any]:
    """The function or class of the user that "module:name" means; the module may lie in the current directory.

    Args:
        name: as the user wrote it.
        what: what it is to be, for messages: "reward" or "environment".

    Raises:
        InputError: no such module or name, or one that cannot be called.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        known = ("exact", "math", *TERMS) if what == "reward" else ()
        listed = f"one of {', '.join(known)} or " if known else ""
        raise InputError(f'the {what} must be {listed}"module:name", got {name!r}{nearest(name, known)}')
    try:
        module = import_of_the_user(module_name)
        function = getattr(module, attribute, MISSING)  # some modules make it only now
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises while it is imported, also one that exits
        raise InputError(f"{what} {name!r}: module {module_name!r} cannot be imported ({one_line(error)})") from error
    if function is MISSING:
        raise InputError(f"{what} {name!r}: {getattr(module, '__file__', module_name)} has no {attribute!r}")
    if not callable(function):
        raise InputError(f"{what} {name!r}: must be a function, got {shortened(function)}")
    return function


math_reward = MathReward()
"""The reward "math" with the shared pool."""
