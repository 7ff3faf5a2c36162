r"""Expressions: read by math-verify's LaTeX parser, compared as numbers to 50 digits or at sampled points.

Numbers are compared exactly or relatively, never by absolute difference. What would take numbers of more than
`MAX_BITS` bits is not evaluated: two such expressions are equal only if they are the same.
"""

import functools
import math
import random
from fractions import Fraction
from typing import Any

from .parser_spelling import for_parser

MAX_BITS = 200_000
MAX_LENGTH = 900  # characters of one expression
MAX_DIGITS = 4000  # looked at before summands that cancel are taken for zero
NUM_POINTS = 8
MIN_DIGITS = 6  # of a decimal that may stand for a number without a finite decimal form
_INTEGER_NAMES = set("ijklmnN")


class UnreadableError(Exception):
    """An expression that the parser does not read."""


class TooLargeError(Exception):
    """An expression whose value has too many digits."""


@functools.lru_cache(maxsize=4096)
def parsed(latex: str) -> Any:
    """The sympy expression of LaTeX in the one spelling, unevaluated.

    Raises:
        UnreadableError: the parser refuses it, or it is longer than `MAX_LENGTH`.
    """
    if len(latex) > MAX_LENGTH:
        raise UnreadableError("too long")
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    try:
        expression = latex2sympy(
            for_parser(latex), is_real=True, normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )  # fmt: skip
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(str(error).split("\n")[0]) from error
    if not isinstance(expression, sympy.Expr):
        raise UnreadableError("no expression")
    return _settled(expression) if bits(expression) <= MAX_BITS else expression


def _settled(expression: Any) -> Any:
    """Decimals as exact fractions, i as the imaginary unit, applied unknown functions as symbols."""
    import sympy
    from sympy.core.function import AppliedUndef

    replaced: dict[Any, Any] = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    for call in expression.atoms(AppliedUndef):
        replaced[call] = sympy.Symbol(f"call {call}", real=True)
    for symbol in expression.free_symbols:
        if symbol.name == "i":
            replaced[symbol] = sympy.I
    for power in expression.atoms(sympy.Pow):
        base, exponent = power.args
        if exponent.is_Rational and exponent.q % 2 == 1 and exponent.q > 1 and _is_negative(base):
            replaced[power] = (-1) ** exponent.p * (-base) ** exponent  # the real root, as at school
    return expression.xreplace(replaced) if replaced else expression


def _is_negative(expression: Any) -> bool:
    return bool(expression.is_number and bits(expression) < 4096 and expression.is_negative)


def bits(expression: Any) -> float:
    """An upper bound for the bits that the largest number on the way to the value takes; inf where it is unknown."""
    import sympy

    if expression.is_Rational:
        return max(int(expression.p).bit_length(), int(expression.q).bit_length())
    if not expression.args:
        return 64.0 if expression.is_Float else 2.0
    parts: list[float] = [bits(argument) if isinstance(argument, sympy.Basic) else 2.0 for argument in expression.args]
    if isinstance(expression, sympy.Pow | sympy.exp) and not expression.free_symbols:
        exponent = expression.exp
        size = _magnitude(exponent)
        return max(parts[0] if isinstance(expression, sympy.Pow) else 2.0, 1.0) * max(size, 1.0) + max(parts)
    if isinstance(expression, sympy.Pow | sympy.exp) and expression.exp.is_Rational:
        return max(parts) + _magnitude(expression.exp) * (2000 if isinstance(expression.base, sympy.Add) else 10)
    if isinstance(expression, sympy.factorial | sympy.binomial | sympy.gamma) and not expression.free_symbols:
        size = _magnitude(expression.args[0])
        return max(max(parts), size * math.log2(size + 2))
    if isinstance(expression, sympy.Product | sympy.Sum):
        return max(parts) + _length(expression) * 64
    if isinstance(expression, sympy.Mul | sympy.Add):
        return sum(parts)
    return max(parts)


def _magnitude(expression: Any) -> float:
    """The absolute value of a number as a float, inf where it is too large to say."""
    if bits(expression) > 4096:
        return math.inf
    try:
        return abs(complex(expression.evalf(15)))
    except (TypeError, ValueError, OverflowError):
        return math.inf


def _length(expression: Any) -> float:
    """How many terms a product or sum has that must be written out."""
    import sympy

    name, lower, upper = expression.limits[0]
    if upper.is_infinite or upper.free_symbols:
        return 0.0
    if isinstance(expression, sympy.Sum) and _is_polynomial(expression.function, name):
        return 0.0  # it has a closed form
    return abs(_magnitude(upper) - _magnitude(lower))


def _is_polynomial(expression: Any, name: Any) -> bool:
    return bool(expression.is_polynomial(name))


def check_size(expression: Any) -> None:
    """Refuses what cannot be evaluated in reasonable time.

    Raises:
        TooLargeError: always with the same text.
    """
    if bits(expression) > MAX_BITS:
        raise TooLargeError("a number has too many digits")


def as_expression(value: Any) -> Any:
    """A sympy number for a Fraction; expressions stay."""
    import sympy

    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def equal(one: Any, other: Any) -> bool:
    """Whether two expressions are equal: as numbers, or as functions of their symbols over the reals.

    Raises:
        TooLargeError: when one of them cannot be evaluated and they are not the same.
    """
    if _is_undefined(one) or _is_undefined(other):
        return False
    if one == other:
        return True
    check_size(one)
    check_size(other)
    if one.is_Rational and other.is_Rational:
        return False
    one, other = _done(one), _done(other)
    if one == other:
        return not _is_undefined(one)
    if not one.free_symbols and not other.free_symbols:
        return equal_numbers(one, other)
    return _equal_functions(one, other)


def _is_undefined(expression: Any) -> bool:
    import sympy

    if expression.has(sympy.nan, sympy.zoo):
        return True
    summed = (sympy.Sum, sympy.Product, sympy.Limit, sympy.Integral)
    return bool(expression.has(sympy.oo, -sympy.oo) and not expression.is_infinite and not expression.has(*summed))


def _done(expression: Any) -> Any:
    """The expression with sums, limits and integrals carried out where sympy can."""
    import sympy

    if expression.has(sympy.Sum, sympy.Product, sympy.Limit, sympy.Integral, sympy.Derivative, sympy.UnevaluatedExpr):
        return expression.doit()
    return expression


def equal_numbers(one: Any, other: Any) -> bool:
    """Whether two numbers agree relatively, to more digits than either is written with.

    Exactly where both are rational.
    """
    import sympy

    one, other = sympy.sympify(one), sympy.sympify(other)
    if one.is_infinite or other.is_infinite:
        return bool(one == other)
    precision = 60 + int(max(bits(one), bits(other)) * 0.31)
    values = [_value(expression, precision) for expression in (one, other)]
    if any(value is None for value in values):
        return bool(one.is_Rational and other.is_Rational and one == other)
    (first, first_exact), (second, second_exact) = values
    if first_exact is not None and second_exact is not None:
        return first_exact == second_exact
    scale = max(abs(first), abs(second))
    return bool(scale == 0 or abs(first - second) <= scale * sympy.Float(10, 20) ** (15 - precision))


def _value(expression: Any, precision: int) -> Any:
    """(numerical value, exact value or None); None where there is none."""
    import sympy

    exact = expression if expression.is_Rational else None
    if exact is None and not expression.has(sympy.I) and _is_arithmetic(expression):
        with sympy.evaluate(True):
            exact = sympy.sympify(expression.doit())
        exact = exact if exact.is_Rational else None
    if exact is not None:
        return exact, exact
    value = expression.evalf(precision, maxn=max(precision * 4, MAX_DIGITS))
    if value.has(sympy.nan, sympy.zoo, sympy.oo) or value.free_symbols or not value.is_number:
        return None
    if abs(value) < sympy.Float(10, 20) ** -precision and all(number._prec <= 4 for number in value.atoms(sympy.Float)):
        return sympy.Integer(0), sympy.Integer(0)  # summands that cancel, and no digit could be found: it is zero
    return value, None


def _is_arithmetic(expression: Any) -> bool:
    """Whether it is made of rational numbers, sums, products, integer powers and factorials alone."""
    import sympy

    kinds = (sympy.Add, sympy.Mul, sympy.Pow, sympy.factorial, sympy.binomial, sympy.floor, sympy.ceiling, sympy.Abs,
             sympy.Mod, sympy.Max, sympy.Min)  # fmt: skip
    return expression.is_Rational or (isinstance(expression, kinds) and all(map(_is_arithmetic, expression.args)))


def agrees_with_decimal(exact: Any, decimal: Fraction, digits: int) -> bool:
    """Whether a number without a finite decimal form rounds to a decimal that has at least `MIN_DIGITS` digits."""
    import sympy

    if digits < MIN_DIGITS:
        return False
    exact = sympy.sympify(exact)
    if exact.is_Rational and set(sympy.factorint(exact.q)) <= {2, 5}:
        return False
    check_size(exact)
    value = exact.evalf(digits + 20)
    if not value.is_Float or decimal == 0:
        return False
    leading = math.floor(math.log10(abs(decimal)))
    return bool(
        abs(sympy.Rational(str(value)) - as_expression(decimal))
        <= sympy.Rational(1, 2) * sympy.Integer(10) ** (leading - digits + 1)
    )


def _equal_functions(one: Any, other: Any) -> bool:
    """Agreement at random real points where both are defined over the reals; at integers for functions of integers."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    generator = random.Random(0)
    agreed = 0
    for number in range(NUM_POINTS * 3):
        # Even ones are positive, the first odd one negative, the others mixed.
        choices = (1,) if number % 2 == 0 else (-1,) if number == 1 else (-1, 1)
        signs = [generator.choice(choices) for _ in symbols]
        point = {symbol: _random_rational(generator) * sign for symbol, sign in zip(symbols, signs, strict=True)}
        same = _same_at(point, one, other)
        if same is False:
            return _needs_integers(one, other) and _equal_at_integers(one, other, symbols)
        agreed += bool(same)
        if agreed >= NUM_POINTS:
            break
    if agreed == 0 and not _needs_integers(one, other):
        return _equal_symbolically(one, other)
    if agreed >= 3 and not (one.has(*_steps()) or other.has(*_steps())):
        return True
    return (agreed >= 3 or _needs_integers(one, other)) and _equal_at_integers(one, other, symbols)


def _equal_symbolically(one: Any, other: Any) -> bool:
    """math-verify's comparison, where no point says anything: nothing is real, or a sum has no value."""
    from math_verify import verify

    return verify(one, other, timeout_seconds=None)


def _random_rational(generator: random.Random) -> Any:
    import sympy

    return sympy.Rational(generator.randrange(101, 4999), 1009)


def _same_at(point: dict, one: Any, other: Any) -> bool | None:
    """Whether two expressions agree at a point; None where one is not defined there."""
    import sympy

    values = [_real_value(expression, point) for expression in (one, other)]
    if any(value is None for value in values):
        return None
    (first, first_size), (second, second_size) = values
    scale = max(abs(first), abs(second))
    if scale <= max(first_size, second_size) * sympy.Float("1e-30"):
        return True  # both are what is left of summands that cancel: zero
    return bool(abs(first - second) <= scale * sympy.Float("1e-20"))


def _real_value(expression: Any, point: dict) -> Any:
    """(value, size of its largest summand) at a point; None where a part is not real, unless i stands in it."""
    import sympy

    placed = expression.xreplace(point)
    value = placed.evalf(40)
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    # The parts as they were written: placed, the root of -2 is already i times that of 2.
    parts = () if expression.has(sympy.I) else expression.atoms(sympy.Pow, sympy.log, sympy.asin, sympy.acos)
    for part in parts:
        inner = part.xreplace(point).evalf(15)
        if inner.is_number and abs(sympy.im(inner)) > 1e-9:
            return None
    summands = [abs(summand.evalf(15)) for summand in sympy.Add.make_args(placed)]
    return value, max([abs(value), *summands])


def _steps() -> tuple:
    import sympy

    return sympy.floor, sympy.ceiling, sympy.Mod


def _needs_integers(one: Any, other: Any) -> bool:
    """Whether the expressions have powers of -1, floors, factorials or periods in what is named like an integer."""
    import sympy

    names = {symbol.name for symbol in one.free_symbols | other.free_symbols}
    return names <= _INTEGER_NAMES and any(
        expression.has(*_steps(), sympy.cos, sympy.sin, sympy.factorial, sympy.binomial)
        or any(power.base.is_negative for power in expression.atoms(sympy.Pow))
        for expression in (one, other)
    )


def _equal_at_integers(one: Any, other: Any, symbols: list) -> bool:
    """Agreement at every integer of a range where both are defined; functions with steps jump there."""
    import sympy

    generator = random.Random(1)
    results = []
    for number in range(1, 25):
        values = [sympy.Integer(number + 3 * generator.randrange(4) * index) for index in range(len(symbols))]
        results.append(_same_at(dict(zip(symbols, values, strict=True)), one, other))
    return False not in results and results.count(True) >= 12
