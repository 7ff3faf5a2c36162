"""Token records: rows by hand, whole files only, and every refusal."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from equipoise.diagnostics.records import (
    COLUMNS,
    SCHEMA_VERSION,
    RecordsError,
    TokenRecorder,
    drop_after,
    read_records,
    record_files,
    writer,
)

# Two samples of three places; the first is one token shorter, and its second token is an environment's.
IDS = [[5, 6, 0], [7, 5, 8]]
MASK = [[1, 1, 0], [1, 1, 1]]
ACTION = [[True, False, False], [True, True, True]]


def batch(**changes):
    columns = {
        "token_id": torch.tensor(IDS),
        "action_mask": torch.tensor(ACTION),
        "logprob": torch.tensor([[-1.0, -2.0, torch.nan], [-0.5, -0.25, -3.0]], requires_grad=True),
        "old_logprob": torch.tensor([[-1.0, -2.0, torch.nan], [-0.5, -0.5, -2.0]]),
        "entropy": torch.tensor([[0.1, 0.2, torch.nan], [0.3, 0.4, 0.5]]),
        "tendency": torch.tensor([[0.5, -0.5, torch.nan], [0.25, -0.25, 1.0]]),
        "advantage": torch.tensor([2.0, -1.0]),
        "sample": torch.tensor([10, 11]),
        "group": torch.tensor([3, 3]),
        "reward": torch.tensor([1.0, 0.0]),
        "prompt": ["what?", [5, 6]],
    }
    return columns | changes


def decode(ids):
    return " ".join(f"<{i}>" for i in ids)


def recorded(folder, *batches, first_update=1, **settings):
    with TokenRecorder(folder, run="mine", decode=decode, **settings) as recorder:
        for number, columns in enumerate(batches, start=first_update):
            recorder.record(update=number, token_mask=torch.tensor(MASK), **columns)
    return folder


def test_rows_of_a_micro_batch_by_hand(tmp_path):
    table = read_records(recorded(tmp_path, batch()))
    assert table.column_names == list(COLUMNS)
    rows = table.to_pydict()
    assert rows["run"] == ["mine"] * 5
    assert rows["update"] == [1] * 5
    assert rows["sample"] == [10, 10, 11, 11, 11]
    assert rows["group"] == [3] * 5
    assert rows["position"] == [0, 1, 0, 1, 2]
    assert rows["token_id"] == [5, 6, 7, 5, 8]
    assert rows["token"] == ["<5>", "<6>", "<7>", "<5>", "<8>"]
    assert rows["prompt"] == ["what?", None, "<5> <6>", None, None]
    assert rows["advantage"] == [2.0, 2.0, -1.0, -1.0, -1.0]
    assert rows["polarity"] == [1.0, -1.0, -0.25, 0.25, -1.0]
    assert rows["reward"] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert rows["action_mask"] == rows["loss_mask"] == [True, False, True, True, True]
    assert rows["logprob"] == [-1.0, -2.0, -0.5, -0.25, -3.0]
    np.testing.assert_allclose(rows["ratio"], np.exp([0, 0, 0, 0.25, -1.0]), rtol=1e-6)
    assert rows["reweighted_advantage"] == rows["advantage"]
    for name in ("policy_version", "behavior_logprob", "clipped_low", "clipped_high"):
        assert rows[name] == [None] * 5, name


def test_what_is_given_is_not_derived(tmp_path):
    given = {
        "ratio": torch.full((2, 3), 1.5),
        "reweighted_advantage": torch.full((2, 3), 9.0),
        "loss_mask": torch.zeros(2, 3, dtype=torch.bool),
        "clipped_low": torch.tensor([[True, False, False], [False, True, False]]),
        "clipped_high": np.zeros((2, 3), bool),
        "policy_version": torch.tensor([4, 2]),
        "behavior_logprob": np.full((2, 3), -4.0),
    }
    rows = read_records(recorded(tmp_path, batch(**given))).to_pydict()
    assert rows["ratio"] == [1.5] * 5
    assert rows["reweighted_advantage"] == [9.0] * 5
    assert rows["loss_mask"] == [False] * 5
    assert rows["clipped_low"] == [True, False, False, True, False]
    assert rows["clipped_high"] == [False] * 5
    assert rows["policy_version"] == [4, 4, 2, 2, 2]
    assert rows["behavior_logprob"] == [-4.0] * 5
    assert rows["old_logprob"] == [-1.0, -2.0, -0.5, -0.5, -2.0]


def test_the_behavior_policy_is_the_old_one_when_only_it_is_given(tmp_path):
    columns = batch(behavior_logprob=batch()["old_logprob"])
    del columns["old_logprob"]
    rows = read_records(recorded(tmp_path, columns)).to_pydict()
    assert rows["old_logprob"] == rows["behavior_logprob"] == [-1.0, -2.0, -0.5, -0.5, -2.0]
    np.testing.assert_allclose(rows["ratio"], np.exp([0, 0, 0, 0.25, -1.0]), rtol=1e-6)


def test_what_is_recorded_is_a_copy(tmp_path):
    columns = batch()
    with TokenRecorder(tmp_path, decode=decode) as recorder:
        recorder.record(update=1, token_mask=torch.tensor(MASK), **columns)
        columns["entropy"].fill_(-1)
        columns["advantage"].fill_(-1)
    rows = read_records(tmp_path).to_pydict()
    assert min(rows["entropy"]) > 0
    assert max(rows["advantage"]) == 2


def test_only_columns_of_one_device_are_copied_together():
    # A device that every machine has; with a GPU a run has columns there and on the CPU.
    elsewhere = {"ratio": torch.ones(2, 3, device="meta"), "sample": torch.ones(2, dtype=torch.int64, device="meta")}
    here = {"entropy": torch.ones(2, 3), "logprob": torch.ones(2, 3).double(), "group": torch.ones(2).int()}
    groups = writer._travelling_together(elsewhere | here)
    assert sorted(groups.values()) == [["entropy", "logprob"], ["group"], ["ratio"], ["sample"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_columns_may_be_on_any_device(tmp_path):
    names = ("token_id", "action_mask", "logprob", "entropy", "tendency", "group")
    mixed = batch(**{name: batch()[name].cuda() for name in names})
    here, there = recorded(tmp_path / "here", batch()), recorded(tmp_path / "there", mixed)
    assert read_records(here).equals(read_records(there))


def test_without_a_token_mask_the_action_tokens_are_rows(tmp_path):
    with TokenRecorder(tmp_path) as recorder:
        recorder.record(update=1, **batch(prompt=None))
    rows = read_records(tmp_path).to_pydict()
    assert rows["token_id"] == [5, 7, 5, 8]
    assert rows["token"] == [""] * 4
    assert rows["prompt"] == [None] * 4


def test_a_share_of_the_samples_whole_and_the_same_in_every_update(tmp_path):
    sample = torch.arange(4000)
    columns = {
        "token_id": torch.zeros(4000, 2, dtype=torch.long),
        "action_mask": torch.ones(4000, 2, dtype=torch.bool),
        "sample": sample,
    } | {name: torch.zeros(4000, 2) for name in ("logprob", "entropy", "tendency", "advantage")}
    prompt = [str(i) for i in range(4000)]
    for seed in (0, 1):
        with TokenRecorder(tmp_path / str(seed), fraction=0.25, seed=seed) as recorder:
            recorder.record(update=1, prompt=prompt, **columns)
            recorder.record(update=2, **{k: v.flip(0) for k, v in columns.items()})
    frames = [read_records(tmp_path / str(seed)).to_pandas() for seed in (0, 1)]
    chosen = [set(frame["sample"]) for frame in frames]
    assert 900 < len(chosen[0]) < 1100
    assert 150 < len(chosen[0] & chosen[1]) < 350  # a quarter of a quarter: the seed decides
    assert set(frames[0].groupby("sample").size()) == {4}
    texts = frames[0].dropna(subset="prompt")
    assert (texts["prompt"].astype(int) == texts["sample"]).all()
    with pytest.raises(ValueError, match="give the column sample"), TokenRecorder(tmp_path, fraction=0.5) as recorder:
        recorder.record(update=1, **batch(sample=None))


def test_files_are_flushed_by_rows_by_age_and_by_hand(tmp_path):
    by_rows = recorded(tmp_path / "rows", batch(), batch(), batch(), flush_rows=10)
    assert [len(pq.read_table(p)) for p in sorted(by_rows.iterdir())] == [10, 5]
    recorder = TokenRecorder(tmp_path / "age", flush_seconds=0.05)
    recorder.record(update=1, **batch(prompt=None))
    deadline = time.monotonic() + 20
    while not list(recorder.folder.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert record_files(recorder.folder).num_rows == 4
    recorder._flush_seconds = 1e6
    recorder.record(update=2, **batch(prompt=None))
    recorder.flush()
    assert record_files(recorder.folder).num_rows == 8
    recorder.close()
    assert threading.active_count() == 1 or not any(t.name == "token records" for t in threading.enumerate())
    recorder.record(update=3, **batch(prompt=None))  # closed recorders open again
    recorder.close()
    assert record_files(recorder.folder).num_rows == 12


def test_ranks_and_later_recorders_write_files_of_their_own(tmp_path):
    for rank in (0, 1, 0):
        recorded(tmp_path, batch(), rank=rank)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["part-000000-rank0000.parquet", "part-000000-rank0001.parquet", "part-000001-rank0000.parquet"]
    assert len(read_records(tmp_path)) == 15


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_up_to_its_last_flush(tmp_path):
    script = f"""
        import sys; sys.path[:0] = {sys.path!r}
        import torch
        from equipoise.diagnostics.records import TokenRecorder
        recorder = TokenRecorder({str(tmp_path)!r}, flush_rows=3000, flush_seconds=1e6)
        x, ids = torch.rand(10, 100), torch.zeros(10, 100, dtype=torch.long)
        for update in range(1, 100000):
            recorder.record(update=update, token_id=ids, action_mask=ids == 0, logprob=x, entropy=x, tendency=x,
                            advantage=x)
            print(update, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
            process.stdout.readline()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    files = record_files(tmp_path)
    assert len(files.readable) >= 3
    assert not files.unreadable
    updates = np.sort(read_records(tmp_path, columns=["update"])["update"].to_numpy())
    assert (updates == np.repeat(np.arange(1, len(updates) // 1000 + 1), 1000)).all()


def test_a_write_that_fails_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(table, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    recorder = TokenRecorder(tmp_path)
    line = re.escape(f"token records in {tmp_path} cannot be written: No space left on device")
    recorder.record(update=1, **batch(prompt=None))
    with pytest.raises(RecordsError, match=line):
        recorder.flush()
    with pytest.raises(RecordsError, match=line):
        recorder.record(update=2, **batch(prompt=None))
    with pytest.raises(RecordsError, match=line):
        recorder.close()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    recorder.record(update=3, **batch(prompt=None))  # after it was told and mended
    recorder.close()
    assert read_records(tmp_path)["update"].to_pylist() == [3] * 4


def test_nothing_waits_for_ever_for_a_thread_that_cannot_write(tmp_path, monkeypatch):
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: 1 / 0)
    recorder = TokenRecorder(tmp_path, flush_rows=1)

    def until_told():
        for update in range(1, 200):
            recorder.record(update=update, **batch(prompt=None))

    with pytest.raises(RecordsError, match="ZeroDivisionError: division by zero"):
        until_told()
    with pytest.raises(RecordsError):
        recorder.close()


def test_records_after_the_resumed_update_are_forgotten(tmp_path):
    recorded(tmp_path, batch(), batch(), batch(), flush_rows=10)  # updates 1 and 2 in one file, 3 in the next
    recorded(tmp_path, batch(), first_update=3, rank=1)
    (tmp_path / "part-000007-rank0000.parquet.part").write_bytes(b"half")
    (tmp_path / "part-000008-rank0000.parquet").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    drop_after(tmp_path, 1, ranks=lambda rank: rank == 0)
    assert {p.name for p in tmp_path.iterdir()} == {
        "part-000000-rank0000.parquet", "part-000000-rank0001.parquet", "part-000008-rank0000.parquet", "notes.txt",
    }  # fmt: skip
    files = record_files(tmp_path)
    assert sorted(pa.Table.from_batches(files.batches(["update"]))["update"].to_pylist()) == [1] * 5 + [3] * 5
    drop_after(tmp_path / "none", 1)
    drop_after(tmp_path, 3)
    assert record_files(tmp_path).num_rows == 10


def test_updates_and_columns_are_chosen_when_reading(tmp_path):
    recorded(tmp_path, *[batch() for _ in range(6)], flush_rows=10)
    table = read_records(tmp_path, columns=["update", "entropy"], updates=(2, 3))
    assert table.column_names == ["update", "entropy"]
    assert table["update"].to_pylist() == [2] * 5 + [3] * 5
    assert read_records(tmp_path, columns=["token"], updates=(6, 9))["token"].to_pylist() == [
        "<5>", "<6>", "<7>", "<5>", "<8>",
    ]  # fmt: skip


def test_a_run_folder_is_read_through_its_folder_of_records(tmp_path):
    recorded(tmp_path / "tokens", batch())
    assert len(read_records(tmp_path)) == 5


def with_metadata(path, changes):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | changes), path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecordsError, match="has no token records: train with record_tokens"):
        read_records(tmp_path)
    path = next(recorded(tmp_path / "a", batch()).iterdir())
    with pytest.raises(RecordsError, match="column entropie is not known; columns are run, update,"):
        read_records(path.parent, columns=["entropie"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordsError, match=rf"{path.name} cannot be read, it is cut off or no Parquet"):
        read_records(path.parent)
    files = record_files(path.parent)
    assert (len(files.readable), len(files.unreadable), files.num_rows) == (0, 1, 0)


def test_a_newer_schema_and_other_peoples_files_are_refused_or_named(tmp_path):
    path = next(recorded(tmp_path, batch()).iterdir())
    with_metadata(path, {b"equipoise_schema_version": str(SCHEMA_VERSION + 1).encode()})
    newer = (
        rf"{path.name} has token records of schema version {SCHEMA_VERSION + 1}; .* up to {SCHEMA_VERSION}: update it"
    )
    with pytest.raises(RecordsError, match=newer):
        read_records(tmp_path)
    assert re.search(newer, record_files(tmp_path).unreadable[0])
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(RecordsError, match="holds no token records of equipoise"):
        read_records(tmp_path)
    assert record_files(tmp_path).readable == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropie": 1}, "column entropie is not known; columns are token_id,"),
        ({"entropy": None}, "column entropy is required"),
        ({"entropy": torch.zeros(2, 4)}, r"column entropy must be \[2, 3\] like token_id, got \[2, 4\]"),
        ({"reward": torch.zeros(3)}, r"column reward must be \[2\] like token_id, got \[3\]"),
        ({"prompt": ["one"]}, "column prompt must have 2 entries like token_id, got 1"),
        ({"token_id": torch.zeros(3)}, r"column token_id must be \[batch, time\], got \[3\]"),
        ({"token_mask": torch.ones(2, 4)}, r"token_mask must be \[2, 3\] like token_id, got \[2, 4\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, changes, message):
    with TokenRecorder(tmp_path) as recorder, pytest.raises(ValueError, match=message):
        recorder.record(update=1, **batch(**changes))
    assert list(tmp_path.iterdir()) == []


def test_settings_outside_their_range_are_refused(tmp_path):
    for fraction in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got fraction="):
            TokenRecorder(tmp_path, fraction=fraction)
    for settings, rule in (
        ({"flush_rows": 0}, "flush_rows must be >= 1"),
        ({"flush_seconds": 0.0}, "flush_seconds must be > 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            TokenRecorder(tmp_path, **settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="folder of token records .*file cannot be made: File exists"):
        TokenRecorder(tmp_path / "file")


def test_polars_and_duckdb_read_the_files_without_this_package(tmp_path):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    recorded(tmp_path, batch(), batch(), flush_rows=5)
    pattern = str(tmp_path / "*.parquet")
    frame = polars.scan_parquet(pattern).group_by("token").agg(polars.col("polarity").sum()).collect()
    assert dict(frame.rows())["<5>"] == 2.5
    rows = duckdb.sql(f"SELECT token, sum(polarity) FROM '{pattern}' GROUP BY token").fetchall()
    assert dict(rows)["<5>"] == 2.5


def test_the_documented_schema_is_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "token_records.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w<>, =]+) \| ([^|]*) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    stored = {
        name: ("text" if pa.types.is_dictionary(c.type) else str(c.type).replace("string", "text"))
        for name, c in COLUMNS.items()
    }
    assert [(name, kind, unit.strip()) for name, kind, unit, _ in rows] == [
        (name, stored[name], column.unit) for name, column in COLUMNS.items()
    ]
    assert f"version {SCHEMA_VERSION}" in text
