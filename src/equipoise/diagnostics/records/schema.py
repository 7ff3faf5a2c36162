"""The columns of a token record, and how a Parquet file says that it holds some."""

import json
import re
from typing import NamedTuple

import pyarrow as pa

from equipoise.errors import InputError, shortened

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or goes away; a new column alone does not raise it."""

_KIND, _VERSION, _UNITS = b"equipoise", b"equipoise_schema_version", b"equipoise_units"
_TEXT = pa.dictionary(pa.int32(), pa.string())


class RecordsError(InputError):
    """Token records cannot be written or read: the message names the file and the cause."""


class Column(NamedTuple):
    """One column of the records.

    Attributes:
        type: as stored.
        per: "token" [batch, time], "sample" [batch], or "file": given once, or filled in by the recorder.
        required: whether `TokenRecorder.record` must be given it; other columns are null, or derived as described.
        unit: of the values; "" for names, numbers and flags.
        description: what it is, and what it is when it was not given.
    """

    type: pa.DataType
    per: str
    required: bool
    unit: str
    description: str


COLUMNS = {
    "run": Column(_TEXT, "file", False, "", "name of the run"),
    "update": Column(pa.int32(), "file", True, "updates", "the optimizer update the token was used in, from 1"),
    "sample": Column(pa.int64(), "sample", False, "", "number of the sampled sequence, unique within the run"),
    "group": Column(pa.int64(), "sample", False, "", "number of the group of samples that share a prompt"),
    "position": Column(pa.int32(), "file", False, "tokens", "place of the token in its completion, from 0"),
    "token_id": Column(pa.int32(), "token", True, "", "id in the vocabulary"),
    "token": Column(_TEXT, "file", False, "", "text of the token alone; bytes that are no whole character show as �"),
    "prompt": Column(pa.string(), "sample", False, "", "text of the prompt, in the first row of a sample only"),
    "policy_version": Column(
        pa.int32(), "token", False, "updates", "updates made before the token was sampled; staleness is update − 1 − it"
    ),
    "behavior_logprob": Column(
        pa.float32(), "token", False, "nats", "log μ(a|s) of the policy (or inference engine) that sampled the token"
    ),
    "old_logprob": Column(
        pa.float32(),
        "token",
        False,
        "nats",
        "denominator of the ratio, log-probability; without: behavior_logprob",
    ),
    "logprob": Column(pa.float32(), "token", True, "nats", "log π(a|s) of the policy in this update, before its step"),
    "ratio": Column(
        pa.float32(), "token", False, "", "importance ratio as clipped; without: exp(logprob − old_logprob)"
    ),
    "entropy": Column(pa.float32(), "token", True, "nats", "exact entropy H of π(·|s)"),
    "tendency": Column(
        pa.float32(), "token", True, "nats", "T: first-order entropy change of a unit step on log π(a|s)"
    ),
    "advantage": Column(pa.float32(), "token", True, "", "A before reweighting; may be given per sample"),
    "reweighted_advantage": Column(
        pa.float32(), "token", False, "", "A after polarity control: what the loss saw; without: advantage"
    ),
    "polarity": Column(
        pa.float32(), "file", False, "nats", "A·T, A before reweighting: > 0 expands entropy, < 0 contracts it"
    ),
    "clipped_low": Column(pa.bool_(), "token", False, "", "lower bound takes the gradient away (A < 0, ratio < low)"),
    "clipped_high": Column(pa.bool_(), "token", False, "", "upper bound takes the gradient away (A > 0, ratio > high)"),
    "action_mask": Column(pa.bool_(), "token", True, "", "the policy chose the token (False: an environment did)"),
    "loss_mask": Column(pa.bool_(), "token", False, "", "the token carries loss; without: action_mask"),
    "reward": Column(pa.float32(), "sample", False, "", "reward of the sample"),
}
"""Every column by name, in the order of the files."""


def arrow_schema() -> pa.Schema:
    """The schema of a file, with kind, version and units in its metadata."""
    units = {name: column.unit for name, column in COLUMNS.items() if column.unit}
    metadata = {_KIND: b"token_records", _VERSION: str(SCHEMA_VERSION).encode(), _UNITS: json.dumps(units).encode()}
    return pa.schema([(name, column.type) for name, column in COLUMNS.items()], metadata=metadata)


def check_schema(schema: pa.Schema, path: object) -> None:
    """Accept a file of this schema version or an older one, with the columns that every record has.

    Raises:
        RecordsError: no token records, of a newer version, or a column that is missing or of another type.
    """
    metadata = schema.metadata or {}
    if metadata.get(_KIND) != b"token_records":
        raise RecordsError(f"{path} holds no token records of equipoise")
    version = metadata.get(_VERSION, b"none")
    if not re.fullmatch(rb"[0-9]{1,6}", version):
        raise RecordsError(f"{path}: the schema version must be a whole number, got {shortened(version)}")
    if int(version) > SCHEMA_VERSION:
        raise RecordsError(
            f"{path} has token records of schema version {int(version)}; this equipoise reads versions up to "
            f"{SCHEMA_VERSION}: update it"
        )
    for name, column in COLUMNS.items():
        found = schema.names.count(name)
        if found > 1 or (found == 0 and column.required):
            raise RecordsError(f"{path} must have the column {name} once, got it {found} times")
        if found and not _fits(schema.field(name).type, column.type):
            raise RecordsError(f"{path}: column {name} must be {column.type}, got {schema.field(name).type}")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type are of the kind that a column has, if perhaps wider."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_dictionary(wanted):
        wanted = wanted.value_type
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, _is_text)
    return pa.types.is_null(found) or any(is_kind(found) and is_kind(wanted) for is_kind in kinds)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
