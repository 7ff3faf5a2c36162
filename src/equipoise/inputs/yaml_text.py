"""The one reader of YAML: PyYAML scans and composes, and what it composed is counted before it becomes values.

An alias is worth all that it stands for, so a few hundred bytes of aliases of aliases are refused when their count is
full, not when memory is. Only plain values come out, each its own: words, numbers, true, false, null, lists, mappings.
"""

import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from equipoise.errors import InputError, shortened
from equipoise.inputs.regular_files import called, file_text

MOST_BYTES = 256 * 1024
"""Of a file. PyYAML takes some 2 s for a megabyte; the longest file of a run, resolved.yaml, has about 10 kB."""

MOST_NODES = 10_000
"""Words, lists and mappings of a text, those behind aliases counted each time."""

MOST_CHARACTERS = 1024 * 1024
"""Of all words of a text, those behind aliases counted each time."""

MOST_DEPTH = 50
"""Lists and mappings within each other."""

LONGEST_NUMBER = 1000
"""Characters from which a plain word is text, whatever number it looks like."""

_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "bool": r"true|True|false|False",
    "int": r"0|-?[1-9][0-9]*",
    "float": r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
    "merge": r"<<",
}
_FIRST = {"bool": "tTfF", "int": "-0123456789", "float": "-+.0123456789", "null": ["~", "n", "N", ""], "merge": "<"}


_UNFIT_FOR_TEXT = re.compile("[\0\ud800-\udfff]")


class YamlError(ValueError):
    """A text that is no YAML as it is read here.

    Attributes:
        problem: the rule, and what breaks it.
        line: from 1; None where it is not known.
        unprintable: it holds a character that no file of YAML may hold.
    """

    def __init__(self, problem: str, line: int | None = None, *, unprintable: bool = False):
        super().__init__(problem)
        self.problem, self.line, self.unprintable = problem, line, unprintable


class Number(float):
    """A number that knows how it was written, for a key that is text: `run_name: 1e3`."""

    written: str

    def __new__(cls, value: float, written: str) -> "Number":
        """The value, and the text that it was read from."""
        number = super().__new__(cls, value)
        number.written = written
        return number

    def __str__(self) -> str:
        return self.written

    def __reduce__(self):
        return Number, (float(self), self.written)


def yaml_value(text: str) -> Any:
    """The value of a YAML text; None where there is nothing in it.

    `no` is a word, and so are a date, 12:30, 0x10 and 1_000; 1e-3 is a number (`Number`). Two equal keys are an error,
    and so is every tag but those of words, numbers, true and false, null, lists and mappings.

    Raises:
        YamlError: it is none, or exceeds a bound.
    """
    if len(text) > MOST_BYTES:
        raise YamlError(f"it must have at most {MOST_BYTES:,} characters, got {len(text):,}")
    try:
        node = _Nodes(text).get_single_node()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"a character must be printable, got U+{error.character:04X}"
        raise YamlError(problem, line, unprintable=True) from error
    except yaml.MarkedYAMLError as error:
        raise YamlError(_one_line(error.problem), _line(error.problem_mark)) from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, the digits of a directive
        raise YamlError("an escape or a directive names a number that is too large") from error
    return None if node is None else _value(node)


def yaml_file(path: str | Path, what: str) -> Any:
    """The value of a YAML file.

    Args:
        path: of a regular file of at most `MOST_BYTES`.
        what: it is called in messages: "config".

    Raises:
        InputError: it cannot be read or is no YAML; names the file, the line and the rule.
    """
    try:
        return yaml_value(file_text(path, what, MOST_BYTES))
    except YamlError as error:
        where = "" if error.line is None else f", line {error.line}"
        raise InputError(f"{called(what, path)}{where} is no valid YAML: {error.problem}") from error


def yaml_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """The keys, as text, and values of a YAML file that is a mapping; empty where there is nothing in it.

    Raises:
        InputError: as `yaml_file`, or another value than a mapping.
    """
    loaded = yaml_file(path, what)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{called(what, path)} must be a mapping of keys to values, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


class _Dumper(yaml.SafeDumper):
    """YAML's safe writer, with quotes around all text that is read here as something else than text."""


_Dumper.add_representer(Number, lambda dumper, value: dumper.represent_float(float(value)))


def yaml_lines(values: Mapping[str, Any]) -> str:
    """The YAML text that is read back as these values, a key a line."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def yaml_word(value: Any) -> str:
    """The YAML text of one value, on one line."""
    dumped = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf)
    return dumped.removesuffix("\n...\n").strip()


# ---- from text to nodes -------------------------------------------------------------------------------------------


class _Nodes(Reader, Scanner, Parser, Composer, Resolver):
    """Composes the nodes of a text and counts them, an alias for all that is behind it."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Resolver.__init__(self)
        self.depth = self.nodes = self.characters = 0
        self.sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent, index):
        mark = self.peek_event().start_mark  # pyright: ignore[reportOptionalMemberAccess]
        is_alias, nodes, characters = self.check_event(yaml.AliasEvent), self.nodes, self.characters
        if self.depth > MOST_DEPTH:
            raise _problem(f"it is nested too deeply, at most {MOST_DEPTH} levels are read", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias:
            if id(node) not in self.sizes:
                raise _problem("an alias stands for what it is in", mark)
            more = self.sizes[id(node)]
            self.nodes, self.characters = nodes + more[0], characters + more[1]
        else:
            self.nodes += 1
            self.characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self.sizes[id(node)] = self.nodes - nodes, self.characters - characters
        if self.nodes > MOST_NODES or self.characters > MOST_CHARACTERS:
            raise _problem(
                f"it must hold at most {MOST_NODES:,} values and {MOST_CHARACTERS:,} characters, aliases written out",
                mark,
            )
        return node

    def resolve(self, kind, value, implicit):
        if kind is yaml.ScalarNode and implicit[0] and len(value) > LONGEST_NUMBER:
            return f"{_TAG}str"
        return super().resolve(kind, value, implicit)


for _kind, _pattern in _PATTERNS.items():
    for _class in (_Nodes, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_FIRST[_kind]))


# ---- from nodes to values -----------------------------------------------------------------------------------------


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
    if node.tag != _TAG + kind:
        raise _unfit(node)
    return [_value(item) for item in node.value] if kind == "seq" else _mapping(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if _UNFIT_FOR_TEXT.search(text):
        raise YamlError(
            f"text must hold no NUL and no half of a character, got {shortened(text)}", _line(node.start_mark)
        )
    if kind == "str" or (kind == "merge" and node.tag == f"{_TAG}merge"):
        return text
    if kind not in _PATTERNS or len(text) > LONGEST_NUMBER or not re.fullmatch(_PATTERNS[kind], text):
        raise _unfit(node)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    return int(text) if kind == "int" else Number(float(text.replace(".", "") if text[-1:] in "fFnN" else text), text)


def _mapping(node: yaml.Node) -> dict[Any, Any]:
    """A mapping after its merges (`<<`): own keys override what is merged in, and earlier merges later ones."""
    merged: dict[Any, Any] = {}
    own: dict[Any, Any] = {}
    seen: set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError("a key must be a word", _line(key_node.start_mark))
        key = _scalar(key_node)
        if str(key) in seen:
            raise YamlError(f"the key {shortened(key)} is given twice", _line(key_node.start_mark))
        seen.add(str(key))
        if key_node.tag == f"{_TAG}merge":
            for part in _merged_parts(value_node):
                for name, value in _mapping(part).items():
                    merged.setdefault(name, value)
        else:
            own[key] = _value(value_node)
    return merged | own


def _merged_parts(node: yaml.Node) -> list[yaml.Node]:
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for part in parts:
        if not isinstance(part, yaml.MappingNode):
            raise YamlError("what << merges must be a mapping, or a list of mappings", _line(part.start_mark))
    return parts


def _unfit(node: yaml.Node) -> YamlError:
    tag = node.tag.replace(_TAG, "!!")
    shown = f", got {shortened(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
    return YamlError(
        f"a value does not fit its tag, or the tag {shortened(tag)} is none that is read{shown}", _line(node.start_mark)
    )


def _problem(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _line(mark: Any) -> int | None:
    return mark.line + 1 if mark else None


def _one_line(problem: Any) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 200 else text[:199] + "…"
