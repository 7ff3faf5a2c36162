"""The reader of JSON that others wrote: a whole file, or one line of a file."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipoise.errors import InputError, shortened
from equipoise.inputs.regular_files import called, file_bytes, open_regular

MOST_BYTES = 32 * 1024 * 1024
"""Of a file that is one JSON value: the index of a model of 90,000 tensors has 9 MB."""

MOST_LINE_BYTES = 1024 * 1024
"""Of a line of a file of JSON lines; the widest of a run has some 10 kB."""

MOST_LINES_BYTES = 256 * 1024 * 1024
"""Of a file of JSON lines: a hundred thousand updates with everything that can be logged."""

MOST_DEPTH = 50
LONGEST_NUMBER = 1000


class JsonError(ValueError):
    """Text that is no JSON as it is read here; the message is the rule and what breaks it."""


def json_value(data: bytes, *, exact: bool = False) -> Any:
    """The value of a JSON text in UTF-8. NaN and numbers beyond a float come out as NaN and infinities.

    Args:
        data: the text.
        exact: whole numbers beyond a float come out as they are.

    Raises:
        JsonError: it is none, has a key twice, is nested more than `MOST_DEPTH` deep, has a number of more than
            `LONGEST_NUMBER` characters, or text that UTF-8 cannot hold.
    """
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object, parse_int=_exact if exact else _whole, parse_float=_number)
    except UnicodeDecodeError as error:
        raise JsonError(f"must be UTF-8, got the byte 0x{data[error.start]:02x}") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"is no JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise JsonError(_TOO_DEEP) from error
    if data.count(b"[") + data.count(b"{") > MOST_DEPTH:
        _require_depth(value)
    if b"\\ud" in data or b"\\uD" in data:
        _require_encodable(value)
    return value


def json_file(path: str | Path, what: str = "") -> Any:
    """The value of a JSON file.

    Args:
        path: of a regular file of at most `MOST_BYTES`.
        what: it is called in messages.

    Raises:
        InputError: it cannot be read or is no JSON.
    """
    try:
        return json_value(file_bytes(path, what, MOST_BYTES))
    except JsonError as error:
        raise InputError(f"{called(what, path)} {error}") from error


def json_object(path: str | Path, what: str = "") -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: as `json_file`, or another value than an object.
    """
    value = json_file(path, what)
    if not isinstance(value, dict):
        raise InputError(f"{called(what, path)} must be a mapping, got {shortened(value)}")
    return value


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | JsonError]]:
    """The objects of a file of JSON lines with the numbers of their lines, or in their place what is wrong with them.

    Blank lines are passed over. A last line without an end that is no JSON was cut off, and is said to be.

    Raises:
        OSError: the file cannot be read; some lines may have come before.
    """
    with open_regular(path) as file:
        read, number = 0, 0
        while line := file.readline(MOST_LINE_BYTES + 1):
            number, read = number + 1, read + len(line)
            if read > MOST_LINES_BYTES:
                yield number, JsonError(f"and those after it are not read: beyond {MOST_LINES_BYTES:,} bytes")
                return
            if len(line) > MOST_LINE_BYTES and not line.endswith(b"\n"):
                yield number, JsonError(f"must have at most {MOST_LINE_BYTES:,} bytes")
                read += _pass_over(file, MOST_LINES_BYTES - read)
            elif line.strip():
                yield number, _line_object(line)


def _pass_over(file: Any, most: int) -> int:
    """Read to the end of a line that is too long; returns the bytes."""
    passed = 0
    while passed <= most and (part := file.readline(MOST_LINE_BYTES)):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def _line_object(line: bytes) -> dict[str, Any] | JsonError:
    try:
        value = json_value(line)
    except JsonError as error:
        return error if line.endswith(b"\n") else JsonError("is no JSON: it is cut off")
    return value if isinstance(value, dict) else JsonError(f"must be a mapping, got {shortened(value)}")


_TOO_DEEP = f"is nested too deeply, at most {MOST_DEPTH} levels are read"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise JsonError(f"has the key {shortened(counts.most_common(1)[0][0])} twice")
    return values


def _whole(text: str) -> int | float:
    _require_short(text)
    return int(text) if len(text) <= 300 else math.copysign(math.inf, -1 if text[0] == "-" else 1)


def _exact(text: str) -> int:
    _require_short(text)
    return int(text)


def _number(text: str) -> float:
    _require_short(text)
    return float(text)


def _require_short(text: str) -> None:
    if len(text) > LONGEST_NUMBER:
        raise JsonError(f"has a number of {len(text):,} digits, at most {LONGEST_NUMBER:,} are read")


def _require_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [
            item for x in level if isinstance(x, dict | list) for item in (x.values() if isinstance(x, dict) else x)
        ]
    if level:
        raise JsonError(_TOO_DEEP)


def _require_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise JsonError("must be text that UTF-8 can hold, got half of a character") from error
