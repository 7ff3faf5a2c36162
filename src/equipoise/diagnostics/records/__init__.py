"""Token records: what every recorded token was and did, in Parquet files that outlive the trainer.

They are written by `TokenRecorder`, in any training loop, and read by `read_records`, or by pandas, polars or DuckDB
without this package. The columns, their units and what they mean: `COLUMNS`, and docs/token_records.md.
"""

from equipoise.diagnostics.records.reader import RecordFile, RecordFiles, read_records, record_files
from equipoise.diagnostics.records.schema import COLUMNS, SCHEMA_VERSION, Column, RecordsError
from equipoise.diagnostics.records.writer import TokenRecorder, drop_after

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Column",
    "RecordFile",
    "RecordFiles",
    "RecordsError",
    "TokenRecorder",
    "drop_after",
    "read_records",
    "record_files",
]
