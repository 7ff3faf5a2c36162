"""YAML and JSON of others: whatever they hold, a value or one line, in bounded time and memory, and nothing is run."""

import ast
import json
import math
import os
import random
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import equipoise
from equipoise.errors import InputError, shortened
from equipoise.inputs import json_text, yaml_text
from equipoise.inputs.json_text import JsonError, json_file, json_lines, json_value
from equipoise.inputs.yaml_text import YamlError, yaml_lines, yaml_mapping, yaml_value, yaml_word
from equipoise.settings import reading
from equipoise.settings.reading import read_yaml

SOURCE = Path(equipoise.__file__).parent
KNOWN = {
    "model": str,
    "task": str | None,
    "max_steps": int,
    "bapo_low": list[float],
    "model_init_kwargs": dict | None,
    "chat_template_kwargs": dict | None,
}
SECONDS, BYTES = 3.0, 100e6
"""Of one reading. The slowest text within the bounds takes some 0.6 s on a free core; shared cores take their time."""


def checked_keys(values, origin):
    return reading.checked_keys(values, origin, KNOWN)


def measured(call):
    """The InputError or value of a call that must be quick and small."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        outcome = call()
    except (InputError, YamlError, JsonError) as error:
        outcome = error
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10 * SECONDS  # tracing makes everything several times slower
    assert peak < BYTES
    return outcome


def one_line(error):
    text = str(error)
    assert isinstance(error, ValueError), text
    assert 0 < len(text) < 700
    assert "\n" not in text
    return text


def bomb(levels=9, width=9, merge=False):
    lines = ["a0: &a0 {x: lol}" if merge else "a0: &a0 [lol, lol]"]
    for level in range(1, levels + 1):
        names = ", ".join([f"*a{level - 1}"] * width)
        lines.append(
            f"a{level}: &a{level} {{<<: [{names}], y{level}: [{names}]}}" if merge else f"a{level}: &a{level} [{names}]"
        )
    return "\n".join(lines)


# ---- YAML that is refused -----------------------------------------------------------------------------------------

HOSTILE = {
    "aliases of aliases": bomb(),
    "merges of merges": bomb(merge=True),
    "one long word many times": "a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 5000 + "]",
    "a mapping in itself": "a: &a {b: *a}",
    "a list in itself": "a: &a [*a]",
    "a merge of itself": "a: &a {<<: *a}",
    "a merge of itself further down": "a: &a {b: {<<: *a}}",
    "a merge of a word": "a: {<<: b}",
    "a merge of a list of words": "a: {<<: [b, c]}",
    "a merge of nothing": "a: {<<: null}",
    "two merges": "a: &a {x: 1}\nb: {<<: *a, <<: *a}",
    "lists in lists": "[" * 100_000,
    "mappings in mappings": "{a: " * 50_000,
    "blocks in blocks": "- " * 50_000,
    "indented blocks": "\n".join(" " * depth + "a:" for depth in range(600)),
    "too many words": "a: [" + "1," * 100_000 + "]",
    "too many keys": "\n".join(f"k{number}: 1" for number in range(20_000)),
    "too many bytes": "# " + "x" * 300_000,
    "a list as a key": "? [a]\n: b",
    "a mapping as a key": "{{a: b}: c}",
    "an alias of a list as a key": "a: &a [1]\n*a : 2",
    "equal keys": "seed: 1\nseed: 2",
    "equal keys of two kinds": 'a: {1: x, "1": y}',
    "equal keys beside a merge": "a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}",
    "an alias without an anchor": "a: *b",
    "an anchor twice": "a: &a 1\nb: &a 2",
    "two documents": "a: 1\n---\nb: 2",
    "tabs": "a:\n\t- b",
    "a bracket that is open": "a: [1",
    "a quote that is open": "a: 'b",
    "NUL": "a: b\0c",
    "an escape of NUL": 'a: "b\\0c"',
    "control characters": "a: \x07",
    "half of a character": 'a: "\\ud800"',
    "an escape beyond Unicode": 'a: "\\UFFFFFFFF"',
    "a directive of many digits": "%YAML 1." + "9" * 5000 + "\n---\na: 1",
    "an unknown directive and tag": "%TAG !x! tag:x,2000:\n---\n!x!y a",
    **{
        f"the tag {tag}": f"a: {tag} {value}"
        for tag, value in [
            ("!!python/object/apply:os.system", "[echo]"),
            ("!!python/name:os.system", ""),
            ("!!python/tuple", "[1]"),
            ("!!int", "abc"),
            ("!!int", "1_0"),
            ("!!int", "[1]"),
            ("!!float", "x"),
            ("!!bool", "maybe"),
            ("!!null", "x"),
            ("!!binary", "aGk="),
            ("!!binary", "§"),
            ("!!set", "{a, b}"),
            ("!!omap", "[a: 1]"),
            ("!!pairs", "[a: 1]"),
            ("!!timestamp", "2024-99-99"),
            ("!!seq", "{}"),
            ("!!map", "[]"),
            ("!!str", "[]"),
            ("!own", "x"),
            ("!!int", "9" * 5000),
            ("!<tag:yaml.org,2002:int>", "x"),
        ]
    },
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_yaml_that_cannot_be_used_is_one_line_with_its_file(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    said = one_line(measured(lambda: read_yaml(file)))
    assert said.startswith(f"config {file}")


def test_the_line_and_the_value_are_named(tmp_path):
    file = tmp_path / "a.yaml"
    for text, line, shown in [
        ("a: 1\nb: !!int abc", 2, "'abc'"),
        ("a: 1\n\nb: c\x07", 3, "U+0007"),
        ("a: 1\na: 2", 2, "'a'"),
        ("a:\n  b: &b {c: *b}", 2, ""),
        ("x: y\n? [a]\n: b", 2, ""),
        ('a: 1\nb: "\\ud800"', 2, "'\\ud800'"),
    ]:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=f"line {line}") as refused:
            read_yaml(file)
        assert shown in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [b"a: \xff", b"\xff\xfea\x00:\x00 \x001\x00", "a: é".encode("latin-1"), b"a: \xed\xa0\x80", b"\x80" * 1000],
    ids=["a byte", "UTF-16", "Latin-1", "half of a character", "binary"],
)
def test_bytes_that_are_no_utf8_are_one_line(data, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"x: 1\n" + data)
    assert "line 2 must be UTF-8" in one_line(measured(lambda: read_yaml(file)))
    file.write_bytes(b'{"x": 1,\n' + data)
    assert "must be UTF-8" in one_line(measured(lambda: json_file(file)))


# ---- YAML that is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("2024-99-99", "2024-99-99"),
        ("a: .inf", {"a": math.inf}),
        ("a: -.INF", {"a": -math.inf}),
        ("<<", "<<"),
        ("9" * 5000, "9" * 5000),
        ("9" * 1000, int("9" * 1000)),
        ("9" * 100_000 + "x", "9" * 100_000 + "x"),
        ("!!str 5", "5"),
        ("!!float 1", 1.0),
        ("!!null null", None),
        ("'<<': 1", {"<<": 1}),
        ("a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}}),
        (
            "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}",
            {"a": {"x": 1}, "b": {"x": 2, "y": 2}, "c": {"x": 1, "y": 2}},
        ),
        ("a: {b: &b {<<: &c {x: 1}, x: 2}}\nd: {<<: *b}", {"a": {"b": {"x": 2}}, "d": {"x": 2}}),
    ],
)
def test_yaml_that_is_fine_is_read(text, value):
    assert yaml_value(text) == value


def test_what_two_aliases_stand_for_is_two_values():
    loaded = yaml_value("a: &a [1]\nb: *a")
    loaded["a"].append(2)
    assert loaded["b"] == [1]


def test_the_largest_texts_within_the_bounds_are_quick():
    for text in ("- a\n" * (yaml_text.MOST_NODES - 1), "a: '" + "x" * (yaml_text.MOST_BYTES - 6) + "'", bomb(3, 12)):
        begin = time.process_time()
        yaml_value(text)
        assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_numbers_that_are_none_are_refused_where_steps_are_meant(kind, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"max_steps: .{kind}\n")
    with pytest.raises(InputError, match=f"max_steps must be a whole number, got {kind}"):
        checked_keys(read_yaml(file), f"config {file}: ")


@pytest.mark.parametrize("inside", ["1" + "0" * 30, ".nan", "[[1, {b: .nan}]]"])
def test_what_no_file_can_hold_again_is_refused_on_every_level(inside):
    with pytest.raises(InputError, match="chat_template_kwargs must be"):
        checked_keys({"chat_template_kwargs": yaml_value(f"{{a: {inside}}}")}, "")


def test_values_that_are_written_are_read_back():
    rng = random.Random(0)
    words = [
        "no",
        "1e3",
        "0x10",
        "a: b",
        "<<",
        "'",
        "2024-01-01",
        "é",
        "~",
        "",
        " x",
        "=",
        "5",
        ".inf",
        "\u2028",
        "9" * 1200,
    ]

    def value(depth):
        kind = rng.randrange(7 if depth < 4 else 5)
        if kind == 5:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 6:
            return {rng.choice(words): value(depth + 1) for _ in range(rng.randrange(4))}
        return [rng.choice(words), rng.randrange(-(10**12), 10**12), rng.random() * 1e-9, None, True][kind]

    for _ in range(300):
        values = {f"k{number}": value(0) for number in range(4)}
        assert yaml_value(yaml_lines(values)) == values
        assert yaml_value(yaml_word(values)) == values


# ---- places that are no files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_yaml, json_file, lambda path: list(json_lines(path))])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(read, tmp_path):
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    outcomes = []

    def attempts():
        for path in (pipe, loop, tmp_path, "/dev/zero", tmp_path / "a\0b", "x" * 5000, tmp_path / "none"):
            try:
                read(path)
            except (InputError, OSError) as error:
                outcomes.append(error)

    thread = threading.Thread(target=attempts, daemon=True)
    thread.start()
    thread.join(20)
    assert len(outcomes) == 7


# ---- JSON ---------------------------------------------------------------------------------------------------------

HOSTILE_JSON = {
    "lists in lists": "[" * 100_000,
    "closed lists in lists": "[" * 900 + "]" * 900,
    "objects": '{"a":' * 100_000,
    "sixty levels": "[" * 60 + "]" * 60,
    "many digits": "1" * 5000,
    "a float of many digits": "1." + "1" * 100_000,
    "equal keys": '{"a": 1, "a": 2}',
    "equal keys inside": '[{"b": {"a": 1, "a": 2}}]',
    "half of a character": '["\\ud800"]',
    "half of a character as a key": '{"\\uDFFF": 1}',
    "single quotes": "{'a': 1}",
    "nothing": "",
    "two values": "1 2",
    "a cut": '{"a": [1, 2',
    "control characters": '"\x01"',
    "NUL": "\0",
    "a comma": "[1,]",
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_json_that_cannot_be_used_is_one_line(text, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    assert one_line(measured(lambda: json_file(file))).startswith(f"{file} ")


def test_json_that_is_fine_is_read():
    text = '{"a": [1, -2.5, NaN, Infinity, 1e999, -1e999], "b": "\\ud83d\\ude00", "c": null}'
    value = json_value(b"\xef\xbb\xbf" + text.encode())
    assert (value["b"], value["c"]) == ("😀", None)
    assert value["a"][:2] == [1, -2.5]
    assert [repr(number) for number in value["a"][2:]] == ["nan", "inf", "inf", "-inf"]
    assert json_value(b"1" * 310) == math.inf
    assert json_value(b"-" + b"1" * 310) == -math.inf
    assert json_value(("[" * 50 + "]" * 50).encode())


def test_lines_of_every_kind_are_objects_or_named(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MOST_LINE_BYTES", 100)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\r\n\n  \n[1]\n\xff\n{"b": "' + b"x" * 500 + b'"}\n{"c": 3}\n{"d": 4}\x00\n{"e"')
    lines = dict(json_lines(file))
    assert [number for number, line in lines.items() if isinstance(line, dict)] == [1, 7]
    assert {number: str(line).split(",")[0] for number, line in lines.items() if isinstance(line, JsonError)} == {
        4: "must be a mapping",
        5: "must be UTF-8",
        6: "must have at most 100 bytes",
        8: "is no JSON: Extra data (column 9)",
        9: "is no JSON: it is cut off",
    }
    monkeypatch.setattr(json_text, "MOST_LINES_BYTES", 20)
    numbers, last = zip(*json_lines(file), strict=True)
    assert (numbers[-1], "are not read" in str(last[-1])) == (6, True)


# ---- kinds that nobody thought of ---------------------------------------------------------------------------------

PIECES = [
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!python/name:os.system ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "? ",
    "\n",
    "  ",
    "\t",
    "|\n",
    ">-\n",
    "---\n",
    "%",
    "'",
    '"',
    "\\",
    "\\ud800",
    "#",
    "1e999",
    ".nan",
    "9" * 400,
    "\0",
    "\ufeff",
    "é",
    "~",
    "=",
    ",",
    "@",
    "`",
]
RECIPE = (
    "model: a\ntask: ladder\nbapo_low: [0.9, 0.98]\nmodel_init_kwargs: &a {x: 1, y: [a, b]}\nchat_template_kwargs: *a\n"
)


def mutated(rng, text):
    for _ in range(rng.randrange(1, 6)):
        place, length = rng.randrange(len(text) + 1), rng.randrange(6)
        text = text[:place] + rng.choice(PIECES) * rng.choice([1, 1, 1, 3, 200]) + text[place + length :]
    return text


@pytest.mark.parametrize("seed", range(8))
def test_any_change_of_a_configuration_is_read_or_one_line(seed, tmp_path):
    rng, file = random.Random(seed), tmp_path / "a.yaml"
    for _ in range(60):
        data = mutated(rng, RECIPE).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))] + bytes([rng.randrange(256)]) + data[rng.randrange(len(data)) :]
        file.write_bytes(data)
        begin = time.process_time()
        refused = None
        try:
            checked_keys(yaml_mapping(file, "config"), f"config {file}: ")
        except InputError as error:
            refused = error
        assert refused is None or str(file) in one_line(refused), data
        assert time.process_time() - begin < SECONDS, data


# ---- what messages show -------------------------------------------------------------------------------------------


def test_of_a_value_only_what_is_shown_is_written():
    inner = ["x" * 1000] * 10
    for _ in range(30):  # 10^30 words, were they all written
        inner = [inner] * 10
    begin = time.process_time()
    for value in (inner, {"a": inner}, (inner, inner), 10**100_000, "x" * 10**7, {str(k): inner for k in range(10**5)}):
        text = shortened(value)
        assert len(text) <= 80
        assert "\n" not in text
    assert time.process_time() - begin < SECONDS
    cyclic: list = []
    cyclic.append(cyclic)
    assert len(shortened(cyclic)) <= 80


@pytest.mark.parametrize(
    "value", ["a", [1, "b"], (1,), (), {}, {"a": [None, True]}, {1, 2}, b"x", 1.5, {"a": {"b": "c\nd"}}, [[]], 10**60]
)
def test_small_values_are_shown_as_python_writes_them(value):
    assert shortened(value) == repr(value)


# ---- one mechanism ------------------------------------------------------------------------------------------------


def test_nothing_else_reads_yaml():
    readers = set()
    for path in SOURCE.rglob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and "load" in node.attr:
                readers.add(str(path.relative_to(SOURCE)))
        if any(name.split(".")[0] in ("yaml", "ruamel") for name in imported) and "inputs" not in path.parts:
            source = path.read_text(encoding="utf-8")
            assert "yaml.safe_dump" in source or "yaml.dump" in source, f"{path} imports yaml, and not to write"
    assert readers == set()


def test_a_rule_is_noticed_when_it_is_taken_away(monkeypatch):
    monkeypatch.setattr(yaml_text, "MOST_NODES", 10**9)
    monkeypatch.setattr(yaml_text, "MOST_CHARACTERS", 10**9)
    with pytest.raises(YamlError):  # else the count itself would be what hangs: it must not depend on the values
        yaml_value(bomb(40, 40))


def test_the_words_of_flags_are_bounded_too():
    from equipoise.settings.reading import read_flags

    for word in ("[" * 5000, "{a: &a [*a]}", "!!python/name:os.system x", '"\\ud800"'):
        with pytest.raises(InputError, match="flag --model has a value that cannot be read") as refused:
            read_flags(["--model", word])
        one_line(refused.value)
    assert json.dumps(read_flags(["--model", "&a [*a]"])) == '{"model": "&a [*a]"}'
