r"""From the text of an answer to what it says.

`read` takes an answer apart by what stands outside of all brackets. What it cannot read is None, never a part of it.
"""

import functools
import re

from . import sets
from .forms import Collection, Form, Literal, Matrix, Named, NotReadableError, Region, Relation
from .notation import normalized
from .quantities import Quantity, quantity, without_thousands
from .relations import OPERATORS, relation
from .spans import balanced, depth, enclosed, split
from .words import based, congruence, ratio, words

MAX_DEPTH = 20  # of brackets: nobody answers with more, and each costs the parser a tenth of a second
MAX_LENGTH = 4000  # characters of an answer
MAX_ITEMS = 200

_ENVIRONMENT = re.compile(
    r"(-?\s*(?:\d+(?:\.\d+)?|[A-Za-z]|\\frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}|\\(?!begin)[A-Za-z]+)?)\s*(?:\\cdot\s*)?"
    r"\\begin\{([a-zA-Z]*matrix\*?|cases|array|aligned|align\*?)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\{\2\}"
    r"\s*(\^\s*\{?\s*(?:T|\\top)\s*\}?)?",
    re.DOTALL,
)
_KINDS = {"v": "determinant", "V": "determinant", "c": "cases", "a": "cases"}
_SPACE_BETWEEN = re.compile(r"\\(?:quad|qquad)(?![A-Za-z])")
_JOINED = re.compile(r"\\text\{\s*[,;]?\s*(or|and)\s*\}|(?<![A-Za-z\\{])(or|and)(?![A-Za-z}])")


class TooDeepError(Exception):
    """An answer with deeper nesting than anybody writes."""


def read(text: str) -> Form | None:
    """What an answer says; None where it is nothing that can be read.

    Args:
        text: as it stands in a box or a data set.

    Raises:
        TooDeepError: more than `MAX_DEPTH` nested brackets.
    """
    if depth(text) > MAX_DEPTH:
        raise TooDeepError("is nested too deeply")
    return None if len(text) > MAX_LENGTH else form(normalized(text))


def form(text: str) -> Form | None:
    """What a text in the one spelling says; None where it is nothing that can be read."""
    text = _bare(text)
    readers = (based, congruence, functools.partial(words, form=form), _environment, _conjunction, _items, _operation,
               _relation, _bracketed, _plus_minus, ratio)  # fmt: skip
    try:
        if text == r"\emptyset":
            return Region(())
        if (named := sets.named(text)) is not None:
            return Region(named)
        if re.fullmatch(r"\\mathbb\{[A-Z]\}(?:[_^]\{?[^{}]*\}?)?", text):
            return Literal("set", text)
        found = (reader(text) for reader in readers) if text else iter(())
        return next((result for result in found if result is not None), None) or _single(text)
    except NotReadableError:
        return None


def _bare(text: str) -> str:
    text = text.strip()
    while (inside := enclosed(text)) is not None and inside[0] == "{":
        text = inside[1]
    if re.fullmatch(r"\][^\[\]]*,[^\[\]]*[\[\]]|[\[\]][^\[\]]*,[^\[\]]*\[", text):
        text = re.sub(r"\[$", ")", re.sub(r"^\]", "(", text))  # ]0, 1[ is open
    return re.sub(r"^(?:\\(?:quad|qquad|to|therefore)(?![A-Za-z])\s*|=\s*)+", "", text).strip()


def _read_all(pieces: list[str]) -> list[Form]:
    """What each piece says; a list within them is spread."""
    forms: list[Form] = []
    for piece in pieces:
        found = form(piece)
        if found is None:
            raise NotReadableError(piece)
        forms += found.items if isinstance(found, Collection) and found.kind == "list" else (found,)
    return forms


def _environment(text: str) -> Form | None:
    match = _ENVIRONMENT.fullmatch(text)
    if not match:
        return None
    kind = "matrix" if match[2] == "array" else _KINDS.get(match[2][0], "matrix")
    body = re.sub(r"\\\\\s*\[[^\]]*\]|\\cr(?![A-Za-z])", r"\\\\", match[3])
    rows = [[re.sub(r"^,|,$", "", cell) for _, cell in split(row, {"&"})] for _, row in split(body, {r"\\"}) if row]
    factor = f"{match[1]}1" if match[1] == "-" else match[1]
    if factor:
        rows = [[rf"({factor})\cdot ({cell})" for cell in row] for row in rows]
    cells = tuple(tuple(form(cell) for cell in row) for row in rows)
    unreadable = not cells or any(cell is None for row in cells for cell in row)
    if unreadable or ((factor or match[4]) and kind != "matrix") or len({len(row) for row in cells if match[4]}) > 1:
        raise NotReadableError("a matrix with a cell that cannot be read, or one that cannot be calculated with")
    cells = tuple(zip(*cells, strict=True)) if match[4] else cells
    if kind == "cases" and all(len(row) == 1 for row in cells):
        return Collection("list", tuple(row[0] for row in cells if row[0] is not None))
    return Matrix(kind, tuple(tuple(cell for cell in row if cell is not None) for row in cells))


def _conjunction(text: str) -> Form | None:
    r"""x > 2 or x < -2 is a union, x > 2 and x < 5 an intersection, "1, 2 and 3" a list."""
    joined = _JOINED.sub(lambda match: f" \\{match[1] or match[2]}word ", text)
    pieces = [(before, piece.strip(" ,;")) for before, piece in split(joined, {r"\orword", r"\andword"})]
    if "word " not in joined or len(pieces) < 2:
        if "word " in joined:
            raise NotReadableError("alternatives within brackets")
        return None
    forms = [form(piece) for _, piece in pieces if piece]
    regions = [item for item in forms if isinstance(item, Region)]
    names = {item.name for item in regions if item.name}
    if names and len(regions) == len(forms):
        combine = sets.intersection if any(before == r"\andword" for before, _ in pieces) else sets.union
        parts = combine([item.parts for item in regions])
        if parts is None or len(names) > 1:
            raise NotReadableError("conditions that cannot be joined")
        return Region(parts, names.pop())
    if any(isinstance(item, Relation) and item.operator != "=" for item in forms):
        raise NotReadableError("conditions that cannot be joined")
    return _listed([piece for _, piece in pieces if piece])


def _items(text: str) -> Form | None:
    r"""What is separated by commas, semicolons or \quad; 1,234 is a number."""
    text = without_thousands(text)
    pieces = split(_SPACE_BETWEEN.sub(";", text), {";"})
    if len(pieces) == 1:
        pieces = split(text, {","})
    if len(pieces) == 1:
        return None
    return _listed([piece for _, piece in pieces])


def _listed(pieces: list[str]) -> Form:
    if r"\ldots" in pieces:
        return Literal("open list", re.sub(r"\s|\\cdot", "", ",".join(pieces)))
    forms = _with_shared_name(_read_all([piece for piece in pieces if piece][: MAX_ITEMS + 1]))
    if not forms or len(forms) > MAX_ITEMS:
        raise NotReadableError("nothing, or too much")
    regions = [item for item in forms if isinstance(item, Region)]
    if len(forms) > 1 and len(regions) == len(forms):
        return _regions(regions)
    return Collection("list", tuple(forms)) if len(forms) > 1 else forms[0]


def _with_shared_name(forms: list[Form]) -> list[Form]:
    """x = 5, 6 says that both are values of x."""
    first = forms[0] if forms else None
    if isinstance(first, Named) and not any(isinstance(item, Named) for item in forms[1:]):
        return [first, *(Named(first.name, item) for item in forms[1:])]
    return forms


def _regions(items: list[Region]) -> Form:
    """Conditions on one variable side by side hold together; pairs stay pairs, other intervals are a union."""
    if all(len(item.parts) == 1 and item.parts[0].is_pair for item in items) or len({item.name for item in items}) > 1:
        return Collection("list", tuple(items))
    regions = [item.parts for item in items]
    parts = (sets.intersection(regions) if items[0].name else None) or sets.union(regions)  # x < 1, x > 3
    if parts is None:
        raise NotReadableError("regions that cannot be joined")
    return Region(parts, items[0].name)


def _operation(text: str) -> Form | None:
    r"""A \cup B, A \cap B, A \setminus B of sets and intervals, from left to right."""
    pieces = split(text, {r"\cup", r"\cap", r"\setminus"})
    if len(pieces) == 1:
        return None
    first = re.sub(r"^.*(?:\\in(?![A-Za-z])|=)", "", pieces[0][1])
    forms = [form(piece) for piece in (first, *(piece for _, piece in pieces[1:]))]
    operators = [before for before, _ in pieces[1:]]
    members = [item.items for item in forms if isinstance(item, Collection) and item.kind == "set"]
    if len(members) == len(forms) and set(operators) == {r"\cup"}:
        return Collection("set", tuple(member for items in members for member in items))
    result = _parts(forms[0])
    for operator, other in zip(operators, forms[1:], strict=True):
        combine = {r"\cup": sets.union, r"\cap": sets.intersection, r"\setminus": sets.difference}[operator]
        combined = combine([result, _parts(other)])
        if combined is None:
            raise NotReadableError("sets that cannot be joined")
        result = combined
    return Region(result)


def _parts(item: Form | None) -> tuple[sets.Span, ...]:
    """The intervals of a region, or the points of a finite set."""
    if isinstance(item, Region):
        return item.parts
    points = [member for member in item.items if isinstance(member, Quantity)] if isinstance(item, Collection) else []
    if not isinstance(item, Collection) or item.kind != "set" or len(points) != len(item.items):
        raise NotReadableError("no set")
    return tuple(sets.Span.point(point.latex) for point in points)


def _relation(text: str) -> Form | None:
    pieces = split(text, {*OPERATORS, r"\in", r"\notin"})
    if len(pieces) == 1:
        return None
    return relation([OPERATORS.get(before, before) for before, _ in pieces[1:]], [piece for _, piece in pieces], form)


def _bracketed(text: str) -> Form | None:
    inside = enclosed(text)
    if inside is None:
        return None
    opening, content, closing = inside
    if opening == r"\{" and closing == r"\}":
        return _set(content)
    items = [piece for _, piece in split(_SPACE_BETWEEN.sub("", content), {",", ";"})]
    if (opening == r"\langle") != (closing == r"\rangle") or not all(items):
        raise NotReadableError("brackets with nothing in them")
    if r"\ldots" in items:
        return Literal("open list", re.sub(r"\s", "", text))
    square = (opening == "[", closing == "]")
    forms = [form(item) for item in items]
    known = [item for item in forms if item is not None]
    if len(known) < len(items) or (len(items) == 1 and square[0] != square[1]):
        raise NotReadableError("brackets with what cannot be read")
    if len(known) == 1:
        return known[0]
    first, second = known[:2]
    if len(known) == 2 and opening in "([" and isinstance(first, Quantity) and isinstance(second, Quantity):
        return Region((sets.Span(first.latex, square[0], second.latex, square[1], first, second),))
    if square[0] != square[1]:
        raise NotReadableError("half-open brackets around more than two")
    return Collection("array" if square[0] else "tuple", tuple(known))


def _set(content: str) -> Form:
    r"""\{1, 2\}, or the region that a condition says: \{x \mid x > 2\}."""
    for separator in (r"\mid", "|", ":"):
        pieces = split(content, {separator})
        if len(pieces) == 2 and re.fullmatch(r"[A-Za-z](?:\s*\\in\s*\\mathbb\{R\})?", pieces[0][1]):
            condition = form(pieces[1][1])
            if not isinstance(condition, Region):
                raise NotReadableError("a condition that is no region")
            return condition
        if len(pieces) == 2 and separator == r"\mid":
            return Literal("set", re.sub(r"\s", "", content))
    items = [piece for _, piece in split(content, {",", ";"}) if piece]
    if r"\ldots" in items:
        return Literal("open list", re.sub(r"\s", "", ",".join(items)))
    return Collection("set", tuple(_read_all(items))) if items else Region(())


def _plus_minus(text: str) -> Form | None:
    r"""3 \pm 2 says two numbers."""
    if not re.search(r"\\[pm]{2}(?![A-Za-z])", text):
        return None
    upper = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", text))
    return Collection("list", tuple(_read_all([re.sub(r"^\s*\+\s*", "", piece) for piece in (upper, lower)])))


def _single(text: str) -> Form | None:
    if not balanced(text):
        return None
    if r"\ldots" in text:
        return Literal("open list", re.sub(r"\s", "", text))
    found = quantity(without_thousands(text))
    if re.fullmatch(r"[-+/^_.,:!?|\s]*", found.latex) or re.search(
        r"\\(?:begin|end|cup|cap|mid)(?![A-Za-z])|[&;?]|\d'", text
    ):
        return None
    return None if len(split(found.latex, {","})) > 1 else found
