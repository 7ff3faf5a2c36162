"""Examples from a file or from the hub, as a data set with the columns "prompt" and "answer", checked before training.

Whatever is wrong with the data is an `InputError` of one line that names the source, the row and the column.
"""

import csv
import difflib
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset

from equipoise.errors import InputError, shortened
from equipoise.inputs.json_text import JsonError, json_value
from equipoise.paths import check_path
from equipoise.tasks.messages import MessageKinds, checked_prompt, present, prompt_features


def load_examples(
    source: str,
    *,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    split: str = "train",
    chat: bool = False,
    empty_answers: bool = False,
) -> Dataset:
    """The examples of a file or hub data set, with checked columns "prompt" and "answer" and all others unchanged.

    A source that exists on disk, ends in a known suffix or starts like a path is a file: .jsonl or .json-lines (one
    object per line, blank lines allowed, missing keys become None), .parquet or .csv (every value is text). Anything
    else is a hub id, "owner/name" or "owner/name:configuration".

    Args:
        source: path or hub id.
        prompt_column: column that becomes "prompt": strings, or lists of chat messages {"role", "content"}.
            "outer.inner" names a key within a column of mappings, here and for the answers.
        answer_column: column that becomes "answer": strings; numbers are turned into strings. A non-empty list of them
            means that any of these is right: then every answer of the data set becomes a list of strings.
        split: of a hub data set; files have none.
        chat: make each plain string one message of the user, for the chat template of the model.
        empty_answers: keep rows without an answer, as "", for `check_answers` to leave out.

    Raises:
        InputError: when the source cannot be read, a column is missing, or a prompt or answer is unusable.
    """
    table = _hub_table(source, split) if _is_hub_id(source) else _file_table(source)
    _check_columns(table, prompt_column, answer_column)
    prompts = _checked(table, prompt_column, functools.partial(_prompt, MessageKinds(), table.has_types))
    answers = _checked(table, answer_column, functools.partial(_answer, may_be_empty=empty_answers))
    if any(isinstance(answer, list) for answer in answers):
        answers = [answer if isinstance(answer, list) else [answer] for answer in answers]
    if chat:
        prompts = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    _check_same_kind(table, prompt_column, prompts)
    others = [name for name in table.names if name not in (prompt_column, answer_column, "prompt", "answer")]
    return table.standardized(prompts, answers, others)


def with_column(dataset: Dataset, name: str, values: list) -> Dataset:
    """The data set with that column, in the place of one of the same name if there is one."""
    names = dataset.column_names if name in dataset.column_names else [*dataset.column_names, name]
    rest = [other for other in dataset.column_names if other != name]
    # Dataset.add_column cannot take chat messages.
    column = Dataset.from_dict({name: values}, features=prompt_features(values) if name == "prompt" else None)
    if not rest:
        return column
    return datasets.concatenate_datasets([dataset.select_columns(rest), column], axis=1).select_columns(names)


def one_line(error: BaseException, limit: int = 300) -> str:
    """The type and message of an error on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of an exception class of the user's
        text = ""
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__


@dataclass(frozen=True)
class _Table:
    """Columns as they were read: lists, or a data set that has types of its own.

    Attributes:
        source: as the user wrote it.
        columns: name -> values.
        row_names: what to call each row, "line 3" or "row 3".
    """

    source: str
    columns: dict[str, list] | Dataset
    row_names: Sequence[str]

    @property
    def has_types(self) -> bool:
        """Whether each column has one type, in which a missing key of a message is None."""
        return isinstance(self.columns, Dataset)

    @property
    def names(self) -> list[str]:
        return self.columns.column_names if isinstance(self.columns, Dataset) else list(self.columns)

    def has(self, name: str) -> bool:
        """Whether there is a column of that name, or one of mappings with that key."""
        return name in self.names or name.partition(".")[0] in self.names

    def values(self, name: str) -> Iterable[Any]:
        """A column, or the values of one key in a column of mappings: None where a row has no such key."""
        if name in self.names:
            return self.columns[name]
        outer, _, inner = name.partition(".")
        return (row.get(inner) if isinstance(row, dict) else None for row in self.columns[outer])

    def standardized(self, prompts: list, answers: list, others: list[str]) -> Dataset:
        """A data set of the prompts, the answers and the other columns."""
        chosen = with_column(Dataset.from_dict({"answer": answers}), "prompt", prompts)
        chosen = chosen.select_columns(["prompt", "answer"])
        if not others:
            return chosen
        if isinstance(self.columns, Dataset):
            rest = self.columns.select_columns(others)
        else:
            rest = Dataset.from_dict({name: self._uniform(name) for name in others})
        return datasets.concatenate_datasets([chosen, rest], axis=1)

    def _uniform(self, name: str) -> list:
        """A column of lists, once it is known that one type can hold it."""
        try:
            pyarrow.array(self.columns[name])
        except (pyarrow.ArrowException, OverflowError) as error:
            raise InputError(f"{self.source}: column {name!r} mixes types of value ({one_line(error)})") from error
        return self.columns[name]


def _is_hub_id(source: str) -> bool:
    path = path_of(source)
    like_a_path = source.startswith((".", "~", "/", os.sep)) or path.suffix.lower() in _READERS
    return not (like_a_path or path.exists())


def path_of(source: str) -> Path:
    """Where a source would be on disk.

    Raises:
        InputError: it cannot be a path: too long, or in the home of a user that there is not.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # ~nouser
        raise InputError(f"{shortened(source)}: {error}") from error
    check_path(path, "data set")
    return path


def _hub_table(source: str, split: str) -> _Table:
    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub client has dozens of kinds, for a wrong name, split, token or network
        raise InputError(
            f"{source}: no such file, and split {split!r} of a hub data set of that name cannot be loaded"
            f" ({one_line(error)})"
        ) from error
    if not isinstance(loaded, Dataset):
        raise InputError(f"{source}: split {split!r} is no single table of rows, got {type(loaded).__name__}")
    return _Table(source, loaded, _row_names(len(loaded)))


def _file_table(source: str) -> _Table:
    path = path_of(source)
    if not path.exists():
        raise InputError(f"{source}: no such file")
    if path.is_dir():
        raise InputError(f"{source}: is a folder, name one file in it")
    if not path.is_file():  # a pipe would be waited for, a device may have no end
        raise InputError(f"{source}: is no regular file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{source}: the suffix must be one of {', '.join(_READERS)}, got {path.suffix!r}")
    try:
        return reader(source, path)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({one_line(error)})") from error


def _jsonl_table(source: str, path: Path) -> _Table:
    """Line by line, so that a mistake can be named by its line."""
    rows, row_names = [], []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            rows.append(_json_object(source, number, line))
            row_names.append(f"line {number}")
    names = dict.fromkeys(name for row in rows for name in row)
    return _Table(source, {name: [row.get(name) for row in rows] for name in names}, row_names)


def _json_object(source: str, number: int, line: bytes) -> dict[str, Any]:
    shown = shortened(line.decode("utf-8", "replace").strip())
    try:
        row = json_value(line, exact=True)
    except JsonError as error:
        raise InputError(f"{source}, line {number}: {error}, got {shown}") from error
    if not isinstance(row, dict):
        raise InputError(f"{source}, line {number}: must be one JSON object, got {shown}")
    return row


def _csv_table(source: str, path: Path) -> _Table:
    """Every value as the text it is: guessing types would turn the answer 007 into 7."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as UTF-8 CSV ({one_line(error)})") from error
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{source}: column {twice[0]!r} occurs {header.count(twice[0])} times in the header")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{source}, row {number}: must have {len(header)} values, got {len(row)}: {shortened(row)}"
            )
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    return _Table(source, columns, _row_names(len(rows)))


def _parquet_table(source: str, path: Path) -> _Table:
    try:
        table = pyarrow.parquet.read_table(path)
        table.validate(full=True)  # texts that are no UTF-8 among others
    except pyarrow.ArrowException as error:
        raise InputError(f"{source}: cannot be read as Parquet ({one_line(error)})") from error
    for field in table.schema:
        if not _is_supported(field.type):
            raise InputError(f"{source}: column {field.name!r} has the type {field.type}, which a data set cannot hold")
    try:
        return _Table(source, Dataset(table), _row_names(table.num_rows))
    except Exception as error:  # what the file says of itself for datasets (its metadata) may be anything
        raise InputError(
            f'{source}: its columns or its metadata "huggingface" cannot be used ({one_line(error)}); written without'
            " metadata, a table loads"
        ) from error


def _is_supported(kind: pyarrow.DataType) -> bool:
    """Whether the datasets library has a type for a column: not for maps and unions, on any level."""
    if pyarrow.types.is_map(kind) or pyarrow.types.is_union(kind):
        return False
    return all(_is_supported(kind.field(index).type) for index in range(kind.num_fields))


_READERS: dict[str, Callable[[str, Path], _Table]] = {
    ".jsonl": _jsonl_table,
    ".json-lines": _jsonl_table,
    ".parquet": _parquet_table,
    ".csv": _csv_table,
}


def _row_names(count: int) -> list[str]:
    return [f"row {number}" for number in range(1, count + 1)]


def _check_columns(table: _Table, prompt_column: str, answer_column: str) -> None:
    if not table.row_names:
        raise InputError(f"{table.source}: the data set is empty")
    if prompt_column == answer_column:
        raise InputError(f"{table.source}: prompt and answer must be two columns, got {prompt_column!r} for both")
    for name, role in ((prompt_column, "prompt"), (answer_column, "answer")):
        if not table.has(name):
            near = difflib.get_close_matches(name, table.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{table.source}: no column {name!r} for the {role}, the columns are {', '.join(table.names)}{hint}"
            )
        if name != role and role in table.names and role not in (prompt_column, answer_column):
            raise InputError(
                f"{table.source}: column {name!r} was chosen as the {role}, and a column {role!r} exists too"
            )


def _checked(table: _Table, column: str, check: Callable[[Any], Any]) -> list:
    """The column's values after `check`, whose ValueError is completed with source, row and column."""
    values = []
    for row_name, value in zip(table.row_names, table.values(column), strict=True):
        try:
            values.append(check(value))
        except ValueError as error:
            raise InputError(
                f"{table.source}, {row_name}, column {column!r}: {error}, got {shortened(value)}"
            ) from error
    return values


def _prompt(kinds: MessageKinds, has_types: bool, value: Any) -> Any:
    prompt = checked_prompt(value)
    kinds.check(prompt)
    return present(prompt) if has_types else prompt


def _answer(value: Any, *, may_be_empty: bool = False) -> str | list[str]:
    if may_be_empty and (value is None or (isinstance(value, str | list) and not value)):
        return ""
    if isinstance(value, list) and value:
        return [_single_answer(item, may_be_empty) for item in value]
    return _single_answer(value, may_be_empty)


def _single_answer(value: Any, may_be_empty: bool) -> str:
    if isinstance(value, str):
        if not value.strip() and not may_be_empty:
            raise ValueError("the answer must not be empty")
        return value
    is_number = isinstance(value, int) and not isinstance(value, bool)  # of any size, beyond the range of a float too
    if not is_number and not (isinstance(value, float) and math.isfinite(value)):
        raise ValueError("the answer must be a string or a finite number")
    return str(value)


def _check_same_kind(table: _Table, column: str, prompts: list) -> None:
    for row_name, prompt in zip(table.row_names, prompts, strict=True):
        if isinstance(prompt, str) != isinstance(prompts[0], str):
            raise InputError(
                f"{table.source}, {row_name}, column {column!r}: prompts must be all strings or all chat messages"
                f" (chat=True makes strings into messages), got {shortened(prompt)}"
            )
