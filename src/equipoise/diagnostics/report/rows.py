"""Rows of token records as arrays that can be summed: what was not recorded is NaN, and so is what is not finite."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from equipoise.diagnostics.records import COLUMNS, RecordFile, RecordFiles
from equipoise.polarity import surviving_change

NEEDED = (
    "update", "sample", "group", "position", "token", "policy_version", "logprob", "ratio", "entropy", "polarity",
    "advantage", "reweighted_advantage", "clipped_low", "clipped_high", "action_mask", "loss_mask", "reward",
)  # fmt: skip

NO_VERSION = 2**30
"""A policy version that was not recorded: far in the future."""

LARGEST = 1e30
"""Numbers beyond it are taken for infinities: their squares must be summed."""

LONGEST_TOKEN, LONGEST_PROMPT = 100, 4000
"""Characters of a text that are kept; tokens that begin with the same ones count as one."""


@dataclass(frozen=True)
class Rows:
    """A row group as arrays.

    Attributes:
        columns: by name; of `token` the place in `texts`.
        texts: of tokens.
        change: predicted entropy change m rho A T of each token per unit step, nats: 0 where it is clipped or carries
            no loss, or where it is not known.
    """

    columns: dict[str, np.ndarray]
    texts: list[str]
    change: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.change)

    @property
    def weight(self) -> np.ndarray:
        """A after reweighting over A; 1 where A is 0."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(self["advantage"] != 0, self["reweighted_advantage"] / self["advantage"], 1.0)

    @property
    def probability(self) -> np.ndarray:
        """Of the sampled token."""
        return np.exp(np.minimum(self["logprob"], 0))


class RowReader:
    """Reads row groups, and counts what it leaves out; keeps the file that it read last open.

    A row without a place, of no update or before its completion, is left out.
    """

    def __init__(self):
        self._file: RecordFile | None = None
        self._without_place = 0
        self._not_finite: Counter[str] = Counter()

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def left_out(self) -> list[str]:
        """One line for each kind of value that was left out, with how many there were."""
        lines = [
            f"token records: {name} must be finite, at most {LARGEST:g}; {count:,} values are not and count as missing"
            for name, count in self._not_finite.items()
        ]
        if self._without_place:
            rows = f"{self._without_place:,} rows are left out"
            lines.append(f"token records: update and position must be >= 0, {rows}")
        return lines

    def rows(self, path: Path, group: int, columns: tuple[str, ...] = NEEDED) -> Rows:
        """The rows of a row group.

        Raises:
            RecordsError: they cannot be read.
        """
        if self._file is None or self._file.path != path:
            self._close()
            self._file = RecordFile(path)
        table = self._file.table(group, columns)
        arrays: dict[str, np.ndarray] = {}
        for name in columns:
            if name not in ("token", "prompt"):
                arrays[name] = self._array(table[name].combine_chunks(), name)
        texts, arrays["token"] = _token_texts(table["token"])
        if "prompt" in columns:
            arrays["prompt"] = np.array(_decoded(table["prompt"], LONGEST_PROMPT), dtype=object)
        placed = (arrays["update"] >= 0) & (arrays["position"] >= 0)
        if not placed.all():
            self._without_place += int((~placed).sum())
            arrays = {name: values[placed] for name, values in arrays.items()}
        return Rows(arrays, texts, _change(arrays))

    def _array(self, values: pa.Array, name: str) -> np.ndarray:
        kind = COLUMNS[name].type
        if pa.types.is_boolean(kind):
            return values.fill_null(False).to_numpy(zero_copy_only=False)
        if pa.types.is_integer(kind):
            filled = values.fill_null(NO_VERSION if name == "policy_version" else -1)
            return filled.to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        unusable = ~(np.abs(numbers) <= LARGEST)
        if count := int(unusable.sum()) - values.null_count:
            self._not_finite[name] += count
        numbers[unusable] = np.nan
        return numbers


def _change(arrays: dict[str, np.ndarray]) -> np.ndarray:
    passes = arrays["loss_mask"] & ~arrays["clipped_low"] & ~arrays["clipped_high"]
    ratio = np.where(np.isnan(arrays["ratio"]), 1.0, arrays["ratio"])
    return np.nan_to_num(surviving_change(arrays["polarity"], ratio, passes)) + 0.0  # 0, not -0, where m is 0


def _token_texts(tokens: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The texts, "" last for a token without one, and of each token the place of its text."""
    whole = tokens.combine_chunks()
    array = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    texts = [text or "" for text in _decoded(array.dictionary, LONGEST_TOKEN)]
    places = array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return [*texts, ""], places


def _decoded(values: Any, longest: int) -> list[str | None]:
    """Texts, each cut; bytes that are no UTF-8 show as �."""
    raw = values.cast(pa.binary()).to_pylist()
    return [None if text is None else text[: 4 * longest].decode("utf-8", "replace")[:longest] for text in raw]


def row_groups(files: RecordFiles) -> list[tuple[int, int, Path]]:
    """(file, row group, path) of everything that can be read."""
    places = zip(files.readable, files.num_row_groups, strict=True)
    return [(number, group, path) for number, (path, count) in enumerate(places) for group in range(count)]
