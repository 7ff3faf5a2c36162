"""Values as JSON and back, the same: what processes of ours tell each other.

JSON can hold data and nothing else, so that no reader of it runs what somebody wrote. What JSON does not know is
written as a mapping with one key that begins with "$": `{"$tuple": [1, 2]}`, `{"$date": "2026-02-03"}`.
"""

import datetime
import decimal
import fractions
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

_JSON_INTEGERS = 2**63  # beyond them as hexadecimal: Python reads no more than 4,300 decimal digits

_WRITTEN: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    tuple: ("$tuple", list, tuple),
    set: ("$set", list, set),
    frozenset: ("$frozenset", list, frozenset),
    datetime.datetime: ("$datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: ("$date", datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: ("$time", datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: (
        "$timedelta", lambda t: [t.days, t.seconds, t.microseconds], lambda parts: datetime.timedelta(*parts),
    ),
    decimal.Decimal: ("$decimal", str, decimal.Decimal),
    fractions.Fraction: ("$fraction", lambda f: [f.numerator, f.denominator], lambda p: fractions.Fraction(*p)),
    complex: ("$complex", lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
    bytes: ("$bytes", bytes.hex, bytes.fromhex),
    PurePath: ("$path", str, Path),
}  # fmt: skip
"""Type -> its key, what is written of a value, and the value from what was read."""

_READ = {key: back for key, _, back in _WRITTEN.values()} | {"$int": lambda text: int(text, 16)}


def written(value: Any) -> str:
    """The value as one line of JSON, of which `read` makes an equal one.

    Scalars of numpy become numbers of Python, and what only extends a type (an `IntEnum`) becomes that type.

    Raises:
        TypeError: it holds something that is no plain data, by its type.
    """
    return json.dumps(_told(value))


def read(text: str | bytes) -> Any:
    """The value that `written` wrote.

    Raises:
        ValueError: it wrote no such text.
    """
    return json.loads(text, object_hook=_understood)


def _told(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        whole = int(value)
        return whole if abs(whole) < _JSON_INTEGERS else {"$int": hex(whole)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [_told(item) for item in value]
    if isinstance(value, Mapping):
        return _told_mapping(value)
    for kind, (key, form, _) in _WRITTEN.items():
        if isinstance(value, kind):
            return {key: _told(form(value))}
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return _told(value.item())
    raise TypeError(f"a value of the type {type(value).__module__}.{type(value).__qualname__} is no plain data")


def _told_mapping(value: Mapping) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {str.__str__(key): _told(item) for key, item in value.items()}
    return {"$mapping": [[_told(key), _told(item)] for key, item in value.items()]}


def _understood(read_mapping: dict[str, Any]) -> Any:
    if len(read_mapping) == 1:
        ((key, value),) = read_mapping.items()
        if key == "$mapping":
            return dict(value)
        if key in _READ:
            return _READ[key](value)
    return read_mapping
