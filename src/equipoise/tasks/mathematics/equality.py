r"""When two answers are equal: what each kind of answer must share with the other."""

import itertools
import re
from typing import Any

from . import expressions, sets
from .forms import Chain, Collection, Form, Literal, Matrix, Named, Ratio, Region, Relation, Words
from .quantities import Quantity, quantity, units_agree
from .quantity_equality import equal_quantities, nearly, value_of
from .reading import form
from .relation_equality import equal_relations

MAX_UNORDERED = 60  # items compared in any order


def equal(gold: Form, answer: Form) -> bool:
    """Whether an answer says what the expected answer says.

    Raises:
        UnreadableError: an expression in one of them cannot be parsed.
        TooLargeError: a number cannot be evaluated.
    """
    if isinstance(gold, Chain) or isinstance(answer, Chain):
        return _equal_chains(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _equal_words(gold, answer)
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _equal_named(gold, answer)
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return equal_quantities(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _equal_matrices(gold, answer)
    if isinstance(gold, Collection) or isinstance(answer, Collection):
        return _equal_collections(gold, answer)
    if isinstance(gold, Region) and isinstance(answer, Region):
        return _equal_regions(gold, answer)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return equal_relations(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _equal_ratios(gold, answer)
    if isinstance(gold, Literal) and isinstance(answer, Literal):
        return (gold.kind, gold.text) == (answer.kind, answer.text) and _equal_literal_units(gold, answer)
    return False


def _equal_literal_units(gold: Literal, answer: Literal) -> bool:
    return gold.unit == answer.unit if gold.kind == "base" else units_agree(gold.unit, answer.unit)


def _equal_words(gold: Form, answer: Form) -> bool:
    if isinstance(answer, Words) and answer.rest is not None and not isinstance(gold, Words):
        return _letters(gold) == answer.text or equal(gold, answer.rest)
    if isinstance(gold, Words) and gold.rest is not None and not isinstance(answer, Words):
        return _letters(answer) == gold.text or equal(gold.rest, answer)
    first, second = _letters(gold), _letters(answer)
    if not first or not second:
        return False
    return first == second if min(len(first), len(second)) == 1 else first.lower() == second.lower()


def _letters(item: Form) -> str:
    if isinstance(item, Words):
        return item.text
    return item.letters if isinstance(item, Quantity) else ""


def _equal_named(gold: Form, answer: Form) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if _plain(gold.name) == _plain(answer.name):
            return equal(gold.value, answer.value)
        if isinstance(gold.value, Words) and isinstance(answer.value, Words):
            turned = _plain(gold.name).lower() == answer.value.text.lower()
            return turned and _plain(answer.name).lower() == gold.value.text.lower()
        renamed = _renamed(gold, answer)
        if renamed is not None:
            return equal(gold.value, renamed)
        return equal_relations(_as_relation(gold), _as_relation(answer))
    if isinstance(gold, Named):
        if isinstance(answer, Relation):
            return equal_relations(_as_relation(gold), answer)
        return _equal_value(gold, answer)
    assert isinstance(answer, Named)
    if isinstance(gold, Relation):
        return equal_relations(gold, _as_relation(answer))
    return equal(gold, answer.value)


def _equal_value(gold: Named, answer: Form) -> bool:
    """Whether an answer without a name is the value of a named one; several answers are not one value."""
    if not isinstance(answer, Collection) or isinstance(gold.value, Collection | Region):
        return equal(gold.value, answer)
    return answer.kind == "set" and len(answer.items) == 1 and equal(gold, answer.items[0])


def _plain(name: str) -> str:
    return re.sub(r"\\text|[\s{}]", "", name)


def _renamed(gold: Named, answer: Named) -> Form | None:
    """The value of f(t) = t^2 as one of f(x); None where the names are no functions of one variable."""
    call = r"([A-Za-z]|\\[a-z]+)\s*\(\s*([A-Za-z])\s*\)"
    first, second = re.fullmatch(call, gold.name), re.fullmatch(call, answer.name)
    if not (first and second and first[1] == second[1] and isinstance(answer.value, Quantity)):
        return None
    old, new = second[2], first[2]
    if re.search(rf"(?<![A-Za-z\\]){new}(?![A-Za-z])", answer.value.latex):
        return None
    return form(re.sub(rf"(?<![A-Za-z\\]){old}(?![A-Za-z])", new, answer.value.latex))


def _as_relation(named: Named) -> Relation:
    value = named.value
    right = (
        value.latex if isinstance(value, Quantity) else rf"\text{{{value.text}}}" if isinstance(value, Words) else ""
    )
    return Relation("=", named.name, right)


def _equal_chains(gold: Form, answer: Form) -> bool:
    """Constants said to be equal must be, and one of them is the other answer."""
    for chain, other in ((gold, answer), (answer, gold)):
        if isinstance(chain, Chain):
            if isinstance(other, Relation) or not _is_consistent(chain):
                return False
            return any(equal(side, other) for side in reversed(chain.sides))
    return False


def _is_consistent(chain: Chain) -> bool:
    first, *others = chain.sides
    return all(equal_quantities(first, other) or (nearly(first, other)) for other in others)


def _equal_collections(gold: Form, answer: Form) -> bool:
    if isinstance(gold, Collection) and isinstance(answer, Collection):
        if len(_distinct(gold)) != len(_distinct(answer)):
            return False
        return _equal_items(gold, answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Collection) and isinstance(other, Region):
            return _equal_pair(one, other) or _equal_points(one, other) or _equal_union(one, other)
    collection, other = (gold, answer) if isinstance(gold, Collection) else (answer, gold)
    assert isinstance(collection, Collection)
    if collection.kind == "array":
        return False
    distinct = _distinct(collection)
    return (
        collection.kind in ("set", "list")
        and len(distinct) == 1
        and len(collection.items) == 1
        and equal(distinct[0], other)
    )


def _equal_items(gold: Collection, answer: Collection) -> bool:
    kinds = {gold.kind, answer.kind}
    if kinds <= {"set", "list"}:
        named = [all(isinstance(item, Named) for item in side.items) for side in (gold, answer)]
        names = [len({_plain(item.name) for item in side.items if isinstance(item, Named)}) for side in (gold, answer)]
        if named[0] != named[1] and max(names) > 1 and not _indexed(gold if named[0] else answer):
            return _in_order(_values(gold), _values(answer))
        if kinds == {"list"} and len(gold.items) != len(answer.items):
            return False  # 1, 1, 2 are three numbers; as a set they are two
        return _in_any_order(list(gold.items), list(answer.items))
    if "set" in kinds and len(kinds) > 1:
        return False
    if kinds == {"tuple", "array"}:
        return False
    return _in_order(_values(gold), _values(answer))


def _indexed(side: Collection) -> bool:
    """Whether the names differ in their index only: x_1 = 1, x_2 = 2 are values of x in any order."""
    return len({_plain(item.name).split("_")[0] for item in side.items if isinstance(item, Named)}) == 1


def _values(side: Collection) -> list[Form]:
    return [item.value if isinstance(item, Named) else item for item in side.items]


def _distinct(side: Collection) -> list[Form]:
    if side.kind in ("tuple", "array"):
        return list(side.items)
    kept: list[Form] = []
    for item in side.items:
        if item not in kept:
            kept.append(item)
    return kept


def _in_order(gold: list[Form], answer: list[Form]) -> bool:
    return len(gold) == len(answer) and all(equal(one, other) for one, other in zip(gold, answer, strict=True))


def _in_any_order(gold: list[Form], answer: list[Form]) -> bool:
    """Whether every item of each side has an equal one on the other."""
    if max(len(gold), len(answer)) > MAX_UNORDERED:
        return _in_order(gold, answer)
    left = list(answer)
    for item in gold:
        found = next((index for index, other in enumerate(left) if equal(item, other)), None)
        if found is None:
            if any(equal(item, other) for other in answer):
                continue  # a repetition
            return False
        del left[found]
    return all(any(equal(item, other) for item in gold) for other in left)


def _equal_pair(collection: Collection, region: Region) -> bool:
    """(1, 2) may be a pair: it is equal to a list in the same order."""
    if len(region.parts) != 1 or not region.parts[0].is_pair or region.name or len(collection.items) != 2:
        return False
    span = region.parts[0]
    if collection.kind == "set" or (collection.kind == "array") != span.low_closed:
        return False
    return _in_order(_values(collection), [span.first, span.second])


def _equal_points(collection: Collection, region: Region) -> bool:
    if collection.kind != "set" or not all(isinstance(item, Quantity) for item in collection.items):
        return False
    points = tuple(sets.Span.point(item.latex) for item in collection.items if isinstance(item, Quantity))
    return all(span.low == span.high for span in region.parts) and sets.equal(points, region.parts)


def _equal_union(collection: Collection, region: Region) -> bool:
    """Intervals side by side may be meant as their union."""
    regions = [item.parts for item in collection.items if isinstance(item, Region) and not item.name]
    if collection.kind != "list" or len(regions) < len(collection.items) or len(region.parts) < 2:
        return False
    return sets.equal(sets.union(regions) or (), region.parts)


def _equal_regions(gold: Region, answer: Region) -> bool:
    if gold.name and answer.name and _plain(gold.name) != _plain(answer.name):
        return False
    pairs = [region.parts[0] for region in (gold, answer) if len(region.parts) == 1 and region.parts[0].is_pair]
    if len(pairs) == 2:
        one, other = pairs
        same = one.low_closed == other.low_closed
        return same and all(equal(a, b) for a, b in ((one.first, other.first), (one.second, other.second)))
    return sets.equal(gold.parts, answer.parts)


def _equal_matrices(gold: Form, answer: Form) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        if gold.kind == "determinant" or answer.kind == "determinant":
            return gold.kind == answer.kind and _equal_determinants(gold, answer)
        if gold.kind == "cases":
            return answer.kind == "cases" and len(gold.rows) == len(answer.rows) and any(
                all(_in_order(list(a), list(b)) for a, b in zip(gold.rows, order, strict=True))
                for order in itertools.islice(itertools.permutations(answer.rows), 720)
            )  # fmt: skip
        return len(gold.rows) == len(answer.rows) and all(
            _in_order(list(a), list(b)) for a, b in zip(gold.rows, answer.rows, strict=True)
        )
    for matrix, other in ((gold, answer), (answer, gold)):
        if isinstance(matrix, Matrix):
            if matrix.kind == "determinant":
                return isinstance(other, Quantity) and _has_determinant(matrix, other)
            vector = _vector(matrix)
            return (
                vector is not None
                and isinstance(other, Collection | Region)
                and equal(Collection("tuple", vector), other)
            )
    return False


def _vector(matrix: Matrix) -> tuple[Form, ...] | None:
    if matrix.kind != "matrix":
        return None
    if len(matrix.rows) == 1 and len(matrix.rows[0]) > 1:
        return matrix.rows[0]
    if len(matrix.rows) > 1 and all(len(row) == 1 for row in matrix.rows):
        return tuple(row[0] for row in matrix.rows)
    return None


def _determinant(matrix: Matrix) -> Any:
    import sympy

    cells = [[value_of(cell) if isinstance(cell, Quantity) else sympy.nan for cell in row] for row in matrix.rows]
    if len(cells) > 5 or any(len(row) != len(cells) for row in cells):
        return sympy.nan
    return sympy.Matrix(cells).det()


def _equal_determinants(gold: Matrix, answer: Matrix) -> bool:
    return expressions.equal(_determinant(gold), _determinant(answer))


def _has_determinant(matrix: Matrix, other: Quantity) -> bool:
    return expressions.equal(_determinant(matrix), value_of(other))


def _equal_ratios(gold: Form, answer: Form) -> bool:
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if len(gold.terms) != len(answer.terms):
            return False
        one, other = ([value_of(term) for term in side.terms] for side in (gold, answer))
        return all(expressions.equal(a * other[0], b * one[0]) for a, b in zip(one, other, strict=True))
    if isinstance(gold, Ratio) and isinstance(answer, Literal) and answer.kind == "time" and not answer.unit:
        return _equal_ratios(gold, Ratio(tuple(quantity(term) for term in answer.text.split(":"))))  # 4:10
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    assert isinstance(ratio, Ratio)
    if len(ratio.terms) != 2 or not isinstance(other, Quantity):
        return False
    return expressions.equal(value_of(ratio.terms[0]), value_of(ratio.terms[1]) * value_of(other))
