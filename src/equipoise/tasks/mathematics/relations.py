r"""Equations and inequalities: names with values, chains of constants, regions of a variable."""

import re
from collections.abc import Callable

from . import expressions, sets
from .forms import Chain, Collection, Form, Literal, Named, NotReadableError, Region, Relation, Words
from .quantities import Quantity, quantity
from .spans import enclosed, split

OPERATORS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\equiv": "==",
    r"\to": "->", r"\mapsto": "->",
}  # fmt: skip
"""Command -> operator."""

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_NAME = re.compile(
    r"(?:(?:\\(?:angle|triangle|Delta|measuredangle|operatorname|widehat)\s*)?"
    r"(?:\\[A-Za-z]+|[A-Za-z]+|\\text\{[^{}]*\}|\|\s*[A-Z]{1,2}\s*\||\\(?:sin|cos|tan)\s*\(?(?:\\angle\s*)?[A-Z]{1,3}\)?|\\(?:overline|vec|bar|hat|dot|ddot)\{[^{}]*\})\s*(?:[A-Z]\s*){0,4}"
    r"(?:_\{[^{}]*\}|_\w|_\\[a-z]+)?\s*(?:[A-Z](?:_\{?\w\}?)?\s*)?'*(?:\^\{?(?:-1|\\ast|\*|')\}?)?\s*"
    r"(?:\([^()]*(?:\([^()]*\))?[^()]*\))?|\\frac\{\s*d[^{}]*(?:\{[^{}]*\})*[^{}]*\}\{\s*d[^{}]*(?:\{[^{}]*\})?\s*\}"
    r"(?:\([^()=]*\))?)"
)
_ABSOLUTE = re.compile(r"\|\s*([A-Za-z])\s*(?:([-+])\s*([^|]+?)\s*)?\|")
_NO_NAME = re.compile(
    r"\\(?:sqrt|frac(?!\{\s*d)|binom|pi|infty|sin|cos|tan|ln|log|exp|cdot|left|sum|int|prod|lim)(?![A-Za-z])"
)


def relation(operators: list[str], sides: list[str], form: Callable[[str], Form | None]) -> Form | None:
    """What sides with operators between them say.

    Args:
        operators: one fewer than sides.
        sides: in the one spelling.
        form: reads a side.
    """
    if not all(sides):
        raise NotReadableError("a relation without a side")
    kinds = set(operators)
    if operators == [r"\in"]:
        return _membership(sides, form)
    if kinds <= {"=", "~"}:
        return _equation(sides, "~" in kinds, form)
    if kinds <= {"<", "<=", ">", ">="}:
        return _inequality(operators, sides)
    if operators == ["!="] and is_name(sides[0]) and sets.is_real(sides[1]):
        parts = sets.difference([sets.REALS, (sets.Span.point(sides[1]),)])
        return Region(parts or (), sides[0])
    if len(operators) == 1:
        return Relation(operators[0], sides[0], sides[1])
    return Literal("relation", re.sub(r"\s", "", " ".join([*sides, *operators])))


def is_name(text: str) -> bool:
    r"""Whether a side of an equation is a name: x, a_n, f(x), P(A \cap B), m_{\max}, \angle ABC, (a,b), dM/dt."""
    inside = enclosed(text)
    if inside is not None and inside[0] == "(":
        return all(is_name(piece) for _, piece in split(inside[1], {","}))
    return (
        (not _NO_NAME.match(text) or bool(re.fullmatch(r"\\(?:sin|cos|tan)\s*\(?(?:\\angle\s*)?[A-Z]{1,3}\)?", text)))
        and bool(_NAME.fullmatch(text))
        and text != "e"
    )


def _membership(sides: list[str], form: Callable[[str], Form | None]) -> Form | None:
    found = form(sides[1])
    if isinstance(found, Region):
        return Region(found.parts, sides[0])
    if isinstance(found, Collection):
        return Collection("set", tuple(Named(sides[0], item) for item in found.items))
    if isinstance(found, Literal) and found.kind == "set":
        return Named(sides[0], found)
    raise NotReadableError("an element of what is no set")


def _equation(sides: list[str], rounded: bool, form: Callable[[str], Form | None]) -> Form | None:
    if is_name(sides[-1]) and not is_name(sides[0]) and len(sides) == 2:
        sides = sides[::-1]
    if is_name(sides[0]) and not (len(sides) == 2 and _mentions(sides[1], sides[0])):
        value = form(sides[1]) if len(sides) == 2 else _equation(sides[1:], rounded, form)
        if isinstance(value, Relation):
            value = form(sides[-1])
        if value is None:
            raise NotReadableError("a name without a value")
        if isinstance(value, Collection) and value.kind == "list":
            return Collection("list", tuple(Named(sides[0], item) for item in value.items))
        if isinstance(value, Region) and enclosed(sides[0]) is None and not value.parts:
            return value
        return Named(sides[0], value)
    forms = [form(side) for side in sides]
    if all(isinstance(side, Quantity) and is_constant(side) for side in forms):
        return Chain(tuple(side for side in forms if isinstance(side, Quantity)))
    if len(sides) == 2 and not rounded:
        return Relation("=", sides[0], sides[1])
    if rounded or any(isinstance(side, Words) for side in forms):
        raise NotReadableError("sides that cannot be compared")
    return Relation("=", sides[0], sides[-1])


def _mentions(side: str, name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z]", name)) and bool(re.search(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", side))


def is_constant(side: Quantity) -> bool:
    """Whether it is a number, however it is written."""
    if side.number is not None:
        return True
    try:
        return not expressions.parsed(side.latex).free_symbols
    except expressions.UnreadableError:
        return False


def _inequality(operators: list[str], sides: list[str]) -> Form | None:
    r"""x < 3, 2 < x \le 5, 3 > x: a region; other inequalities stay what they are."""
    if operators[0] in (">", ">=") and len(sides) == 3:
        sides, operators = sides[::-1], [_FLIPPED[operator] for operator in reversed(operators)]
    if len(sides) == 3 and set(operators) <= {"<", "<="}:
        low, name, high = sides
        if not _is_variable(name):
            return Literal("relation", re.sub(r"\s", "", " ".join([*sides, *operators])))
        span = sets.Span(quantity(low).latex, operators[0] == "<=", quantity(high).latex, operators[1] == "<=")
        return Region((span,), name)
    if len(sides) != 2:
        raise NotReadableError("a chain of inequalities")
    left, right = sides
    operator = operators[0]
    if (_is_variable(right) or _ABSOLUTE.fullmatch(right)) and not (_is_variable(left) or _ABSOLUTE.fullmatch(left)):
        left, right, operator = right, left, _FLIPPED[operator]
    bound = quantity(right).latex
    if (absolute := _ABSOLUTE.fullmatch(left)) and sets.is_real(bound) and sets.is_real(absolute[3] or "0"):
        return Region(_around(absolute, bound, operator), absolute[1])
    if _is_variable(left) and (sets.is_real(bound) or not _mentions(bound, left)):
        closed = operator in ("<=", ">=")
        span = (
            sets.Span(r"-\infty", False, bound, closed)
            if operator[0] == "<"
            else sets.Span(bound, closed, r"\infty", False)
        )
        return Region((span,), left)
    return Relation(operator, left, right) if operator[0] == "<" else Relation(_FLIPPED[operator], right, left)


def _around(absolute: re.Match, bound: str, operator: str) -> tuple[sets.Span, ...]:
    r"""Where |x - a| is less, or more, than a bound."""
    centre = f"-({absolute[3]})" if absolute[2] == "+" else absolute[3] or "0"
    low, high, closed = f"{centre}-({bound})", f"{centre}+({bound})", operator in ("<=", ">=")
    if operator[0] == "<":
        return (sets.Span(low, closed, high, closed),)
    return (sets.Span(r"-\infty", False, low, closed), sets.Span(high, closed, r"\infty", False))


def _is_variable(side: str) -> bool:
    return is_name(side) and not sets.is_real(side)
