"""From a YAML file and flags to checked values: one flat set of keys, as a host's users know them; a flag overrides.

Which keys there are, and of what type, the adapter of the host says. Every refusal is one line that names the file or
flag, the key, the rule and the value.
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from equipoise.errors import InputError, did_you_mean, name_shown, shortened
from equipoise.inputs.yaml_text import MOST_DEPTH, Number, YamlError, yaml_lines, yaml_mapping, yaml_value
from equipoise.redaction import redacted
from equipoise.settings.data_keys import DATA_SPELLINGS, GONE, data_term, now_written

# The names the hosts' own scripts use for the same things, and data as the task that it is.
ALIASES = {"model_name_or_path": "model", **DATA_SPELLINGS}

LONGEST_ADVICE = 400
"""Characters of what is to be written in the place of a key that is gone."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, unchecked.

    Raises:
        InputError: a file that is missing, unreadable, no YAML, no mapping, or that has a key twice.
    """
    return yaml_mapping(path, "config")


def written_keys(values: Mapping[str, Any]) -> str:
    """The YAML text that `read_yaml` reads back as these values."""
    return yaml_lines(values)


def read_flags(arguments: list[str]) -> dict[str, Any]:
    """`--key value`, `--key=value` and `--key` (true) as unchecked keys; several values make a list.

    Raises:
        InputError: a word that belongs to no flag, a flag given twice, or a value that is no YAML.
    """
    values: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            key = name.replace("-", "_")
            if key in values:
                raise InputError(f"flag --{name_shown(name)} is given twice")
            values[key] = [value] if equals else []
        elif key is None:
            raise InputError(f"expected a flag (--key value), got {shortened(argument)}")
        else:
            values[key].append(argument)
    return {key: _flag_value(key, words) for key, words in values.items()}


def _flag_value(key: str, words: list[str]) -> Any:
    try:
        parsed = [_word_value(word) for word in words]
    except YamlError as error:
        shown = shortened(" ".join(words))
        raise InputError(
            f"flag --{name_shown(key)} has a value that cannot be read: {shown} ({error.problem})"
        ) from error
    return True if not parsed else parsed[0] if len(parsed) == 1 else parsed


def _word_value(word: str) -> Any:
    """A number, true, false, null, a quoted text, `[…]` or `{…}`; any other word is itself, whatever YAML says."""
    written_as_yaml = word[:1] in ("'", '"', "[", "{", "!")
    try:
        value = yaml_value(word)
    except YamlError as error:
        if written_as_yaml or error.unprintable:
            raise
        return word
    is_none = value is None and word.lower() in ("null", "~")
    return value if written_as_yaml or is_none or isinstance(value, bool | int | float) else word


def checked_keys(
    values: Mapping[str, Any], origin: str, known: Mapping[str, Any], *, beside: Iterable[str] = ()
) -> dict[str, Any]:
    """Values of known keys, converted to their types.

    Args:
        values: as read.
        origin: what the message calls them: "config FILE: key" or "flag --".
        known: every key there is, with its type.
        beside: what else an unknown name may have been meant for: the command's own options.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of the wrong type.
    """
    checked = {}
    for given, value in values.items():
        name = name_shown(given)
        key = ALIASES.get(given, given)
        if given in GONE:
            raise InputError(f"{origin}{now_written(given, value)[:LONGEST_ADVICE]}")
        if key not in known:
            raise InputError(f"{origin}{name} is not known{did_you_mean(name, [*beside, *known, *ALIASES])}")
        if value is None and given in DATA_SPELLINGS:
            continue
        if key in checked:
            raise InputError(
                f"{origin}{name} is given twice, under another name: give either {_spellings(key, values)}"
            )
        try:
            checked[key] = converted(value, known[key])
        except ValueError:
            shown = shortened(redacted(value, key))
            raise InputError(f"{origin}{name} must be {type_in_words(known[key])}, got {shown}") from None
        if given in DATA_SPELLINGS:
            checked[key] = data_term(checked[key])
    return checked


def _spellings(key: str, given: Mapping[str, Any]) -> str:
    return " or ".join(name for name in sorted(given, reverse=True) if ALIASES.get(name, name) == key)


_CONVERSION = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)


def converted(value: Any, hint: Any) -> Any:
    """`value` as the annotated type.

    Of several types the exact one is kept: "5" for `str | int` stays text, 5 a number. Otherwise text may become a
    number and a number text, and one value a list of one; true and false are themselves alone.

    Raises:
        ValueError: it is none.
    """
    adapter = TypeAdapter(hint, config=_CONVERSION)
    forms = [value] if isinstance(value, list) else [value, [value]]
    for form in forms:
        for strict in (True, False):
            try:
                result = adapter.validate_python(form, strict=strict)
            except ValueError:
                continue
            if strict or not _holds(bool, form, result):
                return _ordinary(result)
    raise ValueError


def _holds(kind: type, *values: Any) -> bool:
    return any(isinstance(item, kind) for value in values for item in (value if isinstance(value, list) else [value]))


def _ordinary(value: Any, depth: int = 0) -> Any:
    """Refuse, on any level, what no setting can use (NaN, whole numbers beyond 64 bits) and what a file cannot hold."""
    if dataclasses.is_dataclass(value) or depth > MOST_DEPTH:  # an alias of what it is in has no end
        raise ValueError
    if isinstance(value, dict):
        return {key: _ordinary(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_ordinary(item, depth + 1) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError
    if isinstance(value, enum.Enum):  # of the hosts: a file holds what they stand for
        return value.value
    return float(value) if isinstance(value, Number) else value


def type_in_words(hint: Any) -> str:
    """What a message says a value must be: "a whole number", "a list (text each)"."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(a) for a in arguments if a is not type(None)))
    if origin in (list, tuple):
        return f"a list ({type_in_words(arguments[0])} each)"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))
