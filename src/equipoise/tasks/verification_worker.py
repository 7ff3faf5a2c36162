r"""The kind "math" of workers: math-verify on text that a model wrote, in a process with limits (`workers.worker`).

It imports nothing of equipoise that loads torch, so that it starts in a second and has little memory of its own.
"""

import functools
import re
from collections.abc import Callable
from types import ModuleType

MAX_DEPTH = 60  # of braces in an answer: deeper nesting only costs the parser time


def warm() -> None:
    """The first answer imports and builds what all need, and takes as long; sums and products load numerics."""
    import scipy.special  # noqa: F401

    _full_verdict(r"\boxed{\frac{1}{2}}", ["0.5"])


def modules_with_eval() -> list[ModuleType]:
    """None: math-verify evaluates through sympy's parser alone."""
    return []


def prepared(arguments: None) -> Callable[[tuple[str, list[str]]], tuple[str, str]]:
    """The function of (text, golds) to (outcome, reason); there is nothing to prepare."""
    return judged


def judged(payload: tuple[str, list[str]]) -> tuple[str, str]:
    """The outcome of a text against the expected answers, any of which is right, and the reason where there is one."""
    return _verdict(*payload)


def _described(error: Exception) -> str:
    if isinstance(error, MemoryError):
        raise error  # a limit of the worker, which counts it
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _verdict(text: str, golds: list[str]) -> tuple[str, str]:
    equal = integers_equal(text, golds)
    return _full_verdict(text, golds) if equal is None else ("correct" if equal else "wrong", "")


def integers_equal(text: str, golds: list[str]) -> bool | None:
    """Whether the one boxed integer of a text is the expected integer; None where it takes math-verify to tell.

    The most common case by far, in microseconds instead of milliseconds, with math-verify's result.
    """
    if text.count("boxed") != 1 or not all(re.fullmatch(r"-?[0-9]{1,18}", gold) for gold in golds):
        return None
    # What follows matters to math-verify where it is a sign of percent, a unit or more mathematics.
    boxed = re.search(r"\\boxed\{(-?[0-9]{1,18})\}(?=\$*[.\s]*$)", text)
    return None if boxed is None else int(boxed[1]) in {int(gold) for gold in golds}


def _full_verdict(text: str, golds: list[str]) -> tuple[str, str]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    expected = [parsed_gold(gold) for gold in golds]
    for gold, parsed in zip(golds, expected, strict=True):
        if not parsed:
            return "bad_gold", gold[:200]
    if _depth(text) > MAX_DEPTH:
        return "error", "is nested too deeply"
    # Priority 0: a boxed result counts before any later formula.
    extraction = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found = parse(text, extraction, parsing_timeout=0)
    if not found:
        return "unparsable", "has no expression that can be parsed"
    failure = ""
    # Pair by pair: one that cannot be compared says nothing about the others.
    for gold, answer in ((gold, answer) for parsed in expected for gold in parsed for answer in found):
        try:
            if verify(gold, answer, timeout_seconds=None, raise_on_error=True):
                return "correct", ""
        except Exception as error:
            failure = failure or _described(error)
    return ("error", failure) if failure else ("wrong", "")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth = max(0, depth - 1)
    return deepest


@functools.lru_cache(maxsize=65536)
def parsed_gold(gold: str) -> tuple:
    r"""What math-verify makes of an answer, as (expression, text); empty when it is none.

    Without delimiters math-verify reads plain arithmetic only: \sqrt{2} would be nothing and 2\pi would be 2. So a bare
    answer is read as LaTeX, unless it has words, which LaTeX takes for products of letters.
    """
    from math_verify import parse

    bare = not re.search(r"\$|\\boxed|\\\(|\\\[", gold)
    has_words = re.search(r"[^\W\d_]{3,}", re.sub(r"\\text\s*\{[^}]*\}|\\[A-Za-z]+", " ", gold))
    text = f"${gold}$" if bare and not has_words else gold
    parsed = parse(text, fallback_mode="no_fallback", parsing_timeout=0)
    return (*parsed, gold.strip()) if parsed else ()
