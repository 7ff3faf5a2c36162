r"""Answers that look like an expected answer and are others: one that is accepted in its place was read wrongly."""

import re

from .completion import answer_text
from .notation import unwrapped
from .spans import split

MAX_DIGITS = 4000  # of a number that is changed
_NUMBER = re.compile(r"\d+")
_UNIT = re.compile(
    r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}\s*\^\s*\{?\s*\d\s*\}?\s*\$*\s*$|(?<=[A-Za-z])\^\s*[23]\s*$"
)
_BINOMIAL = re.compile(r"(?:\\[dt]?binom\s*(?:\{[^{}]*\}|\d)\s*\{?|\\choose\s*\{?)\s*\Z")
_NO_SCALAR = re.compile(
    r"[,;=<>:&]|\\(?:pm|mp|begin|text|mbox|cup|cap|setminus|in|le|ge|ne|leq|geq|neq|to|approx|mathbb)(?![A-Za-z])"
)


def perturbed(gold: str) -> list[str]:
    """An expected answer with its last number changed, its sign flipped, its last row and its last item dropped.

    Only the changes that make another answer of it; empty where there is none. Of a whole solution, its answer.
    """
    if "\\boxed" in gold or "####" in gold:
        gold = answer_text(gold) or gold
    made = [_with_another_number(gold), _with_flipped_sign(gold), _without_last_row(gold), _without_last_item(gold)]
    return [text for text in dict.fromkeys(made) if text is not None and text != gold]


def _with_another_number(gold: str) -> str | None:
    end = unit.start() if (unit := _UNIT.search(gold)) else len(gold)
    numbers = list(_NUMBER.finditer(gold, 0, end))
    if not numbers or len(numbers[-1][0]) > MAX_DIGITS:
        return None
    is_lower = len(numbers) > 1 and _BINOMIAL.search(gold, 0, numbers[-1].start())
    last = numbers[-2 if is_lower else -1]  # 5 choose 3 is 5 choose 2
    changed = str(int(last[0]) + 1).zfill(len(last[0]))
    return gold[: last.start()] + changed + gold[last.end() :]


def _with_flipped_sign(gold: str) -> str | None:
    bare = unwrapped(gold)
    if (
        not bare
        or _NO_SCALAR.search(bare)
        or not re.search(r"[1-9]|\\[a-z]|[A-Za-z]", bare)
        or re.search("[A-Za-z]{4}", re.sub(r"\\[a-z]+", "", bare))
    ):
        return None
    if bare[0] in "-−":
        return bare[1:] if not re.search(r"[-+]", bare[1:]) else f"-({bare})"
    return f"-({bare})"


def _without_last_row(gold: str) -> str | None:
    match = re.search(r"\\\\(?:(?!\\\\).)*?(?=\\end\{)", gold, re.DOTALL)
    return gold[: match.start()] + gold[match.end() :] if match and re.search(r"\w", match[0][2:]) else None


def _without_last_item(gold: str) -> str | None:
    bare = unwrapped(gold)
    pieces = split(bare, {","})
    return ",".join(piece for _, piece in pieces[:-1]) if len(pieces) > 1 and pieces[-1][1] else None
