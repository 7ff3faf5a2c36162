r"""Unions of intervals of the real line, with ends that are numbers or symbols."""

from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any

from . import expressions

_MINUS, _PLUS = r"-\infty", r"\infty"


@dataclass(frozen=True)
class Span:
    """An interval; the ends are LaTeX. (1, 2) may be a pair as well: `pair` keeps its quantities."""

    low: str
    low_closed: bool
    high: str
    high_closed: bool
    first: Any = field(default=None, compare=False)
    second: Any = field(default=None, compare=False)

    @classmethod
    def point(cls, at: str) -> "Span":
        """A single number."""
        return cls(at, True, at, True)

    @property
    def is_pair(self) -> bool:
        """Whether it was written as (1, 2) or [1, 2]."""
        return self.first is not None and self.low_closed == self.high_closed


REALS = (Span(_MINUS, False, _PLUS, False),)
_POSITIVE, _NEGATIVE = (Span("0", False, _PLUS, False),), (Span(_MINUS, False, "0", False),)
_NAMED = {r"\mathbb{R}": REALS} | {
    rf"\mathbb{{R}}{script}": span
    for span, scripts in (
        (_POSITIVE, ("^+", "^{+}", "_+", "_{+}", "_{>0}")),
        (_NEGATIVE, ("^-", "^{-}", "_-", "_{-}", "_{<0}")),
    )
    for script in scripts
}


def named(text: str) -> tuple[Span, ...] | None:
    """A set with a name of its own: the real numbers."""
    return _NAMED.get(text.strip())


def end(latex: str) -> Any:
    """An end as a number or expression."""
    import sympy

    plain = latex.strip().replace(" ", "").lstrip("+")
    if plain in (_PLUS, _MINUS):
        return sympy.oo if plain == _PLUS else -sympy.oo
    found = expressions.parsed(latex)
    expressions.check_size(found)
    return found


def order(one: str, other: str) -> int:
    """-1, 0 or 1 as one end lies before, at or after the other.

    Raises:
        TypeError: for ends that are no real numbers.
    """
    first, second = end(one), end(other)
    if first == second or (not (first.is_infinite or second.is_infinite) and expressions.equal(first, second)):
        return 0
    return -1 if bool((first - second).evalf(30) < 0) else 1


def is_real(latex: str) -> bool:
    """Whether an end is a real number or infinite."""
    try:
        value = end(latex)
        return bool(value.is_infinite or (not value.free_symbols and value.evalf(15).is_real))
    except (expressions.UnreadableError, expressions.TooLargeError, TypeError, AttributeError):
        return False


def _simplified(spans: list[Span]) -> tuple[Span, ...]:
    """Disjoint intervals in order; empty ones left out."""
    kept = []
    for span in spans:
        compared = order(span.low, span.high)
        if compared < 0 or (compared == 0 and span.low_closed and span.high_closed):
            kept.append(span)

    def by_low(one: Span, other: Span) -> int:
        return order(one.low, other.low) or int(other.low_closed) - int(one.low_closed)

    merged: list[Span] = []
    for span in sorted(kept, key=cmp_to_key(by_low)):
        if merged:
            last = merged[-1]
            gap = order(last.high, span.low)
            if gap > 0 or (gap == 0 and (last.high_closed or span.low_closed)):
                compared = order(last.high, span.high)
                high = last if compared > 0 or (compared == 0 and last.high_closed) else span
                merged[-1] = Span(last.low, last.low_closed, high.high, high.high_closed)
                continue
        merged.append(span)
    return tuple(merged)


def _all_real(spans: tuple[Span, ...]) -> bool:
    return all(is_real(latex) for span in spans for latex in (span.low, span.high))


def union(regions: list[tuple[Span, ...]]) -> tuple[Span, ...] | None:
    """The union; as written where ends are symbols."""
    spans = [span for region in regions for span in region]
    return _simplified(spans) if _all_real(tuple(spans)) else tuple(spans)


def intersection(regions: list[tuple[Span, ...]]) -> tuple[Span, ...] | None:
    """The intersection; None where ends are symbols."""
    if not all(map(_all_real, regions)):
        return None
    result = _simplified(list(regions[0]))
    for region in regions[1:]:
        result = _simplified([_common(one, other) for one in result for other in region])
    return result


def _common(one: Span, other: Span) -> Span:
    low, high = order(one.low, other.low), order(one.high, other.high)
    first = other if low < 0 or (low == 0 and not other.low_closed) else one
    last = one if high < 0 or (high == 0 and not one.high_closed) else other
    return Span(first.low, first.low_closed, last.high, last.high_closed)


def difference(regions: list[tuple[Span, ...]]) -> tuple[Span, ...] | None:
    """What is in the first and in none of the others; None where ends are symbols."""
    if not all(map(_all_real, regions)):
        return None
    result: tuple[Span, ...] | None = regions[0]
    for span in (span for region in regions[1:] for span in region):
        outside = (
            Span(_MINUS, False, span.low, not span.low_closed),
            Span(span.high, not span.high_closed, _PLUS, False),
        )
        result = intersection([result, outside]) if result is not None else None
    return result


def equal(one: tuple[Span, ...], other: tuple[Span, ...]) -> bool:
    """Whether two regions hold the same numbers; as written, in order, where ends are symbols."""
    if _all_real(one) and _all_real(other):
        one, other = _simplified(list(one)), _simplified(list(other))
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))


def _same(one: Span, other: Span) -> bool:
    if (one.low_closed, one.high_closed) != (other.low_closed, other.high_closed):
        return False
    return all(_same_end(a, b) for a, b in ((one.low, other.low), (one.high, other.high)))


def _same_end(one: str, other: str) -> bool:
    first, second = end(one), end(other)
    if first.is_infinite or second.is_infinite:
        return bool(first == second)
    return expressions.equal(first, second)
