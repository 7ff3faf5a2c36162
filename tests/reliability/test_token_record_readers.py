"""Token records of any kind: what can be read is shown, what cannot is named, and no reader ends in a traceback."""

import os
import shutil
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaged_runs import MOST_PAGE, gaps_of, shown
from report_setup import make_run, micro_batch

from equipoise.diagnostics.records import COLUMNS, TokenRecorder, read_records, record_files
from equipoise.diagnostics.report import report_data
from equipoise.diagnostics.report.page import page
from equipoise.errors import InputError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rewritten(folder, change):
    """The run's one file of records with `change` of its table."""
    path = next((folder / "tokens").iterdir())
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
    return path


def with_column(name, values, kind=None):
    def change(table):
        array = pa.array(values(table) if callable(values) else [values] * len(table), kind)
        return table.set_column(table.schema.get_field_index(name), name, array)

    return change


def test_records_with_their_required_columns_only_are_shown(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    required = [name for name, column in COLUMNS.items() if column.required and name != "update"]
    with TokenRecorder(folder / "tokens") as recorder:
        recorder.record(update=1, **{name: micro_batch(np.random.default_rng(0), 1)[name] for name in required})
    run = shown(folder)
    assert run["records"]["tokens"] == 48
    row = run["records"]["updates"][0]
    assert (row["reward"], row["ratio_square"]) == (None, None), "what was not recorded is not 0"
    assert row["entropy"] > 0
    assert run["records"]["rollouts"]
    assert run["gaps"] == []


FLOATS = [name for name, column in COLUMNS.items() if pa.types.is_floating(column.type)]
INTEGERS = [name for name, column in COLUMNS.items() if pa.types.is_integer(column.type)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, None, 0.0])
@pytest.mark.parametrize("name", FLOATS)
def test_any_number_in_any_column_is_shown(name, value, tmp_path):
    folder = make_run(tmp_path / "run")
    kind = COLUMNS[name].type
    rewritten(folder, with_column(name, lambda t: [value, *t[name].to_pylist()[1:-1], value], kind))
    run = shown(folder)
    assert run["records"]["tokens"] == 144
    unusual = value not in (None, 0.0)
    summed = name not in ("tendency", "behavior_logprob", "old_logprob")
    assert (f"{name} must be finite" in "; ".join(run["gaps"])) == (unusual and summed)
    rewritten(folder, with_column(name, value, kind))
    shown(folder)


@pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, 0, None])
@pytest.mark.parametrize("name", INTEGERS)
def test_any_whole_number_in_any_column_is_shown(name, value, tmp_path):
    folder = make_run(tmp_path / "run")
    rewritten(folder, with_column(name, value, COLUMNS[name].type))
    run = shown(folder)
    left_out = name in ("update", "position") and (value is None or value < 0)
    assert (run["records"] is None) == left_out
    assert ("144 rows are left out" in "; ".join(run["gaps"])) == left_out


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", ["missing", "another type", "null", "of nulls", "twice"])
def test_a_column_that_does_not_fit_is_named(name, kind, tmp_path):
    folder = make_run(tmp_path / "run")
    changes = {
        "missing": lambda t: t.drop_columns([name]),
        "another type": with_column(name, [1], pa.list_(pa.int32())),
        "null": with_column(name, None, pa.null()),
        "of nulls": with_column(name, None, COLUMNS[name].type),
        "twice": lambda t: t.append_column(name, t[name]),
    }
    path = rewritten(folder, changes[kind])
    run = shown(folder)
    refused = kind in ("another type", "twice") or (kind == "missing" and COLUMNS[name].required)
    assert any(gap.startswith(f"tokens/{path.name}") for gap in run["gaps"]) == refused
    assert run["updates"] == 12
    if refused:
        with pytest.raises(InputError, match=path.name):
            read_records(folder)


@pytest.mark.parametrize("version", [None, b"", b"x", b"-1", b"1.5", b"9" * 5000, b"2", b"\xff"])
def test_a_version_that_is_not_known_is_named(version, tmp_path):
    folder = make_run(tmp_path / "run")
    path = next((folder / "tokens").iterdir())
    table = pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"equipoise_schema_version"}
    pq.write_table(
        table.replace_schema_metadata(metadata | ({} if version is None else {b"equipoise_schema_version": version})),
        path,
    )
    assert f"tokens/{path.name}" in gaps_of(folder)
    assert "version" in gaps_of(folder)
    with pytest.raises(InputError, match="version"):
        read_records(folder)


def test_files_of_other_kinds_are_named(tmp_path):
    folder = make_run(tmp_path / "run")
    tokens = folder / "tokens"
    (tokens / "a.parquet").mkdir()
    os.mkfifo(tokens / "b.parquet")
    (tokens / "c.parquet").symlink_to(tokens / "c.parquet")
    (tokens / "d.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    (tokens / "e.parquet").write_bytes(b"")
    pq.write_table(pa.table({"a": [1]}), tokens / "f.parquet")
    run = shown(folder)
    assert [gap.split()[0].rstrip(",") for gap in run["gaps"]] == [f"tokens/{letter}.parquet" for letter in "abcdef"]
    assert run["records"]["tokens"] == 144
    assert len(record_files(folder).unreadable) == 6


def test_damage_between_the_row_groups_is_found_when_it_is_read(tmp_path):
    folder = make_run(tmp_path / "run")
    path = next((folder / "tokens").iterdir())
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=48, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(table.schema.get_field_index("entropy")).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 60] = b"\xff" * 60
    path.write_bytes(data)
    run = shown(folder)
    assert run["records"]["tokens"] == 48, "the first row group"
    assert f"tokens/{path.name}, row group 1 cannot be read" in "; ".join(run["gaps"])
    with pytest.raises(InputError, match="row group 1 cannot be read"):
        read_records(folder)


def test_plain_texts_and_texts_of_any_bytes_are_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    raw = pa.array([b"\xff\xfe", b"</script>", b"\xed\xa0\x80", None] * 36, pa.binary())
    for name in ("token", "prompt", "run"):
        text = pa.StringArray.from_buffers(
            len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0], raw.null_count
        )
        rewritten(folder, lambda t, text=text, name=name: t.set_column(t.schema.get_field_index(name), name, text))
        assert shown(folder)["records"]["rollouts"]


def test_no_rows_and_many_row_groups_are_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    path = rewritten(folder, lambda t: t.slice(0, 0))
    assert shown(folder)["records"] is None
    shutil.rmtree(folder / "tokens")
    with TokenRecorder(folder / "tokens") as recorder:
        recorder.record(update=1, **micro_batch(np.random.default_rng(0), 1, length=50))
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=1)
    begin = time.process_time()
    assert shown(folder)["records"]["tokens"] == 400
    assert time.process_time() - begin < 30


def test_a_file_that_is_replaced_while_it_is_read_costs_only_itself(tmp_path, monkeypatch):
    from equipoise.diagnostics.report import data as report

    folder = make_run(tmp_path / "run")
    path = next((folder / "tokens").iterdir())
    sums = report.token_sums.totals

    def replaced(files, progress):
        result = sums(files, progress)
        table = pq.read_table(path)
        pq.write_table(table.slice(3, 20), path)
        return result

    monkeypatch.setattr(report.token_sums, "totals", replaced)
    assert shown(folder)["records"]["tokens"] == 144
    monkeypatch.setattr(report.token_sums, "totals", lambda files, progress: (sums(files, progress), path.unlink())[0])
    assert shown(folder)["records"]["rollouts"] == []


def test_long_texts_and_many_short_rollouts_fit_on_a_page(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    rng, count = np.random.default_rng(0), 8000
    with TokenRecorder(folder / "tokens", decode=lambda ids: f"{ids[0]}" + "<" * 5000) as recorder:
        for update in range(1, 6):
            batch = {
                k: np.resize(v, (count, 1) if np.ndim(v) == 2 else count)
                for k, v in micro_batch(rng, update, 1).items()
                if k != "prompt"
            }
            batch |= {"sample": np.arange(count), "token_id": np.arange(count).reshape(-1, 1)}
            recorder.record(update=update, prompt=["&" * 3000] * count, **batch)
    begin = time.process_time()
    data = report_data([folder])
    assert time.process_time() - begin < 60
    assert len(page(data)) < MOST_PAGE
    assert any("prompts are cut to" in gap for gap in data["runs"][0]["gaps"])


def test_many_updates_and_long_rollouts_fit_on_a_page(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    rng = np.random.default_rng(0)
    with TokenRecorder(folder / "tokens") as recorder:
        for update in range(1, 1500):
            recorder.record(update=update, **micro_batch(rng, update, 1))
        for update in range(1500, 1520):  # long ones among thousands of short ones
            recorder.record(update=update, **micro_batch(rng, update, 1500))
    run = shown(folder)
    assert len(run["records"]["updates"]) == 1000
    assert sum(len(rollout["t"]) for rollout in run["records"]["rollouts"]) < 200_000
