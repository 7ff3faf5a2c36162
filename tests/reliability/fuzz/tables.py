"""Files of rows and values, JSON lines, JSON, CSV, Parquet: something wrong in their bytes or their structure."""

import csv
import datetime
import decimal
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fuzz import byte_mutations, place_mutations, value_mutations

KEYS = (
    "prompt", "answer", "messages", "update", "mean", "low", "greedy", "pass_at", "equipoise/entropy", "role",
    "content", "equipoise/bounds_low", "step", "data", "tool_calls", "reward", "loss", "learning_rate", "grad_norm",
)  # fmt: skip


def spoil(rng: random.Random, path: Path, other: Path) -> None:
    """Change the file in its place.

    Args:
        rng: what is drawn is drawn from it.
        path: of the file; its suffix says what is in it.
        other: a file to take bytes from.
    """
    chosen = rng.randrange(10)
    if chosen == 0:
        place_mutations.misplace(rng, path)
        return
    if chosen >= 4 and path.suffix in _STRUCTURED:
        try:
            return _STRUCTURED[path.suffix](rng, path)
        except (ValueError, RecursionError, csv.Error, pyarrow.ArrowException, OSError):
            pass  # it is spoilt already
    path.write_bytes(byte_mutations.damaged(rng, path.read_bytes(), other.read_bytes()))


def _written(value: Any, rng: random.Random) -> bytes:
    return json.dumps(value, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")


def _json(rng: random.Random, path: Path) -> None:
    path.write_bytes(_written(value_mutations.mutated(rng, json.loads(path.read_bytes()), KEYS), rng))


def _json_lines(rng: random.Random, path: Path) -> None:
    lines = path.read_bytes().splitlines()
    if not lines:
        return
    for number in rng.choices(range(len(lines)), k=rng.choice((1, 1, 3))):
        lines[number] = _written(value_mutations.mutated(rng, json.loads(lines[number]), KEYS), rng)
    path.write_bytes(b"\n".join(lines) + rng.choice((b"\n", b"", b"\n\n", b"\n{")))


def _csv(rng: random.Random, path: Path) -> None:
    with path.open(newline="") as file:
        rows = [list(row) for row in csv.reader(file)]
    rows = value_mutations.mutated(rng, rows)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=rng.choice(",,,;\t"), quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer.writerows(row if isinstance(row, list) else [row] for row in (rows if isinstance(rows, list) else [rows]))
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))


def _parquet(rng: random.Random, path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    for _ in range(rng.choice((1, 1, 2))):
        table = rng.choice(_TABLE_CHANGES)(rng, table)
    compression = rng.choice(("snappy", "zstd", "none", "gzip"))
    pyarrow.parquet.write_table(
        table, path, compression=compression, row_group_size=rng.choice((None, 1, 5)) if len(table) < 100 else None
    )


def _without(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    return table.drop_columns([rng.choice(table.column_names)]) if table.num_columns else table


def _renamed(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    names = list(table.column_names)
    if names:
        names[rng.randrange(len(names))] = rng.choice(("prompt", "answer", "", "x.y", "é\n", "update", names[0]))
    return table.rename_columns(names)


def _another_type(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    if not table.num_columns:
        return table
    number = rng.randrange(table.num_columns)
    name, count = table.column_names[number], table.num_rows
    return table.set_column(number, name, rng.choice(_ODD_COLUMNS)(rng, count))


def _spoilt_values(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    """Some values of a column at a bound of its type, or null."""
    if not table.num_columns:
        return table
    number = rng.randrange(table.num_columns)
    column = table.column(number)
    values = column.to_pylist()
    extremes: tuple = (None,)
    if pyarrow.types.is_floating(column.type):
        extremes = (None, float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 0.0, -1.0)
    elif pyarrow.types.is_integer(column.type):
        extremes = (None, 0, -1, 2**31 - 1, -(2**31), 2**62)
    elif pyarrow.types.is_string(column.type):
        extremes = (None, "", "</script>", "x" * 100000, "\0", "\u202e")
    for row in range(len(values)):
        if rng.random() < rng.choice((0.05, 0.5, 1.0)):
            values[row] = rng.choice(extremes)
    try:
        return table.set_column(number, table.column_names[number], pyarrow.array(values, column.type))
    except (pyarrow.ArrowException, OverflowError, TypeError):
        return table


def _fewer(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    return table.slice(0, rng.choice((0, 1, table.num_rows // 2)))


def _metadata(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    name = rng.choice(
        ("huggingface", "pandas", "equipoise", *(k.decode("utf-8", "replace") for k in table.schema.metadata or {}))
    )
    value = rng.choice(("", "{", "[]", "null", "5", '{"info": 1}', '{"info": {"features": {"prompt": 1}}}',
                        '{"info": {"features": {"prompt": {"_type": "os.system"}}}}', "x" * 10000, "-1",
                        '"a"'))  # fmt: skip
    return table.replace_schema_metadata({**(table.schema.metadata or {}), name: value})


_TABLE_CHANGES = (_without, _renamed, _another_type, _another_type, _spoilt_values, _spoilt_values, _fewer, _metadata)


def _of(values: list, kind: Any = None) -> Any:
    return lambda rng, count: pyarrow.array([values[i % len(values)] for i in range(count)], kind)


_ODD_COLUMNS = (
    _of([1, 2]), _of([0.5, None]), _of(["a"]), _of([True, False]), _of([None]), _of([[1], []]),
    _of([{"a": 1}, None]), _of([b"\xff\0"]),
    _of([datetime.datetime(1, 1, 1)]), _of([datetime.date(9999, 12, 31)]), _of([datetime.timedelta(1)]),
    _of([decimal.Decimal("1.5")]),
    _of([float("nan")]), _of([2**63], pyarrow.uint64()),
    _of([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    _of(["a"], pyarrow.large_string()), _of(["a", "b"], pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
    _of([[[1.0]]]),
    _of([[{"role": "user", "content": "x"}], [{"role": "user", "content": 1}]][:1]),
    _of([[{"role": "user", "content": None}]]),
    _of([datetime.time(1)]), _of([1.5], pyarrow.float16()) if hasattr(pyarrow, "float16") else _of([1.5]), _of([""]),
    _of([" "]),
)  # fmt: skip
"""Columns of types that a place does not expect."""

_STRUCTURED = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
