r"""What an answer can be: a quantity, words, a collection, a region of the line, a relation, a matrix, a ratio."""

from dataclasses import dataclass

from .quantities import Quantity
from .sets import Span


class NotReadableError(Exception):
    """A text of a known kind that cannot be read: no other reader should try, and no part of it is the answer."""


@dataclass(frozen=True)
class Words:
    """Words, in lower case unless it is one letter; `rest` is what follows a choice: (B) 12."""

    text: str
    rest: "Form | None" = None


@dataclass(frozen=True)
class Collection:
    """Several answers.

    Attributes:
        kind: "list" (without brackets, in any order), "set", "tuple" (in order; round or angle brackets, or a vector)
            or "array" (in order, square brackets).
        items: in the order in which they were written.
    """

    kind: str
    items: tuple["Form", ...]


@dataclass(frozen=True)
class Region:
    """A union of intervals of the real line; `name` is the variable of an inequality, "" where there is none."""

    parts: tuple[Span, ...]
    name: str = ""


@dataclass(frozen=True)
class Named:
    """A value with a name: x = 5, f(x) = 2x."""

    name: str
    value: "Form"


@dataclass(frozen=True)
class Relation:
    """Two sides that are no name and value; `operator` is "=", "<", "<=", "!=" or another command."""

    operator: str
    left: str
    right: str


@dataclass(frozen=True)
class Chain:
    r"""Constants that are said to be equal, and all must be: 2*3 = 6, \frac{1}{3} \approx 0.333."""

    sides: tuple[Quantity, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; `kind` is "matrix", "determinant" or "cases" (in any order)."""

    kind: str
    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True)
class Literal:
    """What is equal only as it is written: a time (10:30), a number in a base (101_2), a list that goes on."""

    kind: str
    text: str
    unit: str = ""


@dataclass(frozen=True)
class Ratio:
    """1:2:3, equal up to a common factor."""

    terms: tuple[Quantity, ...]


Form = Quantity | Words | Collection | Region | Named | Relation | Chain | Matrix | Literal | Ratio
