"""The one exception that the command line turns into a single line and exit code 2, and the words of such lines."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

LONGEST_MESSAGE = 1000
"""Characters; of a longer one beginning and end are shown."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the file, row, key or flag, the rule and the value.

    A `ValueError`, so that Python callers need to know nothing of this class. Whatever was given, a path of thousands
    of characters or one that moves a terminal's cursor, the message is bounded and can be printed.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE * 2 // 3]} … {text[-LONGEST_MESSAGE // 3 :]}"
        return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text)


class SettingError(InputError):
    """What a key of a run names cannot be used; whoever has read the key tells where (`read_from`).

    Attributes:
        key: of the run.
    """

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


@contextmanager
def read_from(origin: str, keys: Collection[str]) -> Iterator[None]:
    """Put the file that a key was read from before a message about it.

    Args:
        origin: as messages name it: "config FILE".
        keys: those that it has and nothing overrides.

    Raises:
        InputError: in the place of a `SettingError` about one of them.
    """
    try:
        yield
    except SettingError as error:
        if error.key not in keys:
            raise
        raise InputError(f"{origin}: {error}") from error


def require(name: str, value: object, rule: str, holds: bool, *, error: type[ValueError] = ValueError) -> None:
    """Refuse a value that breaks its rule: the one sentence for every range, "NAME must be RULE, got NAME=VALUE".

    Args:
        name: of the setting, as the user writes it.
        value: that was given.
        rule: what it must be, in words: "> 0", "in (0, 1]".
        holds: whether it is so. A comparison with NaN is False: write the rule as what must hold.
        error: what is raised; `InputError` where the command line is to print it.

    Raises:
        ValueError: it does not hold; `error`, if one is given.
    """
    if not holds:
        raise error(f"{name} must be {rule}, got {name}={value!r}")


def shortened(value: object, limit: int = 80) -> str:
    """The value as Python would write it, on one line of at most `limit` characters: for error messages.

    Of a large value only its beginning is written at all, so the time is that of `limit`.
    """
    pieces, length = [], 0
    for piece in _pieces(value, limit, 0):
        pieces.append(piece)
        length += len(piece)
        if length > 4 * limit:  # of white space only one character stays
            break
    text = " ".join("".join(pieces).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def name_shown(name: str, limit: int = 80) -> str:
    """A name that was given, as a message shows it: what cannot be printed escaped, and no more than `limit`."""
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def _pieces(value: object, limit: int, depth: int) -> Iterator[str]:
    """What `repr` writes, piece by piece; of text no more than can be shown."""
    kind = type(value)
    if kind in (str, bytes):
        yield repr(value[: 4 * limit])  # pyright: ignore[reportIndexIssue]
    elif kind is int and value.bit_length() > 10_000:  # pyright: ignore[reportAttributeAccessIssue]
        yield f"a whole number of {value.bit_length()} bits"  # pyright: ignore[reportAttributeAccessIssue]
    elif depth > limit:
        yield "…"
    elif kind is dict:
        yield from _joined("{", value.items(), "}", limit, depth)  # pyright: ignore[reportAttributeAccessIssue]
    elif kind is list or (kind is tuple and len(value) != 1):  # pyright: ignore[reportArgumentType]
        yield from _joined(*("[", value, "]") if kind is list else ("(", value, ")"), limit, depth)  # pyright: ignore
    else:
        yield repr(value)


def _joined(begin: str, items: Iterable, end: str, limit: int, depth: int) -> Iterator[str]:
    yield begin
    for number, item in enumerate(items):
        yield ", " if number else ""
        if begin == "{":
            yield from _pieces(item[0], limit, depth + 1)
            yield ": "
            item = item[1]
        yield from _pieces(item, limit, depth + 1)
    yield end


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name, "; did you mean NAME?"; empty where no known name is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
