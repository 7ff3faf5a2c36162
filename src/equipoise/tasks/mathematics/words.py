r"""Answers in words, and those that are equal only as they are written: choices, names, times, numbers in a base."""

import re
from collections.abc import Callable

from . import sets
from .forms import Collection, Form, Literal, Named, NotReadableError, Ratio, Region, Words
from .quantities import quantity
from .spans import split

MAX_WORDS = 8  # longer texts are no answer that somebody would give in the same words

_LIKE_WORDS = re.compile(r"[A-Za-z]{4,}|[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_EMPTY = {"no solution", "no solutions", "no real solution", "no real solutions", "empty set", "the empty set"}
_REALS = {"all real numbers", "all reals", "all real", "the real numbers", "real numbers", "any real number"}
_SPOKEN = re.compile(
    r"^(?:so |thus |therefore |hence )?(?:the )?(?:final |correct )?(?:answer|choice|option)(?: is|:)?:?\s*",
    re.IGNORECASE,
)  # fmt: skip
_CHOICE = re.compile(
    r"\(?\s*\\text\{\(?\s*([A-Z])\s*[.):]*\s*\}\s*\)?[.:]?\s*(.*)|\(([A-Z])\)\s*(.*)|([A-Z])(?:\)|\.\s)\s*(.*)"
)
_LEAD_IN = re.compile(r"\\text\{([^{}]*(?:\b(?:is|are|equals)|:))\s*\}\s*([^\s:].*)")  # the maximum is 4
_NO_REST = re.compile(  # what goes on with the choice, instead of saying it again
    r"[_^=(<>+,;&|/]|\\(?:ne|to|le|ge|approx|equiv|in|notin|subset|cup|cap|setminus|cdot|pm|mp|quad|qquad)(?![A-Za-z])|"
    r"(?:\\text\{)?\s*(?:or|and|is|not|isn't|to|nor|but|,)(?![A-Za-z])"
)
_NUMBER_WITH_UNIT = re.compile(r"[-+(\[.\d]|\\text\{\s*[-+]?\d")
_TIME = re.compile(r"(\d{1,2}:\d{2}(?::\d{2})?)\s*(?:\\text\{([^{}]*)\}|([ap]\.?\s?m\.?|AM|PM)?)")
_CONGRUENCE = re.compile(
    r"(?:([A-Za-z](?:_\{\w+\})?)\s*(?:\\equiv|=)\s*)?(-?\d+(?:\s*,\s*-?\d+)*)\s*,?\s*\(?\s*\\pmod\s*\{?\s*([1-9]\d*)\s*\}?\s*\)?"
)
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_BASED = re.compile(
    r"(-?[0-9A-F]*\d[0-9A-F]*|\(\d+\)|\\text\{[0-9A-F]+\})\s*"
    r"(?:_\s*\{?\s*\(?\s*(\d+|\\text\{\s*(?:base\s*)?(\w+)\s*\})\s*\)?\s*\}?|"
    r"\\text\{\s*\(?(?:in )?base[- ](\w+)\)?\s*\})"
)


def words(text: str, form: Callable[[str], Form | None]) -> Form | None:
    r"""\text{Monday}, even, \text{(B)}, (C) 12, no solution; None for what is no words.

    Args:
        text: in the one spelling.
        form: reads what follows a choice.
    """
    if choice := _CHOICE.fullmatch(text):
        return _choice(choice[1] or choice[3] or choice[5], (choice[2] or choice[4] or choice[6] or "").strip(), form)
    if (lead := _LEAD_IN.fullmatch(text)) and not re.search(r"(?i)\bnot?\b|n't\b", lead[1]):
        return form(lead[2])
    if choices := re.fullmatch(r"\\text\{\s*([A-Z](?:\s*(?:,|,?\s*and|&)\s*[A-Z])+)\s*\}", text):
        return Collection("list", tuple(map(Words, re.findall(r"[A-Z]", choices[1]))))
    spoken = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    return _said(spoken) if _is_words(text, spoken) else None


def _choice(letter: str, rest: str, form: Callable[[str], Form | None]) -> Form | None:
    """A choice with what it stands for; None where another choice follows, or something that takes it back."""
    if _NO_REST.match(rest):
        return None
    said = form(rest) if rest else None
    return None if isinstance(said, Words) and (said.rest or len(said.text) == 1) else Words(letter, said)


def _is_words(text: str, spoken: str) -> bool:
    if "\\" in spoken or re.search(r"[=<>_^{}+*/]|\d:\d", spoken):
        return False
    if not re.search("[A-Za-z]{2}", spoken) or not (r"\text" in text or _LIKE_WORDS.search(text)):
        return False
    if not re.sub(r"\b(?:and|or)\b|[^A-Za-z]", "", spoken):
        return False
    # A number with a unit, or a list of numbers, is not said in words.
    numbered = _NUMBER_WITH_UNIT.match(text) and not re.search(r"[a-z]{3,}\s*[,.]?\s*\d", text) and "," not in text
    return not numbered and not re.search(r"(^|[,;\s])-?\d+(\.\d+)?\s*([,;]|and|or)", spoken)


def _bare(spoken: str) -> str:
    return re.sub(r"[\s()\"'.:]+$|^[\s()\"':]+", "", spoken)


def _said(spoken: str) -> Form:
    plain = _bare(_SPOKEN.sub("", " ".join(_bare(spoken).split())))
    lowered = plain.lower()
    several = [piece for piece in re.split(r"\s*,\s*(?:and\s+|or\s+)?|\s+and\s+", plain) if piece]
    if len(several) > 1 and all(len(piece.split()) == 1 for piece in several):
        return Collection("list", tuple(Words(piece if len(piece) == 1 else piece.lower()) for piece in several))
    if not lowered or len(lowered.split()) > MAX_WORDS:
        raise NotReadableError("too many words")
    if lowered in _EMPTY:
        return Region(())
    if lowered in _REALS:
        return Region(sets.REALS)
    if re.fullmatch(r"-?\d+(\.\d+)?", lowered):
        return quantity(lowered)
    return Words(plain if len(plain) == 1 else re.sub(r"^(?:the|an?) ", "", lowered))


def ratio(text: str) -> Form | None:
    """10:30 is a time, 1:2:3 a ratio; None for what is neither."""
    inside = re.fullmatch(r"\\text\{\s*(\d{1,2}:[^{}]*?)\s*\}", text)
    if time := _TIME.fullmatch(inside[1] if inside else text):
        return Literal("time", time[1].lstrip("0") or "0", (time[2] or time[3] or "").strip())
    pieces = [piece for _, piece in split(text, {":"})]
    if len(pieces) == 1:
        return None
    terms = tuple(quantity(piece) for piece in pieces)
    if any(not term.latex for term in terms):
        raise NotReadableError("a ratio without a term")
    return Ratio(terms)


def based(text: str) -> Form | None:
    r"""A number in a base: 101_2, 12_{5}, 101_{\text{two}}, 2516 \text{ (base 8)}; None for what is none."""
    match = _BASED.fullmatch(text)
    if not match:
        return None
    base = match[4] or match[3] or match[2]
    digits = re.sub(r"\\text|[{}()]", "", match[1]).lstrip("0")
    return Literal("base", digits, _BASES.get(base.lower(), base))


def congruence(text: str) -> Form | None:
    r"""A class of remainders, 3 \pmod{7} or x \equiv 3 \pmod 7; None for what is none."""
    match = _CONGRUENCE.fullmatch(text)
    if not match:
        return None
    remainders = tuple(
        Literal("remainder", f"{int(piece) % int(match[3])} mod {int(match[3])}") for piece in match[2].split(",")
    )
    several = remainders[0] if len(remainders) == 1 else Collection("list", remainders)
    return Named(match[1], several) if match[1] else several
