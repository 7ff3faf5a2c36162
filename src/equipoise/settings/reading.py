"""From a YAML file and flags to checked values: one flat set of keys, as a host's users know them; a flag overrides.

Which keys there are, and of what type, the adapter of the host says. Every refusal is one line that names the file or
flag, the key, the rule and the value.
"""

import dataclasses
import enum
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter

from equipoise.errors import InputError, did_you_mean, shortened
from equipoise.redaction import redacted
from equipoise.settings.data_keys import DATA_SPELLINGS, GONE, data_term, now_written

# The names the hosts' own scripts use for the same things, and data as the task that it is.
ALIASES = {"model_name_or_path": "model", **DATA_SPELLINGS}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, unchecked.

    Raises:
        InputError: a file that is missing, unreadable, no YAML, no mapping, or that has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        loaded = _loaded(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"config {path}{where} is no valid YAML: {getattr(error, 'problem', error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} must be a mapping of keys to values, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


class _Number(float):
    """A number that knows how it was written, for a key that is text: `run_name: 1e3`."""

    written: str

    def __new__(cls, value: float, written: str) -> "_Number":
        number = super().__new__(cls, value)
        number.written = written
        return number

    def __str__(self) -> str:
        return self.written


_PLAIN = {"bool", "int", "float", "timestamp", "value"}
"""Kinds of plain words that are told by rules of our own."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with fewer surprises.

    Two equal keys are an error. `no` is a word (`save_strategy: no`), and so are a date and 12:30; 1e-3 is a number.
    """

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_float(self, node):
        return _Number(self.construct_yaml_float(node), str(node.value))


class _Dumper(yaml.SafeDumper):
    """YAML's safe writer, with quotes around all text that `_Loader`, too, would take for something else."""


def written_keys(values: Mapping[str, Any]) -> str:
    """The YAML text that `read_yaml` reads back as these values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)
for _kind, _pattern, _first in (
    ("bool", "^(true|True|false|False)$", "tTfF"),
    ("int", "^(0|-?[1-9][0-9]{0,999})$", "-0123456789"),
    ("float", r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))


def _loaded(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # `!!int x`
        raise yaml.YAMLError("a value does not fit its tag") from error


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
                raise InputError(f"flag --{name} is given twice")
            values[key] = [value] if equals else []
        elif key is None:
            raise InputError(f"expected a flag (--key value), got {argument!r}")
        else:
            values[key].append(argument)
    return {key: _flag_value(key, words) for key, words in values.items()}


def _flag_value(key: str, words: list[str]) -> Any:
    try:
        parsed = [_word_value(word) for word in words]
    except yaml.YAMLError as error:
        raise InputError(f"flag --{key} has a value that cannot be read: {' '.join(words)!r}") from error
    return True if not parsed else parsed[0] if len(parsed) == 1 else parsed


def _word_value(word: str) -> Any:
    """A number, true, false, null, a quoted text, `[…]` or `{…}`; any other word is itself, whatever YAML says."""
    written_as_yaml = word[:1] in ("'", '"', "[", "{", "!")
    try:
        value = _loaded(word)
    except yaml.reader.ReaderError:  # a character that no file could hold
        raise
    except yaml.YAMLError:
        if written_as_yaml:
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
        key = ALIASES.get(given, given)
        if given in GONE:
            raise InputError(f"{origin}{now_written(given, value)}")
        if key not in known:
            raise InputError(f"{origin}{given} is not known{did_you_mean(given, [*beside, *known, *ALIASES])}")
        if value is None and given in DATA_SPELLINGS:
            continue
        if key in checked:
            raise InputError(
                f"{origin}{given} is given twice, under another name: give either {_spellings(key, values)}"
            )
        try:
            checked[key] = converted(value, known[key])
        except ValueError:
            shown = shortened(redacted(value, key))
            raise InputError(f"{origin}{given} must be {type_in_words(known[key])}, got {shown}") from None
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


def _ordinary(result: Any) -> Any:
    """Refuse what no setting can use, NaN and whole numbers beyond 64 bits, and what a file cannot hold: objects."""
    if dataclasses.is_dataclass(result):
        raise ValueError
    for item in result if isinstance(result, list) else [result]:
        if isinstance(item, float) and math.isnan(item):
            raise ValueError
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise ValueError
    try:
        return _without_spelling(result)
    except RecursionError:  # an alias of what it is in
        raise ValueError from None


def _without_spelling(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_spelling(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_spelling(item) for item in value]
    return float(value) if isinstance(value, _Number) else value


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
