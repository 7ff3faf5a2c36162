r"""When two equations or inequalities say the same."""

from typing import Any

from . import expressions
from .forms import Relation


def equal_relations(gold: Relation, answer: Relation) -> bool:
    """Whether two equations or inequalities are the same up to a factor, which is positive for inequalities."""
    if gold.operator != answer.operator:
        return False
    if not gold.right or not answer.right:
        return False
    if gold.operator not in ("=", "<", "<=", "!="):
        return all(_same_side(a, b) for a, b in ((gold.left, answer.left), (gold.right, answer.right)))
    one, other = (_difference(side) for side in (gold, answer))
    return _proportional(one, other, positive=gold.operator in ("<", "<="))


def _same_side(one: str, other: str) -> bool:
    return expressions.equal(expressions.parsed(one), expressions.parsed(other))


def _difference(relation: Relation) -> Any:
    return expressions.parsed(relation.left) - expressions.parsed(relation.right)


def _proportional(one: Any, other: Any, *, positive: bool) -> bool:
    import sympy

    if one.free_symbols != other.free_symbols or not one.free_symbols:
        return False
    expressions.check_size(one)
    expressions.check_size(other)
    if not positive:
        one, other = (sympy.fraction(sympy.together(side))[0] for side in (one, other))
    point = {
        symbol: sympy.Rational(1009 + 97 * i, 503 + 13 * i)
        for i, symbol in enumerate(sorted(one.free_symbols, key=str))
    }
    below = other.xreplace(point)
    if not below.is_number or expressions.equal_numbers(below, sympy.Integer(0)):
        return False
    factor = one.xreplace(point) / below
    if not factor.is_number or (positive and not bool(factor.evalf(20) > 0)):
        return False
    if expressions.equal_numbers(factor, sympy.Integer(0)):
        return False
    return expressions.equal(one, factor * other)
