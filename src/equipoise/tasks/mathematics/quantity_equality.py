r"""When two quantities are equal: by value, exactly or relatively, with units that do not contradict each other."""

from typing import Any

from . import expressions
from .quantities import Quantity, units_agree


def value_of(side: Quantity) -> Any:
    """The expression of a quantity, its percent sign applied."""
    if side.value is not None:
        return expressions.as_expression(side.value)
    expression = expressions.parsed(side.latex)
    return expression / 100 if side.percent else expression


def equal_quantities(gold: Quantity, answer: Quantity) -> bool:
    """Whether an answer is the expected quantity; units and percent signs: docs/tasks.md.

    Raises:
        UnreadableError: an expression in one of them cannot be parsed.
        TooLargeError: a number cannot be evaluated.
    """
    if not units_agree(gold.unit, answer.unit):
        return False
    if {gold.unit, answer.unit} == {"degree", ""} and _equal_angles(gold, answer):
        return True
    if gold.letters and answer.letters and gold.letters == answer.letters:
        return True
    if gold.percent != answer.percent and _equal_without_percent(gold, answer):
        return True
    if gold.number is not None and answer.number is not None:
        return gold.value == answer.value or _rounds(gold, answer) or _rounds(answer, gold)
    if expressions.equal(value_of(gold), value_of(answer)):
        return True
    return _rounds(gold, answer) or _rounds(answer, gold)


def _equal_angles(gold: Quantity, answer: Quantity) -> bool:
    """60 degrees are pi/3."""
    import sympy

    in_degrees, other = (gold, answer) if gold.unit else (answer, gold)
    radians = value_of(other)
    return bool(radians.has(sympy.pi)) and expressions.equal(value_of(in_degrees) * sympy.pi / 180, radians)


def _rounds(exact: Quantity, decimal: Quantity) -> bool:
    """Whether a decimal of enough digits is the other number, which has no finite decimal form."""
    if decimal.value is None or decimal.digits < expressions.MIN_DIGITS or exact.digits:
        return False
    value = value_of(exact)
    return not value.free_symbols and expressions.agrees_with_decimal(value, decimal.value, decimal.digits)


def _equal_without_percent(gold: Quantity, answer: Quantity) -> bool:
    """25 and 25% are the same where the question asks for a percentage: not below 1, where 0.2 and 0.2% differ."""
    if gold.number is not None and answer.number is not None:
        return gold.number == answer.number and abs(gold.number) > 1
    return False


def nearly(one: Quantity, other: Quantity) -> bool:
    """Whether a decimal of three digits or more was rounded from the other."""
    for exact, decimal in ((one, other), (other, one)):
        if decimal.digits >= 2 and decimal.value is not None and not decimal.percent:
            difference = value_of(exact) - value_of(decimal)
            expressions.check_size(difference)
            step = 10.0 ** -max(len(decimal.latex.partition(".")[2]), 0)
            if abs(complex(difference.evalf(20))) <= step:
                return True
    return False
