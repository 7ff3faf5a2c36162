"""The one small language in which tasks and rewards are named: weighted terms with parameters.

    0.7*reasoning_gym:chain_sum?min_terms=2&max_terms=4 + 0.3*ladder
    math + 0.1*format?style=think + overlong?max=2048&buffer=512

A sum is terms joined by " + " (with white space, so that a value may contain a plus); a term is
[weight*]name[?parameter=value&parameter=value]; a value is read as YAML. What contains one of these signs goes in
quotes, as in YAML: data:'what? 2*3 & more.jsonl'?answer_column='a & b'.
"""

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from equipoise.errors import InputError
from equipoise.inputs.yaml_text import Number, YamlError, yaml_value, yaml_word
from equipoise.tasks.datasets import one_line, shortened

_QUOTED = re.compile(r"""(?<=[:=])('(?:[^']|'')*'|"(?:[^"\\]|\\.)*")(?=\s*(?:$|[?&]|\s\+\s))""", re.DOTALL)
"""Quotes around a whole name after its prefix, or around a whole value."""

_MASK = re.compile("\0(\\d+)\0")
_WEIGHT = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Attributes:
        weight: 1.0 when none was written; finite.
        name: before the question mark; never empty.
        parameters: name -> value, in the order written.
    """

    weight: float
    name: str
    parameters: Mapping[str, Any]


def parsed_terms(text: str, what: str) -> list[Term]:
    """The terms of a sum, in order.

    Args:
        text: as the user wrote it.
        what: what it is called in messages: "task" or "reward".

    Raises:
        InputError: an empty term, a weight that is no number, or a parameter without a value or given twice.
    """
    if "\0" in text:
        _refuse_terms(text, what)
    quoted: list[str] = []

    def masked(match: re.Match) -> str:
        quoted.append(match[1])
        return f"\0{len(quoted) - 1}\0"

    parts = re.split(r"\s\+\s", _QUOTED.sub(masked, text))
    return [_term(part, quoted, text, what) for part in parts]


def _term(part: str, quoted: list[str], text: str, what: str) -> Term:
    """One term; what was in quotes stands in it as its number in `quoted`."""
    weighted = _WEIGHT.match(part)
    weight, rest = (float(weighted[1]), weighted[2]) if weighted else (1.0, part)
    name, question, query = rest.strip().partition("?")
    name = name.strip()
    if not name or "*" in name or not math.isfinite(weight):
        _refuse_terms(text, what)
    name = _MASK.sub(lambda match: str(_value(f"{what} {text}", "the name", quoted[int(match[1])])), name)
    return Term(weight, name, _parameters(query, quoted, f"{what} {name}") if question else {})


def _parameters(query: str, quoted: list[str], label: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for pair in query.split("&"):
        key, equals, value = (_unmasked(piece.strip(), quoted) for piece in pair.partition("="))
        if not key or not equals or key in parameters:
            raise InputError(
                f"{label}: every parameter must be given once as name=value, got {shortened(_unmasked(query, quoted))}"
                "; a file's name with ? in it goes in quotes: data:'a?b.jsonl'"
            )
        parameters[key] = _value(label, f"parameter {key}", value)
    return parameters


def _unmasked(piece: str, quoted: list[str]) -> str:
    return _MASK.sub(lambda match: quoted[int(match[1])], piece)


def _refuse_terms(text: str, what: str) -> NoReturn:
    raise InputError(
        f'{what} must be terms "name?parameter=value&…", each with an optional weight "0.5*" before it,'
        f" joined by \" + \" (names with such signs in quotes: data:'a*b.jsonl'), got {shortened(text)}"
    )


def _value(label: str, piece: str, text: str) -> Any:
    if text[:1] == "'" == text[-1:] and len(text) > 1:
        return text[1:-1].replace("''", "'")  # as YAML, but a line break stays one
    try:
        value = yaml_value(text)
    except YamlError as error:
        raise InputError(f"{label}: {piece} cannot be read, got {shortened(text)} ({error.problem})") from error
    return float(value) if isinstance(value, Number) else value


def written(term: Term) -> str:
    """The term as `parsed_terms` reads it back, with quotes where they are needed."""
    prefix, colon, rest = term.name.partition(":")
    name = f"{prefix}:{_quoted(rest)}" if colon and not _is_plain(rest) else term.name
    pairs = "&".join(f"{key}={_written_value(value)}" for key, value in term.parameters.items())
    return ("" if term.weight == 1 else f"{term.weight!r}*") + name + (f"?{pairs}" if pairs else "")


def _written_value(value: Any) -> str:
    if isinstance(value, str):
        return value if _is_plain(value) and _value("", "", value) == value else _quoted(value)
    return yaml_word(value)


def _is_plain(text: str) -> bool:
    """Whether the text needs no quotes as a name; a value must not be read as a number or the like either."""
    return text == text.strip() and not re.search(r"[?&*'\"\0]|\s\+(\s|$)|^\+\s", text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """A hint with the known names that are nearest: "; did you mean a or b?", or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def check_parameters(label: str, parameters: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses parameters that are not among the known ones.

    Raises:
        InputError: naming the parameter, the nearest known one, and all that are known.
    """
    names = list(known)
    for key in parameters:
        if key not in names:
            raise InputError(
                f"{label} has no parameter {key!r}{nearest(key, names, count=1)}"
                f" (it has {', '.join(names) if names else 'none'})"
            )


def called(label: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """`function(**parameters)`, whose keywords are the parameters that a term may have, each of its annotated type.

    Raises:
        InputError: an unknown, missing or mistyped parameter; a ValueError of the function, completed with the label.
    """
    signature = inspect.signature(function).parameters
    check_parameters(label, parameters, signature)
    for name, parameter in signature.items():
        if name not in parameters:
            if parameter.default is inspect.Parameter.empty:
                raise InputError(f"{label} needs the parameter {name}: {label}?{name}=…")
        elif not _fits(parameters[name], parameter.annotation):
            kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
            raise InputError(f"{label}: parameter {name} must be {kind}, got {shortened(parameters[name])}")
    try:
        return function(**parameters)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{label}: {error}") from error


def _fits(value: Any, annotation: Any) -> bool:
    if annotation in (inspect.Parameter.empty, Any):
        return True
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def configured(label: str, config_class: type, parameters: Mapping[str, Any]) -> Any:
    """An instance of a configuration dataclass of another package, its parameters checked by name.

    Raises:
        InputError: an unknown parameter, or whatever the class itself does not accept.
    """
    check_parameters(label, parameters, [field.name for field in dataclasses.fields(config_class)])
    try:
        config = config_class(**parameters)
        if hasattr(config, "validate"):
            config.validate()
    except Exception as error:  # the packages raise AssertionError, ValueError, TypeError …
        given = ", ".join(f"{key}={value!r}" for key, value in parameters.items()) or "no parameters"
        raise InputError(f"{label} does not accept {given} ({one_line(error)})") from error
    return config
