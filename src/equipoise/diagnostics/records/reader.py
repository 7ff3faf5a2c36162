"""Reading token records back: which files can be read, and their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from equipoise.diagnostics.records.schema import COLUMNS, RecordsError, arrow_schema, check_version
from equipoise.diagnostics.run_folder import RECORDS_FOLDER


@dataclass(frozen=True)
class RecordFiles:
    """The files of a folder of records.

    Attributes:
        readable: paths of whole files, in the order in which they were written.
        unreadable: one line for each file that is cut off or no Parquet, with its name and the cause.
        num_rows: rows of the readable ones.
    """

    readable: list[Path]
    unreadable: list[str]
    num_rows: int

    def batches(self, columns: Sequence[str], updates: tuple[int, int] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of the named columns, a row group at a time; row groups outside `updates` are not read."""
        needed = list(dict.fromkeys([*columns, *(["update"] if updates else [])]))
        for path in self.readable:
            with pq.ParquetFile(path, read_dictionary=["run", "token"]) as file:
                for group in range(file.num_row_groups):
                    if updates and not _overlaps(file, group, updates):
                        continue
                    table = file.read_row_group(group, columns=needed)
                    if updates:
                        inside = (pc.field("update") >= updates[0]) & (pc.field("update") <= updates[1])
                        table = table.filter(inside)
                    yield from table.select([c for c in columns if c in table.column_names]).to_batches()


def record_files(folder: str | Path) -> RecordFiles:
    """The records of a run folder, or of a folder of record files.

    Raises:
        RecordsError: records of a newer schema, or Parquet files that are none of ours.
    """
    folder = Path(folder)
    if (folder / RECORDS_FOLDER).is_dir():
        folder = folder / RECORDS_FOLDER
    readable, unreadable, num_rows = [], [], 0
    for path in sorted(folder.glob("*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            unreadable.append(
                f"{path} cannot be read, it is cut off or no Parquet: {' '.join(str(error).split())[:120]}"
            )
            continue
        check_version(schema, path)
        readable.append(path)
        num_rows += rows
    return RecordFiles(readable, unreadable, num_rows)


def read_records(
    folder: str | Path, *, columns: Sequence[str] | None = None, updates: tuple[int, int] | None = None
) -> pa.Table:
    """The token records of a run as one table; `.to_pandas()` for a data frame.

    Args:
        folder: run folder, or folder of record files.
        columns: names of `COLUMNS`; all without.
        updates: first and last update that are read.

    Raises:
        RecordsError: no records, a file that is cut off (with its name), records of a newer schema, a column that is
            not known. `record_files` leaves files that are cut off out and tells which.
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
    schema = pa.schema([arrow_schema().field(name) for name in names])
    return pa.Table.from_batches(files.batches(names, updates), schema=schema).unify_dictionaries()


def _overlaps(file: pq.ParquetFile, group: int, updates: tuple[int, int]) -> bool:
    index = file.schema_arrow.get_field_index("update")
    statistics = file.metadata.row_group(group).column(index).statistics
    return statistics is None or (statistics.max >= updates[0] and statistics.min <= updates[1])
