"""From a YAML file and flags to checked settings: one flat set of keys, as TRL's users know it; a flag overrides a key.

Every refusal is one line that names the file or flag, the key, the rule and the value.
"""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import InputError
from equipoise.settings.data_keys import DATA_SPELLINGS, GONE, data_term, now_written
from equipoise.settings.presets import with_preset
from equipoise.settings.run import RunSettings
from equipoise.tasks.datasets import shortened
from equipoise.trl.config import EquipoiseConfig

# The names TRL's own scripts use for the same things, and data as the task that it is.
ALIASES = {"model_name_or_path": "model", **DATA_SPELLINGS}


def known_keys() -> dict[str, Any]:
    """Every key of a run with its type."""
    hints = typing.get_type_hints(RunSettings) | typing.get_type_hints(EquipoiseConfig)
    names = [f.name for cls in (RunSettings, EquipoiseConfig) for f in dataclasses.fields(cls) if f.init]
    return {name: hints[name] for name in names}


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
        loaded = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"config {path}{where} is no valid YAML: {getattr(error, 'problem', error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} must be a mapping of keys to values, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but two equal keys are an error, and `no` is a word (as in `save_strategy: no`)."""

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|false|False)$"), list("tTfF"))


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
        parsed = [yaml.load(word, Loader=_Loader) if word else "" for word in words]
    except yaml.YAMLError as error:
        raise InputError(f"flag --{key} has a value that cannot be read: {' '.join(words)!r}") from error
    return True if not parsed else parsed[0] if len(parsed) == 1 else parsed


def checked_keys(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Values of known keys, converted to their types.

    Args:
        values: as read.
        origin: what the message calls them: "config FILE: key" or "flag --".

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of the wrong type.
    """
    known = known_keys()
    checked = {}
    for given, value in values.items():
        key = ALIASES.get(given, given)
        if given in GONE:
            raise InputError(f"{origin}{now_written(given, value)}")
        if key not in known:
            near = difflib.get_close_matches(given, [*known, *ALIASES], n=1)
            raise InputError(f"{origin}{given} is not known" + (f"; did you mean {near[0]}?" if near else ""))
        if value is None and given in DATA_SPELLINGS:
            continue
        if key in checked:
            raise InputError(
                f"{origin}{given} is given twice, under another name: give either {_spellings(key, values)}"
            )
        try:
            checked[key] = _converted(value, known[key])
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{origin}{given} must be {_type_name(known[key])}, got {shortened(value)}") from None
        if given in DATA_SPELLINGS:
            checked[key] = data_term(checked[key])
    return checked


def _spellings(key: str, given: dict[str, Any]) -> str:
    return " or ".join(name for name in sorted(given, reverse=True) if ALIASES.get(name, name) == key)


def _converted(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; TypeError or ValueError when it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _converted_to_any(value, arguments)
    if hint is Any:
        return value
    if hint is type(None):
        return _require(value is None, value)
    if hint is bool:
        return _require(isinstance(value, bool), value)
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return str(_require(isinstance(value, (str, int, float)) and not isinstance(value, bool), value))
    if origin is list:
        return [_converted(item, arguments[0]) for item in (value if isinstance(value, list) else [value])]
    if hint is dict or origin is dict:
        return _require(isinstance(value, dict), value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    return value


def _converted_to_any(value: Any, hints: tuple) -> Any:
    # An exact type first: "5" for `str | int` stays a string, 5 a number.
    for hint in sorted(hints, key=lambda h: not (isinstance(h, type) and type(value) is h)):
        try:
            return _converted(value, hint)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _number(value: Any, kind: type) -> int | float:
    _require(not isinstance(value, bool) and isinstance(value, (int, float, str)), value)
    number = float(value)  # YAML reads 1e-3 as a string
    _require(not math.isnan(number), value)
    return number if kind is float else int(_require(number.is_integer(), number))


def _require(holds: bool, value: Any) -> Any:
    if not holds:
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(a) for a in arguments if a is not type(None)))
    if typing.get_origin(hint) is list:
        return f"a list ({_type_name(arguments[0])} each)"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def build(values: dict[str, Any]) -> tuple[RunSettings, EquipoiseConfig]:
    """Settings from checked keys.

    Raises:
        InputError: values out of range, missing or excluding each other.
    """
    values = with_preset(values)
    own = {f.name for f in dataclasses.fields(RunSettings)}
    run = RunSettings(**{k: v for k, v in values.items() if k in own})
    if not values.get("output_dir"):
        raise InputError("output_dir is required: the run folder (--output_dir)")
    if values.get("resume_from_checkpoint"):
        raise InputError("resume_from_checkpoint has no effect here: continue a run with --resume RUN")
    try:
        return run, EquipoiseConfig(**{k: v for k, v in values.items() if k not in own})
    except (ValueError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
