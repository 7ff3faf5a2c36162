"""Writing token records while training goes on: the step copies, a thread of its own does the rest."""

import atexit
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from equipoise.diagnostics.records.schema import COLUMNS, RecordsError, arrow_schema
from equipoise.errors import require
from equipoise.files import PART, file_at_once
from equipoise.splitmix import STEP, signed, splitmix64

FILE_NAME = re.compile(r"part-(\d{6})-rank(\d{4})\.parquet")
_PER_TOKEN = {name: column for name, column in COLUMNS.items() if column.per == "token"}
_PER_SAMPLE = {name: column for name, column in COLUMNS.items() if column.per == "sample"}


class TokenRecorder:
    """Records tokens of any training loop in a folder of Parquet files.

    `record` copies what it is given and returns; a thread writes one file per flush. A file appears under its name when
    it is whole, so after a crash everything up to the last flush can be read. Use it as a context, or call `close`.

        with TokenRecorder("runs/mine/tokens", decode=tokenizer.decode) as recorder:
            recorder.record(
                update=1, token_id=ids, action_mask=mask, logprob=..., entropy=..., tendency=..., advantage=...
            )

    Args:
        folder: made if need be; files that are there stay.
        run: name of the run, in every record.
        decode: token ids -> text, called in the writer's thread (a fast tokenizer is not to be used in two threads:
            give a copy); None leaves the texts empty.
        rank: of this process; every rank writes files of its own.
        fraction: share of the samples that are recorded, whole, in (0, 1]; chosen by `seed` and number of the sample,
            so that a sample that is recorded once is recorded in every recorded update.
        seed: of that choice.
        flush_rows: rows at which a file is written.
        flush_seconds: age of the oldest unwritten row at which a file is written.

    Raises:
        ValueError: fraction, flush_rows or flush_seconds outside their range.
        RecordsError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        run: str = "",
        decode: Callable[[list[int]], str] | None = None,
        rank: int = 0,
        fraction: float = 1.0,
        seed: int = 0,
        flush_rows: int = 200_000,
        flush_seconds: float = 60.0,
    ):
        require("fraction", fraction, "in (0, 1]", 0 < fraction <= 1)
        require("flush_rows", flush_rows, ">= 1", flush_rows >= 1)
        require("flush_seconds", flush_seconds, "> 0", flush_seconds > 0)
        self.folder, self.run, self.rank, self.fraction, self.seed = Path(folder), run, rank, fraction, seed
        self._texts = _Texts(decode)
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=16)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._tables: list[pa.Table] = []
        self._num_rows, self._oldest = 0, 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordsError(f"folder of token records {self.folder} cannot be made: {error.strerror}") from error

    def record(self, *, update: int, token_mask: Any = None, **columns: Any) -> None:
        """Record the tokens of one micro-batch.

        Args:
            update: the optimizer update, from 1.
            token_mask: [batch, time], False on padding, which has no rows; `action_mask` without it.
            columns: by the names of `COLUMNS`, tensors or arrays on any device: per token [batch, time], per sample
                [batch], `advantage` and `policy_version` either; `prompt` a list of texts or of lists of token ids.

        Raises:
            ValueError: a column that is missing, not known, or of another shape.
            RecordsError: an earlier record could not be written.
        """
        self._raise_error()
        arrays = _checked(columns)
        shape = arrays["token_id"].shape
        sample = arrays.get("sample")
        chosen = np.arange(shape[0])
        if self.fraction < 1:
            if sample is None:
                raise ValueError("fraction < 1 chooses by number of the sample: give the column sample")
            chosen = np.flatnonzero(_is_chosen(sample, self.fraction, self.seed))
        if len(chosen) == 0:
            return
        mask = arrays["action_mask"] if token_mask is None else torch.as_tensor(token_mask)
        if mask.shape != shape:
            raise ValueError(f"token_mask must be {list(shape)} like token_id, got {list(mask.shape)}")
        copied = _copied(arrays | {"token_mask": mask.bool()}, chosen, shape)
        prompts = columns.get("prompt")
        if prompts is not None:
            copied["prompt"] = [prompts[i] for i in chosen]
        self._start()
        self._queue.put((update, copied))  # waits when the disk is that slow: nothing is dropped

    def flush(self) -> None:
        """Write what was recorded so far; returns when it is on disk.

        Raises:
            RecordsError: it could not be written.
        """
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait()
        self._raise_error()

    def close(self) -> None:
        """Flush and end the thread; the recorder may be used again.

        Raises:
            RecordsError: not everything could be written.
        """
        atexit.unregister(self.close)
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise RecordsError(_cause(self.folder, error)) from error

    def __enter__(self) -> "TokenRecorder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RecordsError(_cause(self.folder, self._error)) from self._error

    # ---- in the thread ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="token records", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _work(self) -> None:
        while True:
            try:
                wait = self._oldest + self._flush_seconds - time.monotonic() if self._num_rows else None
                item = self._queue.get(timeout=None if wait is None else max(wait, 0.0))
            except queue.Empty:
                self._guarded(self._write)
                continue
            if isinstance(item, tuple):
                self._guarded(self._add, *item)
                continue
            self._guarded(self._write)
            if item is None:
                return
            item.set()

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """After an error the thread still takes what it is given, so that nobody waits for it."""
        if self._error is not None:
            return
        try:
            action(*arguments)
        except Exception as error:  # told to the next caller of record, flush or close
            self._error = error
            self._tables, self._num_rows = [], 0

    def _add(self, update: int, columns: dict[str, Any]) -> None:
        table = _table(update, columns, self.run, self._texts)
        if not self._num_rows:
            self._oldest = time.monotonic()
        self._tables.append(table)
        self._num_rows += len(table)
        if self._num_rows >= self._flush_rows:
            self._write()

    def _write(self) -> None:
        if not self._num_rows:
            return
        numbers = [int(m[1]) for m in map(FILE_NAME.fullmatch, os.listdir(self.folder)) if m and int(m[2]) == self.rank]
        path = self.folder / f"part-{max(numbers, default=-1) + 1:06d}-rank{self.rank:04d}.parquet"
        write_file(pa.concat_tables(self._tables).unify_dictionaries(), path)
        self._tables, self._num_rows = [], 0


def write_file(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all, also when the machine goes down."""
    with file_at_once(path) as part, part.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=256 * 1024)


def drop_after(folder: str | Path, update: int, *, ranks: Callable[[int], bool] = lambda rank: True) -> None:
    """Forget records of later updates, and files that were cut off: a resumed run writes them again.

    Args:
        folder: of the records; it may be missing.
        update: the last update that is kept.
        ranks: which ranks' files are looked at, by number.

    Raises:
        RecordsError: a file cannot be rewritten.
    """
    folder = Path(folder)
    for path in sorted(folder.glob("part-*")):
        match = FILE_NAME.fullmatch(path.name.removesuffix(PART))
        if not match or not ranks(int(match[2])):
            continue
        try:
            if path.suffix == PART:
                path.unlink()
            else:
                _keep_until(path, update)
        except OSError as error:
            raise RecordsError(_cause(path, error)) from error


def _keep_until(path: Path, update: int) -> None:
    try:
        updates = pq.read_table(path, columns=["update"])["update"]
    except pa.ArrowInvalid:  # cut off: nothing in it can be read, and the reader says so
        return
    last = pc.max(updates).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if last <= update:
        return
    table = pq.read_table(path).filter(pc.field("update") <= update)
    if len(table):
        write_file(table, path)
    else:
        path.unlink()


def _cause(place: object, error: BaseException) -> str:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return f"token records in {place} cannot be written: {cause}"


# ---- from micro-batch to rows -----------------------------------------------------------------------------------


def _checked(columns: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The given columns as tensors of their shapes."""
    known = _PER_TOKEN | _PER_SAMPLE
    unknown = sorted(columns.keys() - known.keys())
    if unknown:
        raise ValueError(f"column {unknown[0]} is not known; columns are {', '.join(known)}")
    columns = {name: value for name, value in columns.items() if value is not None}
    missing = [name for name, column in known.items() if column.required and name not in columns]
    if missing:
        raise ValueError(f"column {missing[0]} is required")
    shape = tuple(torch.as_tensor(columns["token_id"]).shape)
    if len(shape) != 2:
        raise ValueError(f"column token_id must be [batch, time], got {list(shape)}")
    tensors = {}
    for name, value in columns.items():
        if name == "prompt":
            if len(value) != shape[0]:
                raise ValueError(f"column prompt must have {shape[0]} entries like token_id, got {len(value)}")
            continue
        tensor = torch.as_tensor(value).detach()
        if name in ("advantage", "policy_version") and tensor.shape == shape[:1]:
            tensor = tensor.unsqueeze(1).expand(shape)
        expected = shape if name in _PER_TOKEN else shape[:1]
        if tensor.shape != expected:
            raise ValueError(f"column {name} must be {list(expected)} like token_id, got {list(tensor.shape)}")
        tensors[name] = tensor
    return tensors


def _is_chosen(sample: torch.Tensor, fraction: float, seed: int) -> np.ndarray:
    """Which samples are recorded: a hash of seed and number, as a fraction of 2^64, below `fraction`."""
    hashed = splitmix64(sample.long() + signed(seed * STEP))
    return _on_cpu(hashed).view(np.uint64) / 2**64 < fraction


def _copied(tensors: dict[str, torch.Tensor], chosen: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """Copies on the CPU of the chosen samples."""
    everything = len(chosen) == shape[0]
    copies: dict[str, Any] = {}
    for (dtype, _, _), names in _travelling_together(tensors).items():
        stacked = torch.stack([tensors[n].to(dtype) for n in names])
        rows = stacked if everything else stacked[:, torch.as_tensor(chosen, device=stacked.device)]
        copies |= dict(zip(names, _on_cpu(rows), strict=True))
    return copies


def _travelling_together(tensors: dict[str, torch.Tensor]) -> dict[tuple[torch.dtype, int, torch.device], list[str]]:
    """Columns of one type, rank and device: one copy from the device for all of them."""
    groups: dict[tuple[torch.dtype, int, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((_storage(tensor), tensor.dim(), tensor.device), []).append(name)
    return groups


def _storage(tensor: torch.Tensor) -> torch.dtype:
    if tensor.dtype == torch.bool:
        return torch.bool
    return torch.float32 if tensor.is_floating_point() else torch.int64


def _on_cpu(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


class _Texts:
    """Texts of tokens, each decoded once."""

    def __init__(self, decode: Callable[[list[int]], str] | None):
        self.decode = decode
        self._known: dict[int, str] = {}

    def of(self, token_ids: np.ndarray) -> pa.DictionaryArray:
        unique, index = np.unique(token_ids, return_inverse=True)
        texts = []
        for token in unique.tolist():
            if token not in self._known:
                self._known[token] = self.decode([token]) if self.decode else ""
            texts.append(self._known[token])
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(texts, pa.string()))

    def prompt(self, prompt: Any) -> str:
        """A prompt that is text, or ids in any form."""
        if isinstance(prompt, str):
            return prompt
        return self.decode(np.asarray(prompt).tolist()) if self.decode else ""


def _table(update: int, columns: dict[str, Any], run: str, texts: _Texts) -> pa.Table:
    """The rows of one micro-batch."""
    row, position = np.nonzero(columns["token_mask"].astype(bool))
    rows: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if name not in ("token_mask", "prompt"):
            rows[name] = values[row, position] if values.ndim == 2 else values[row]
    rows["polarity"] = rows["advantage"] * rows["tendency"]
    rows.setdefault("reweighted_advantage", rows["advantage"])
    rows.setdefault("loss_mask", rows["action_mask"])
    if "behavior_logprob" in rows:
        rows.setdefault("old_logprob", rows["behavior_logprob"])
    if "old_logprob" in rows and "ratio" not in rows:
        rows["ratio"] = np.exp(rows["logprob"] - rows["old_logprob"])
    arrays = {name: pa.array(values, COLUMNS[name].type) for name, values in rows.items()}
    count = len(row)
    constant = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([run], pa.string()))
    arrays |= {"run": constant, "token": texts.of(rows["token_id"])}
    arrays |= {"update": pa.array(np.full(count, update, np.int32)), "position": pa.array(position.astype(np.int32))}
    if "prompt" in columns:
        is_first = np.append(True, row[1:] != row[:-1])[:count]
        prompts: list[str | None] = [None] * count
        for place in np.flatnonzero(is_first):
            prompts[place] = texts.prompt(columns["prompt"][row[place]])
        arrays["prompt"] = pa.array(prompts, pa.string())
    schema = arrow_schema()
    return pa.Table.from_arrays([arrays.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)
