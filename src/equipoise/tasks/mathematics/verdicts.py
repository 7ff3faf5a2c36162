r"""The judgement of one completion against the expected answers; the entry of this package."""

import functools

from . import expressions
from .completion import answer_text
from .equality import equal
from .forms import Chain, Collection, Form, Matrix, Named, Ratio, Region, Relation
from .quantities import Quantity
from .reading import MAX_DEPTH, TooDeepError, read
from .spans import depth


def verdict(text: str, golds: list[str]) -> tuple[str, str]:
    r"""(outcome, reason) of a completion.

    Args:
        text: the completion.
        golds: the expected answers, any of which is right: LaTeX or plain, with or without delimiters or \boxed.

    Returns:
        "correct", "wrong", "unparsable" (no answer that can be read), "error" with what happened, or "bad_gold" with
        the expected answer that cannot be read.
    """
    expected = [parsed_gold(gold) for gold in golds]
    for gold, parsed in zip(golds, expected, strict=True):
        if parsed is None:
            return "bad_gold", gold[:200]
    found = answer_text(text)
    if found is None:
        return "unparsable", "has no answer"
    try:
        answer = read(found)
    except TooDeepError as error:
        return "error", str(error)
    if answer is None:
        return "unparsable", "has no answer that can be read"
    return _judged(answer, [parsed for parsed in expected if parsed is not None])


def warm() -> None:
    r"""Imports what the first expression would import, and fills the tables that the parser makes as it goes."""
    for gold, answer in (
        (r"\frac{\sqrt{2}x^{2}+1}{2\pi}", r"\frac{1}{2\pi}(x^{2}\sqrt{2}+1)"),
        (r"2\sin(x)\cos(x)e^{-t}", r"e^{-t}\sin 2x"), (r"2\ln 3", r"\log_{2} 5"),
        (r"\frac{\pi^{2}}{6}", r"\sum_{n=1}^{\infty}\frac{1}{n^{2}}"), (r"(\sqrt{2}, \infty)", r"x > \sqrt{2}"),
    ):  # fmt: skip
        verdict(rf"\boxed{{{answer}}}", [gold])


def _judged(answer: Form, expected: list[Form]) -> tuple[str, str]:
    failure = ("wrong", "")
    for gold in expected:
        try:
            if equal(gold, answer):
                return "correct", ""
        except expressions.UnreadableError as error:
            failure = ("unparsable", f"has an expression that cannot be read ({error})")
        except expressions.TooLargeError as error:
            failure = ("error", str(error))
    return failure


@functools.lru_cache(maxsize=65536)
def parsed_gold(gold: str) -> Form | None:
    """What an expected answer says; None where it cannot be read, or an expression in it cannot be parsed."""
    text = answer_text(gold) if "\\boxed" in gold or "####" in gold else gold
    if text is None or depth(text) > MAX_DEPTH:
        return None
    found = read(text)
    return found if found is not None and _is_readable(found) else None


def _is_readable(item: Form) -> bool:
    """Whether the parser reads every expression in a form."""
    try:
        for latex in _expressions(item):
            expressions.parsed(latex)
    except expressions.UnreadableError:
        return False
    return True


def _expressions(item: Form | None) -> list[str]:
    if isinstance(item, Quantity):
        return [] if item.number is not None else [item.latex]
    if isinstance(item, Named):
        return _expressions(item.value)
    if isinstance(item, Collection):
        return [latex for member in item.items for latex in _expressions(member)]
    if isinstance(item, Matrix):
        return [latex for row in item.rows for cell in row for latex in _expressions(cell)]
    if isinstance(item, Region):
        ends = [end for span in item.parts for end in (span.low, span.high)]
        return [end for end in ends if "infty" not in end]
    if isinstance(item, Relation):
        return [item.left, item.right]
    if isinstance(item, Chain):
        return [latex for side in item.sides for latex in _expressions(side)]
    if isinstance(item, Ratio):
        return [latex for term in item.terms for latex in _expressions(term)]
    return []
