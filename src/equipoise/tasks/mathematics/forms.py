r"""What an answer is: a quantity, words, a collection, a region of the line, a relation, a matrix, a ratio.

`read` takes an answer apart by what stands outside of all brackets; what it cannot read is None, never a part of it.
"""

import re
from dataclasses import dataclass

from . import sets
from .notation import normalized
from .quantities import Quantity, quantity, without_thousands
from .spans import balanced, depth, enclosed, split, tokens

MAX_DEPTH = 30  # of brackets: deeper nesting only costs the parser time
MAX_LENGTH = 4000  # characters of an answer
MAX_ITEMS = 200
MAX_WORDS = 8  # longer texts are no answer that somebody would give in the same words


class TooDeepError(Exception):
    """An answer with deeper nesting than anybody writes."""


@dataclass(frozen=True)
class Words:
    """Words, in lower case unless it is one letter; `rest` is what follows a choice: (B) 12."""

    text: str
    rest: "Form | None" = None


@dataclass(frozen=True)
class Collection:
    """Several answers.

    Attributes:
        kind: "list" (without brackets, in any order), "set", "tuple" (in order; round, angle brackets, or a vector) or
            "array" (in order, square brackets).
        items: in the order in which they were written.
    """

    kind: str
    items: tuple["Form", ...]


@dataclass(frozen=True)
class Region:
    """A union of intervals of the real line; `name` is the variable of an inequality, "" where there is none."""

    parts: tuple[sets.Span, ...]
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
    """Constants said to be equal, all of which must be: 2*3 = 6; `rounded` where \\approx stands between them."""

    sides: tuple[Quantity, ...]
    rounded: bool = False


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; `kind` is "matrix", "determinant" or "cases" (in any order)."""

    kind: str
    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True)
class Literal:
    """What is equal only as it is written: a time (10:30), a number in a base (101_2), an open-ended list."""

    kind: str
    text: str
    unit: str = ""


@dataclass(frozen=True)
class Ratio:
    """1:2:3, equal up to a common factor."""

    terms: tuple[Quantity, ...]


Form = Quantity | Words | Collection | Region | Named | Relation | Chain | Matrix | Literal | Ratio

_ENVIRONMENT = re.compile(
    r"(-?)\s*\\begin\{([a-zA-Z]*matrix\*?|cases|array|aligned|align\*?)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\{\2\}", re.DOTALL
)
_LIKE_WORDS = re.compile(r"[A-Za-z]{4,}")
_EMPTY = {"no solution", "no real solution", "no solutions", "no real solutions", "empty set", "the empty set", "none exist"}
_REALS = {"all real numbers", "all reals", "all real", "r", "the real numbers", "real numbers", "any real number"}
_SPOKEN = re.compile(r"^(?:so |thus |therefore |hence )?(?:the )?(?:final |correct )?(?:answer|choice|option)(?: is|:)?:?\s*")
_RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\equiv": "==",
              r"\to": "->", r"\mapsto": "->"}  # fmt: skip
_NAME = re.compile(
    r"(?:(?:\\(?:angle|triangle|Delta|measuredangle|operatorname|widehat)\s*)?"
    r"(?:\\[A-Za-z]+|[A-Za-z]+|\\text\{[^{}]*\}|\|\s*[A-Z]{2}\s*\||\\(?:overline|vec|bar|hat|dot|ddot)\{[^{}]*\})\s*(?:[A-Z]\s*){0,4}"
    r"(?:_\{[^{}]*\}|_\w|_\\[a-z]+)?\s*(?:[A-Z](?:_\{?\w\}?)?\s*)?'*(?:\^\{?(?:-1|\\ast|\*|')\}?)?\s*"
    r"(?:\([^()]*(?:\([^()]*\))?[^()]*\))?|\\frac\{\s*d[^{}]*(?:\{[^{}]*\})*[^{}]*\}\{\s*d[^{}]*(?:\{[^{}]*\})?\s*\}"
    r"(?:\([^()=]*\))?)"
)


def read(text: str) -> Form | None:
    """What an answer says; None where it is nothing that can be read.

    Args:
        text: as it stands in a box or a data set.

    Raises:
        TooDeepError: more than `MAX_DEPTH` nested brackets.
    """
    if depth(text) > MAX_DEPTH:
        raise TooDeepError("is nested too deeply")
    if len(text) > MAX_LENGTH:
        return None
    return form(normalized(text))


def form(text: str) -> Form | None:
    """What a text in the one spelling says."""
    text = _bare(text)
    if not text:
        return None
    if text == r"\emptyset":
        return Region(())
    if text.startswith(r"\mathbb") and (named := sets.named(text)) is not None:
        return Region(named)
    for reader in (_based, _words, _environment, _conjunction, _items, _setminus_or_union, _relation, _bracketed,
                   _plus_minus, _ratio):  # fmt: skip
        found = reader(text)
        if found is not None:
            return None if found == () else found
    return _single(text)


def _bare(text: str) -> str:
    text = text.strip()
    while (inside := enclosed(text)) is not None and inside[0] == "{":
        text = inside[1]
    return re.sub(r"^(?:\\(?:quad|qquad|to|therefore)(?![A-Za-z])\s*|=\s*)+", "", text).strip()


def _words(text: str) -> Form | None:
    r"""\text{Monday}, even, \text{(B)}, (C) 12, no solution."""
    spoken = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    choice = re.fullmatch(r"\(?\s*\\text\{\(?\s*([A-Z])\s*[.):]*\s*\}\s*\)?[.:]?\s*(.*)|\(([A-Z])\)\s*(.*)", text)
    if choice:
        letter, rest = choice[1] or choice[3], (choice[2] or choice[4] or "").strip()
        return Words(letter, form(rest) if rest else None) if not rest or rest[0] not in r"_^=(" else None
    if "\\" in spoken.replace(r"\ldots", "") or re.search(r"[=<>_^{}]", spoken) or not re.search("[A-Za-z]{2}", spoken):
        return None
    if not (r"\text" in text or _LIKE_WORDS.search(text) or re.search(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}", text)):
        return None
    if re.match(r"[-+(\[.\d]|\\text\{\s*[-+]?\d", text) and not re.search(r"[a-z]{3,}\s*[,.]?\s*\d", text) and "," not in text:
        return None  # a number with a unit
    if re.search(r"(^|[,;\s])-?\d+(\.\d+)?\s*([,;]|and|or)", spoken) or re.search(r"[+*/]|\d:\d", spoken):
        return None
    if not re.sub(r"\b(?:and|or)\b|[^A-Za-z]", "", spoken):
        return None
    return _said(spoken)


def _said(spoken: str) -> Form | None:
    plain = re.sub(r"[\s()\"'.:]+$|^[\s()\"':]+", "", spoken)
    plain = " ".join(plain.split())
    lowered = _SPOKEN.sub("", plain.lower())
    several = [piece for piece in re.split(r"\s*,\s*(?:and\s+|or\s+)?|\s+and\s+", _SPOKEN.sub("", plain)) if piece]
    if len(several) > 1 and all(len(piece.split()) == 1 for piece in several):
        return Collection("list", tuple(Words(piece if len(piece) == 1 else piece.lower()) for piece in several))
    if len(lowered.split()) > MAX_WORDS:
        return None
    if lowered in _EMPTY or lowered in ("no real solution", "no solution"):
        return Region(())
    if lowered in _REALS:
        return Region(sets.REALS)
    if len(lowered) == 1:
        return Words(plain[-1])
    if re.fullmatch(r"-?\d+(\.\d+)?", lowered):
        return quantity(lowered)
    return Words(re.sub(r"^(?:the|an?) ", "", lowered)) if lowered else None


def _environment(text: str) -> Form | None:
    match = _ENVIRONMENT.fullmatch(text)
    if not match:
        return None
    kind = {"v": "determinant", "V": "determinant", "c": "cases", "a": "cases"}.get(match[2][0], "matrix")
    kind = "matrix" if match[2] == "array" else kind
    rows = [row for row in split_rows(match[3]) if row.strip()]
    cells = tuple(tuple(form(cell) for cell in split_cells(row)) for row in rows)
    if match[1] or any(cell is None for row in cells for cell in row) or not cells:
        return ()  # type: ignore[return-value]
    if kind == "cases" and all(len(row) == 1 for row in cells):
        return Collection("list", tuple(row[0] for row in cells))  # type: ignore[misc]
    return Matrix(kind, cells)  # type: ignore[arg-type]


def split_rows(body: str) -> list[str]:
    r"""The rows of a matrix: what stands between \\."""
    return [row for _, row in split(re.sub(r"\\\\\s*\[[^\]]*\]|\\cr(?![A-Za-z])", r"\\\\", body), {"\\\\"})]


def split_cells(row: str) -> list[str]:
    """The cells of a row."""
    return [re.sub(r"^,|,$", "", cell) for _, cell in split(row, {"&"})]


def _conjunction(text: str) -> Form | None:
    r"""x > 2 or x < -2 is a union, x > 2 and x < 5 an intersection, "1, 2 and 3" a list."""
    joined = re.sub(r"\\text\{\s*[,;]?\s*(or|and)\s*\}|(?<![A-Za-z\\{])(or|and)(?![A-Za-z}])", lambda m: f" \\{m[1] or m[2]}word ", text)
    if "word " not in joined:
        return None
    pieces = [(before, piece.strip(" ,;")) for before, piece in split(joined, {r"\orword", r"\andword"})]
    if len(pieces) < 2:
        return ()  # type: ignore[return-value]
    forms = [form(piece) for _, piece in pieces if piece]
    if forms and all(isinstance(item, Region) for item in forms) and any(item.name for item in forms):  # type: ignore[union-attr]
        combine = sets.intersection if any(before == r"\andword" for before, _ in pieces) else sets.union
        names = {item.name for item in forms if isinstance(item, Region) and item.name}
        parts = combine([item.parts for item in forms if isinstance(item, Region)])
        return () if parts is None or len(names) > 1 else Region(parts, next(iter(names), ""))  # type: ignore[return-value]
    if any(isinstance(item, Region | Relation) and not isinstance(item, Region) and item.operator != "=" for item in forms):
        return ()  # type: ignore[return-value]
    return _listed([piece for _, piece in pieces if piece])


def _items(text: str) -> Form | None:
    r"""What is separated by commas, semicolons or \quad; 1,234 is a number."""
    text = without_thousands(text)
    pieces = split(re.sub(r"\\(?:quad|qquad)(?![A-Za-z])", ";", text), {";"})
    if len(pieces) == 1:
        pieces = split(text, {","})
    if len(pieces) == 1 or len(pieces) > MAX_ITEMS:
        return None if len(pieces) == 1 else ()  # type: ignore[return-value]
    return _listed([piece for _, piece in pieces])


def _listed(pieces: list[str]) -> Form | None:
    if r"\ldots" in pieces:
        return Literal("open list", re.sub(r"\s|\\cdot", "", ",".join(pieces)))
    forms: list[Form | None] = []
    for piece in pieces:
        if not piece:
            continue
        found = form(piece)
        inner = found.items if isinstance(found, Collection) and found.kind == "list" else (found,)
        forms += inner
    if any(item is None for item in forms) or not forms:
        return ()  # type: ignore[return-value]
    spread = tuple(_with_shared_name(forms))  # type: ignore[arg-type]
    if len(spread) > 1 and all(isinstance(item, Region) for item in spread):
        return _regions(spread)
    return Collection("list", spread) if len(spread) > 1 else spread[0]


def _with_shared_name(forms: list[Form]) -> list[Form]:
    """x = 5, 6 says that both are values of x."""
    first = forms[0]
    if isinstance(first, Named) and len(forms) > 1 and not any(isinstance(item, Named) for item in forms[1:]):
        return [first, *(Named(first.name, item) for item in forms[1:])]
    return forms


def _regions(items: tuple) -> Form | None:
    """Conditions on one variable side by side: pairs stay pairs, other intervals are a union."""
    if all(len(item.parts) == 1 and item.parts[0].is_pair for item in items) or len({item.name for item in items}) > 1:
        return Collection("list", items)
    if any(item.name for item in items):
        parts = sets.intersection([item.parts for item in items])
        return () if parts is None else Region(parts, items[0].name)  # type: ignore[return-value]
    parts = sets.union([item.parts for item in items])
    return () if parts is None else Region(parts)  # type: ignore[return-value]


def _setminus_or_union(text: str) -> Form | None:
    r"""A \cup B, A \cap B, A \setminus B of sets and intervals, from left to right."""
    pieces = split(text, {r"\cup", r"\cap", r"\setminus"})
    if len(pieces) == 1:
        return None
    pieces[0] = (pieces[0][0], re.sub(r"^.*(?:\\in(?![A-Za-z])|=)", "", pieces[0][1]))
    forms = [form(piece) for _, piece in pieces]
    if all(isinstance(item, Collection) and item.kind == "set" for item in forms) and all(b != r"\setminus" for b, _ in pieces):
        if any(before == r"\cap" for before, _ in pieces):
            return ()  # type: ignore[return-value]
        return Collection("set", tuple(member for item in forms for member in item.items))  # type: ignore[union-attr]
    parts = [_parts(item) for item in forms]
    result = parts[0]
    for (operator, _), other in zip(pieces[1:], parts[1:], strict=True):
        if result is None or other is None:
            return ()  # type: ignore[return-value]
        combine = {r"\cup": sets.union, r"\cap": sets.intersection, r"\setminus": sets.difference}[operator]
        result = combine([result, other])
    return () if result is None else Region(result)  # type: ignore[return-value]


def _parts(item: Form | None) -> tuple | None:
    """The intervals of a region, or the points of a finite set."""
    if isinstance(item, Region):
        return item.parts
    if isinstance(item, Collection) and item.kind == "set" and all(isinstance(i, Quantity) for i in item.items):
        return tuple(sets.Span.point(i.latex) for i in item.items if isinstance(i, Quantity))
    return None


def _relation(text: str) -> Form | None:
    from .relations import relation

    pieces = split(text, {*_RELATIONS, r"\in", r"\notin"})
    if len(pieces) == 1:
        return None
    return relation([_RELATIONS.get(before, before) for before, _ in pieces[1:]], [piece for _, piece in pieces], form)


def is_name(text: str) -> bool:
    r"""Whether a side of an equation is a name: x, a_n, f(x), P(A \cap B), m_{\max}, \angle ABC, (a,b), dM/dt."""
    inside = enclosed(text)
    if inside is not None and inside[0] == "(":
        return all(is_name(piece) for _, piece in split(inside[1], {","}))
    if re.match(r"\\(?:sqrt|frac(?!\{\s*d)|binom|pi|infty|sin|cos|tan|ln|log|exp|cdot|left|sum|int|prod|lim)(?![A-Za-z])", text):
        return False
    return bool(_NAME.fullmatch(text)) and text != "e"


def _bracketed(text: str) -> Form | None:
    inside = enclosed(text)
    if inside is None:
        return None
    opening, content, closing = inside
    if opening == r"\{" and closing == r"\}":
        return _set(content)
    if (opening == r"\langle") != (closing == r"\rangle") or not content:
        return ()  # type: ignore[return-value]
    items = [piece for _, piece in split(re.sub(r"\\(?:quad|qquad)(?![A-Za-z])", "", content), {",", ";"})]
    if len(items) == 1:
        return (form(content) or ()) if (opening, closing) in (("(", ")"), ("[", "]")) else ()  # type: ignore[return-value]
    square = (opening == "[", closing == "]")
    if len(items) == 2 and opening in "([" and (square != (False, False) or True) and opening != r"\langle":
        first, second = (form(item) for item in items)
        if isinstance(first, Quantity) and isinstance(second, Quantity):
            return Region((sets.Span(first.latex, square[0], second.latex, square[1], first, second),))
    forms = tuple(form(item) for item in items)
    if any(item is None for item in forms) or square in ((True, False), (False, True)):
        return Literal("open list", re.sub(r"\s", "", text)) if r"\ldots" in items else ()  # type: ignore[return-value]
    return Collection("array" if square[0] else "tuple", forms)  # type: ignore[arg-type]


def _set(content: str) -> Form | None:
    r"""\{1, 2\}, or the region that a condition says: \{x \mid x > 2\}."""
    if not content:
        return Region(())
    for separator in (r"\mid", "|", ":"):
        pieces = split(content, {separator})
        if len(pieces) == 2 and re.fullmatch(r"[A-Za-z](?:\s*\\in\s*\\mathbb\{R\})?", pieces[0][1]):
            condition = form(pieces[1][1])
            return condition if isinstance(condition, Region) else ()  # type: ignore[return-value]
        if len(pieces) == 2 and separator == r"\mid":
            return Literal("set", re.sub(r"\s", "", content))
    items = [piece for _, piece in split(content, {",", ";"}) if piece]
    if r"\ldots" in items:
        return Literal("open list", re.sub(r"\s", "", ",".join(items)))
    forms: list[Form | None] = []
    for item in items:
        found = form(item)
        forms += found.items if isinstance(found, Collection) and found.kind == "list" else (found,)
    return () if any(item is None for item in forms) else Collection("set", tuple(forms))  # type: ignore[return-value, arg-type]


def _plus_minus(text: str) -> Form | None:
    r"""3 \pm 2 says two numbers."""
    if r"\pm" not in text and r"\mp" not in text:
        return None
    upper = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", text))
    both = [form(re.sub(r"^\s*\+\s*", "", piece)) for piece in (upper, lower)]
    return () if None in both else Collection("list", tuple(both))  # type: ignore[return-value, arg-type]


def _ratio(text: str) -> Form | None:
    time = re.fullmatch(r"(\d{1,2}:\d{2}(?::\d{2})?)\s*(?:\\text\{([^{}]*)\}|([ap]\.?\s?m\.?|AM|PM)?)", text)
    if time:
        return Literal("time", time[1].lstrip("0") or "0", (time[2] or time[3] or "").strip())
    pieces = [piece for _, piece in split(text, {":"})]
    if len(pieces) == 1:
        return None
    terms = tuple(quantity(piece) for piece in pieces)
    return () if any(not term.latex for term in terms) else Ratio(terms)  # type: ignore[return-value]


def _based(text: str) -> Form | None:
    r"""A number in a base: 101_2, 12_{5}, 101_{\text{two}}, 2516 \text{ (base 8)}."""
    words = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}  # noqa: E501
    match = re.fullmatch(r"(-?[0-9A-F]*\d[0-9A-F]*|\(\d+\)|\\text\{[0-9A-F]+\})\s*(?:_\s*\{?\s*\(?\s*(\d+|\\text\{\s*(?:base\s*)?(\w+)\s*\})\s*\)?\s*\}?|"
                         r"\\text\{\s*\(?(?:in )?base[- ](\w+)\)?\s*\})", text)  # fmt: skip
    if not match:
        return None
    base = match[4] or match[3] or match[2]
    return Literal("base", re.sub(r"\\text|[{}()]", "", match[1]).lstrip("0"), words.get(base.lower(), base))


def _single(text: str) -> Form | None:
    if not balanced(text) or re.search(r"\\(?:begin|end|cup|cap|in|mid|ldots|to|approx)(?![A-Za-z])|[&;]", text):
        return Literal("open list", re.sub(r"\s", "", text)) if r"\ldots" in text and balanced(text) else None
    found = quantity(without_thousands(text))
    if not found.latex or re.fullmatch(r"[-+/^_.,:!|\s]*", found.latex):
        return None
    if any(token in (",", r"\text") for token, _, level in tokens(found.latex) if level == 0 and token == ","):
        return None
    return found
