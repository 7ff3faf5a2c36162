"""Reading token records back: which files can be read, and their rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from equipoise.diagnostics.records.schema import COLUMNS, RecordsError, check_schema
from equipoise.diagnostics.run_folder import RECORDS_FOLDER
from equipoise.inputs.regular_files import open_regular

MOST_ROWS_OF_A_GROUP = 4 * 1024 * 1024
"""A row group is in memory as a whole; the recorder writes groups of 256 Ki rows."""

_FIELDS = {name: pa.field(name, column.type) for name, column in COLUMNS.items()}


@contextmanager
def _reading(place: object) -> Iterator[None]:
    """Whatever pyarrow raises for a file that is damaged, or that is not what it was, as one line."""
    try:
        yield
    except RecordsError:
        raise
    except Exception as error:  # of a damaged page come ArrowInvalid, OSError, and errors of the codecs of any type
        cause = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise RecordsError(f"{place} cannot be read, it is cut off or no Parquet: {cause}") from error


class RecordFile:
    """One file of records, open; the columns come as `COLUMNS` has them, missing ones null.

    Args:
        path: of the file.

    Raises:
        RecordsError: it cannot be read, is of a newer schema, or holds no token records.
    """

    def __init__(self, path: Path):
        self.path = path
        with _reading(path):
            open_regular(path).close()  # pyarrow would wait for the writer of a pipe
            with pq.ParquetFile(path) as file:
                self.schema, self._metadata = file.schema_arrow, file.metadata
            self.num_row_groups, self.num_rows = self._metadata.num_row_groups, self._metadata.num_rows
            check_schema(self.schema, path)
            texts = [name for name in ("run", "token") if name in self.schema.names]
            self._file = pq.ParquetFile(path, metadata=self._metadata, read_dictionary=texts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def table(self, group: int, columns: Sequence[str]) -> pa.Table:
        """The named columns of a row group.

        Raises:
            RecordsError: it is damaged, too large, or a column does not fit its type.
        """
        place = f"{self.path}, row group {group}"
        with _reading(place):
            rows = self._metadata.row_group(group).num_rows
            if rows > MOST_ROWS_OF_A_GROUP:
                raise RecordsError(f"{place} must have at most {MOST_ROWS_OF_A_GROUP:,} rows, got {rows:,}")
            table = self._file.read_row_group(group, columns=[c for c in columns if c in self.schema.names])
            fields = [_FIELDS[name] for name in columns]
            arrays = [
                table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
                for f in fields
            ]
            return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def overlaps(self, group: int, updates: tuple[int, int]) -> bool:
        """Whether a row group may have rows of these updates, first and last."""
        with _reading(f"{self.path}, row group {group}"):
            statistics = self._metadata.row_group(group).column(self.schema.get_field_index("update")).statistics
            if statistics is None or not statistics.has_min_max:
                return True
            return statistics.max >= updates[0] and statistics.min <= updates[1]


@dataclass(frozen=True)
class RecordFiles:
    """The files of a folder of records.

    Attributes:
        readable: paths of the files that can be opened, in the order in which they were written.
        unreadable: one line for each file that is cut off, no Parquet, of a newer schema or of something else, with its
            name and the cause.
        num_rows: rows of the readable ones.
        num_row_groups: of each of the readable ones.
    """

    readable: list[Path]
    unreadable: list[str]
    num_rows: int
    num_row_groups: list[int] = field(default_factory=list)

    def batches(self, columns: Sequence[str], updates: tuple[int, int] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of the named columns, a row group at a time; row groups outside `updates` are not read.

        Raises:
            RecordsError: a file that is damaged where its rows are, with its name.
        """
        needed: list[str] = list(dict.fromkeys([*columns, *(["update"] if updates else [])]))
        for path in self.readable:
            with RecordFile(path) as file:
                for group in range(file.num_row_groups):
                    if updates and not file.overlaps(group, updates):
                        continue
                    table = file.table(group, needed)
                    if updates:
                        inside = (pc.field("update") >= updates[0]) & (pc.field("update") <= updates[1])
                        table = table.filter(inside)
                    yield from table.select(list(columns)).to_batches()


def record_files(folder: str | Path) -> RecordFiles:
    """The records of a run folder, or of a folder of record files. What cannot be opened is named, not refused."""
    folder = Path(folder)
    if (folder / RECORDS_FOLDER).is_dir():
        folder = folder / RECORDS_FOLDER
    readable, unreadable, num_rows, groups = [], [], 0, []
    for path in sorted(folder.glob("*.parquet")):
        try:
            with RecordFile(path) as file:
                num_rows += file.num_rows
                groups.append(file.num_row_groups)
                readable.append(path)
        except RecordsError as error:
            unreadable.append(str(error))
    return RecordFiles(readable, unreadable, num_rows, groups)


def read_records(
    folder: str | Path, *, columns: Sequence[str] | None = None, updates: tuple[int, int] | None = None
) -> pa.Table:
    """The token records of a run as one table; `.to_pandas()` for a data frame.

    Args:
        folder: run folder, or folder of record files.
        columns: names of `COLUMNS`; all without.
        updates: first and last update that are read.

    Raises:
        RecordsError: no records, a file that is cut off or damaged (with its name), records of a newer schema or of
            something else, a column that is not known. `record_files` leaves such files out and tells which.
    """
    names = list(COLUMNS) if columns is None else list(columns)
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise RecordsError(f"column {unknown[0]} is not known; columns are {', '.join(COLUMNS)}")
    files = record_files(folder)
    if files.unreadable:
        raise RecordsError(files.unreadable[0])
    if not files.readable:
        raise RecordsError(f"{folder} has no token records: train with record_tokens")
    schema = pa.schema([_FIELDS[name] for name in names])
    return pa.Table.from_batches(files.batches(names, updates), schema=schema).unify_dictionaries()
