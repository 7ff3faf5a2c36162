"""Run folders of any kind: what can be read is shown, what cannot is named, and no reader ends in a traceback."""

import http.client
import json
import os
import random
import shutil
import socket
import struct
import threading
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_setup import HOSTILE, make_run, micro_batch

from equipoise.diagnostics.doctor import RUN_CHECKS, RunEvidence
from equipoise.diagnostics.records import COLUMNS, TokenRecorder, read_records, record_files
from equipoise.diagnostics.report import report_data
from equipoise.diagnostics.report.live import live_server
from equipoise.diagnostics.report.page import embedded, page
from equipoise.diagnostics.runs import read_log, read_run
from equipoise.errors import InputError

MOST_PAGE = 30_000_000
"""Characters of a page of one hostile folder, with the library that draws it."""


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def shown(folder):
    """The run of a report on one folder, which must also fit into a page."""
    data = report_data([folder])
    text = embedded(data)  # refuses NaN
    assert len(text) < MOST_PAGE
    assert "<" not in text
    text.encode()
    run = json.loads(text)["runs"][0]
    assert all("\n" not in gap and len(gap) <= 300 for gap in run["gaps"])
    return run


def gaps_of(folder):
    return "; ".join(shown(folder)["gaps"])


# ---- metrics.jsonl ------------------------------------------------------------------------------------------------

GOOD = b'{"update": 1, "equipoise/entropy": 0.5, "learning_rate": 0.1}\n'
LAST = b'{"update": 9, "equipoise/entropy": 0.25}\n'
LINES = {
    "no UTF-8": b'{"update": 2, "x": "\xff"}', "UTF-16": '{"update": 2}'.encode("utf-16"), "a list": b"[1, 2]", "a word": b'"update"',
    "null": b"null", "a number": b"5", "no JSON": b"{update: 2}", "deep": b"[" * 5000, "deep and whole": b"[" * 400 + b"]" * 400,
    "no update": b'{"equipoise/entropy": 1}', "update true": b'{"update": true}', "update 2.0": b'{"update": 2.0}',
    "update -1": b'{"update": -1}', "update huge": b'{"update": 1' + b"0" * 400 + b"}", "update of 64 bits": b'{"update": 9223372036854775808}',
    "update text": b'{"update": "2"}', "update null": b'{"update": null}', "update a list": b'{"update": [2]}', "update NaN": b'{"update": NaN}',
    "the update twice": b'{"update": 2, "update": 3}', "an update again": GOOD[:-1], "an earlier update": b'{"update": 0}',
    "NaN": b'{"update": 2, "equipoise/entropy": NaN}', "infinity": b'{"update": 2, "equipoise/entropy": -Infinity}',
    "1e999": b'{"update": 2, "equipoise/entropy": 1e999}', "10^400": b'{"update": 2, "equipoise/entropy": 1' + b"0" * 400 + b"}",
    "5,000 digits": b'{"update": 2, "equipoise/entropy": ' + b"1" * 5000 + b"}", "1e300": b'{"update": 2, "equipoise/entropy": 1e300}',
    "text": b'{"update": 2, "equipoise/entropy": "0.5"}', "a list of numbers": b'{"update": 2, "equipoise/entropy": [0.5]}',
    "true": b'{"update": 2, "equipoise/entropy": true}', "an object": b'{"update": 2, "equipoise/entropy": {"mean": 1}}',
    "a host's metric as text": b'{"update": 2, "reward": "high"}', "half of a character": b'{"update": 2, "\\ud800": 1}',
    "a very long line": b'{"update": 2, "x": "' + b"y" * 2_000_000 + b'"}',
}  # fmt: skip


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_of_metrics_that_cannot_be_used_is_left_out_and_named(line, tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(GOOD + line + b"\n" + LAST)
    run = shown(folder)
    assert run["updates"] == 9
    assert run["curves"]["entropy"]["y"][0] == 0.5
    assert run["curves"]["entropy"]["y"][-1] == 0.25
    named = [gap for gap in run["gaps"] if gap.startswith("metrics.jsonl")]
    assert len(named) == 1
    record = read_run(folder, leave_out=True)
    assert len(record.left_out) == 1
    for check in RUN_CHECKS:
        check(RunEvidence(record, {}))
    with pytest.raises(InputError, match=r"metrics.jsonl") as refused:
        read_run(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("text", "updates"), [(b"", 0), (b"\n\n", 0), (GOOD.replace(b"\n", b"\r\n") + b"\r\n", 1), (b"\xef\xbb\xbf" + GOOD, 1), (GOOD[:-1], 1),
                          (GOOD + b'{"update": 2, "equi', 1), (b"\0" * 1000, 0), (b"\xff" * 1000 + b"\n" + GOOD, 1)]
)  # fmt: skip
def test_metrics_of_every_length_are_shown_as_far_as_they_go(text, updates, tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    (folder / "metrics.jsonl").write_bytes(text)
    assert shown(folder)["updates"] == updates


def test_of_lines_that_repeat_an_update_the_later_one_counts_in_order(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    lines = [(3, 1.0), (1, 2.0), (3, 3.0), (2, 4.0)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"update": u, "equipoise/entropy": y}) + "\n" for u, y in lines)
    )
    curve = shown(folder)["curves"]["entropy"]
    assert (curve["x"], curve["y"]) == ([1, 2, 3], [2, 4, 3])
    assert "updates must grow from line to line, got 1 after 3" in gaps_of(folder)


def test_many_bad_lines_are_one_gap_with_their_number(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    (folder / "metrics.jsonl").write_bytes(GOOD + b"x\n" * 5000)
    assert "line 2 is no JSON" in gaps_of(folder)
    assert "4,999 more" in gaps_of(folder)


def test_metrics_that_are_no_file_are_named(tmp_path):
    for kind in ("folder", "loop", "pipe", "unreadable"):
        folder = make_run(tmp_path / kind, records=False)
        metrics = folder / "metrics.jsonl"
        metrics.unlink()
        if kind == "folder":
            metrics.mkdir()
        elif kind == "loop":
            metrics.symlink_to(metrics)
        elif kind == "pipe":
            os.mkfifo(metrics)
        else:
            metrics.symlink_to("/proc/self/mem")
        assert "metrics.jsonl cannot be read" in gaps_of(folder)
        with pytest.raises(InputError, match="cannot be read"):
            read_run(folder)


def test_updates_beyond_five_digits_keep_their_places(tmp_path):
    folders = [make_run(tmp_path / f"a-{seed}", seed=seed, records=False) for seed in (0, 1)]
    for folder in folders:
        lines = [{"update": 1_000_000 + number, "equipoise/entropy": 1.0} for number in range(5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = report_data(folders)
    assert data["runs"][0]["curves"]["entropy"]["x"] == [1_000_000 + number for number in range(5)]
    assert data["groups"][0]["bands"]["entropy"]["y"] == [1.0] * 5


@pytest.mark.parametrize(
    "line", [b'{"step": 1, "data": {"x": 1e999}}', b'{"step": true, "data": {}}', b'{"data": {}}', b"[]", b"\xff"]
)
def test_a_log_of_verl_is_read_around_what_cannot_be(line, tmp_path):
    log = tmp_path / "run.jsonl"
    good = '{"step": 1, "data": {"actor/equipoise/entropy": 1.0}}\n{"step": 1, "data": {"val/x": 1.0}}\n'
    log.write_bytes(good.encode() + line + b"\n")
    record = read_log(log, leave_out=True)
    assert record.metrics[0]["equipoise/entropy"] == 1.0
    assert record.metrics[0]["val/x"] == 1.0
    log.write_text(good)
    assert len(read_log(log).metrics) == 1, "parts of one step are no repetition"


# ---- evaluation.jsonl ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [5, "x", [], {}, {"mean": 1}, {"mean": None, "low": 0, "high": 1}, {"mean": "1", "low": 0, "high": 1}, True,
     {"mean": float("nan"), "low": 0, "high": 1}, {"mean": 1e300, "low": 0, "high": 1}, {"mean": True, "low": 0, "high": 1}],
)  # fmt: skip
@pytest.mark.parametrize("place", ["greedy", "pass_at", "k"])
def test_an_estimate_that_is_none_is_left_out_and_named(wrong, place, tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    if place == "pass_at" and wrong == {}:
        return  # none was asked for
    line = {"update": 6, place: wrong} if place != "k" else {"update": 6, "pass_at": {"8": wrong}}
    with (folder / "evaluation.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    text = (folder / "evaluation.jsonl").read_text().splitlines()
    (folder / "evaluation.jsonl").write_text("\n".join([text[0], text[2], text[1]]) + "\n")
    run = shown(folder)
    assert run["evaluation"]["pass@8"]["x"] == [0, 12]
    assert any(gap.startswith("evaluation.jsonl, line 2") for gap in run["gaps"])
    with pytest.raises(InputError, match="evaluation.jsonl, line 2"):
        read_run(folder)


def test_evaluations_of_ever_new_k_are_bounded(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    estimate = {"mean": 0.1, "low": 0.0, "high": 0.2}
    lines = [
        {"update": u, "pass_at": {str(100 * u + k): estimate for k in range(100)} | {"<script>": estimate}}
        for u in range(200)
    ]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(shown(folder)["evaluation"]) <= 40


# ---- settings and environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "resolved.yaml", "environment.json"])
@pytest.mark.parametrize("data", [b"", b"- 1", b"5", b"\xff\xfe", b"a: &a [*a]", b"[" * 9000, b"{1: 2, a: {1: x, b: y}, null: 3}",
                                  b'{"versions": 3, "seed": {}, "device": [1], "world_size": "x", "host": 7}'])  # fmt: skip
def test_settings_of_any_kind_are_shown_or_named(name, data, tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    (folder / name).write_bytes(data)
    run = shown(folder)
    assert run["updates"] == 12
    if data in (b"- 1", b"5", b"\xff\xfe", b"a: &a [*a]", b"[" * 9000):
        assert any(gap.startswith(name) for gap in run["gaps"])


def test_a_page_shows_a_bounded_part_of_settings_and_says_so(tmp_path):
    folder = make_run(tmp_path / "run", records=False)
    for name in ("config.yaml", "resolved.yaml"):
        keys = [f"k{number}{'<' * 30}: ['{'<' * 80}', {{a: [b, c]}}]" for number in range(1200)]
        (folder / name).write_text("\n".join(keys))
    (folder / "environment.json").write_text(json.dumps({"versions": {f"v{n}": "<" * 1000 for n in range(5000)}}))
    begin = time.process_time()
    data = report_data([folder])
    assert time.process_time() - begin < 10
    assert len(embedded(data)) < 3_000_000
    assert "500 of the 1,200 keys of config.yaml are shown" in "; ".join(data["runs"][0]["gaps"])


# ---- token records ------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(
        report.token_sums, "totals", lambda files, progress: (result := sums(files, progress), path.unlink())[0]
    )
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


# ---- anything at all ----------------------------------------------------------------------------------------------


def damaged(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        kind, place = rng.randrange(5), rng.randrange(len(data) or 1)
        if kind == 0:
            data[place : place + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = rng.choice(
                [b"\n", b"{", b"[[", b'"', b"NaN", b"1e999", b"-", b"null", b"\xff", b"\0", b"9" * 400, b"true"]
            )
        elif kind == 3:
            data[place : place + 1] = b""
        else:
            data += data[: rng.randrange(len(data) or 1)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(6))
def test_a_run_folder_damaged_in_any_way_is_shown_or_one_line(seed, tmp_path):
    rng = random.Random(seed)
    whole = make_run(tmp_path / "whole")
    names = [str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()]
    for number in range(25):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(whole, folder)
        for name in rng.sample(names, rng.randrange(1, 4)):
            (folder / name).write_bytes(damaged(rng, (folder / name).read_bytes()))
        run = shown(folder)
        record = read_run(folder, leave_out=True)
        for check in RUN_CHECKS:
            check(RunEvidence(record, {}))
        assert run["updates"] or any("metrics" in gap for gap in run["gaps"])
        try:
            read_records(folder)
            read_run(folder)
        except InputError as error:
            assert "\n" not in str(error)


# ---- the live page ------------------------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path):
    folder = make_run(tmp_path / "live", updates=3)
    server = live_server([folder], title=None, port=0, seconds=0.0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, server.server_address[1]
    server.shutdown()
    server.server_close()


def asked(port, path="/data.json", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_live_page_outlives_whatever_happens_to_its_folder(live, capfd):
    folder, port = live
    for data in (b"\xff\n", b"[]\n", GOOD + b'{"update": NaN}\n', b""):
        (folder / "metrics.jsonl").write_bytes(data)
        assert asked(port)[0] == 200
    for path in (folder / "tokens").iterdir():
        path.write_bytes(b"PAR1")
    (folder / "config.yaml").write_bytes(b"\xff")
    (folder / "metrics.jsonl").write_bytes(GOOD)
    status, body = asked(port)
    assert status == 200
    assert "must be UTF-8" in "; ".join(json.loads(body)["runs"][0]["gaps"])
    shutil.rmtree(folder)
    status, body = asked(port)
    assert (status, "is no run folder" in json.loads(body)["warnings"][0]) == (200, True)
    assert asked(port, "/", "HEAD") == (200, b"")
    assert capfd.readouterr().err == ""


def test_a_live_page_answers_or_closes_every_request(live, capfd):
    _, port = live
    assert asked(port, method="POST")[0] == 501
    assert asked(port, "/" + "a" * 100_000)[0] == 414
    assert asked(port, Host="evil.example")[0] == 403
    assert asked(port, "/../../etc/passwd")[0] == 404
    for data in (
        b"\0\xff\n\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    for _ in range(5):  # the client goes away while the page, several megabytes, is sent
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(100)
        client.close()
    assert asked(port)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_fault_of_our_own_is_a_line_and_not_a_dropped_connection(live, monkeypatch):
    from equipoise.diagnostics.report import live as module

    _, port = live
    monkeypatch.setattr(module, "embedded", lambda data: 1 / 0)
    assert asked(port) == (500, b"ZeroDivisionError: division by zero\n")
    assert asked(port, "/")[0] == 200


def test_no_name_or_text_of_a_run_is_markup(tmp_path):
    folder = make_run(tmp_path / HOSTILE.replace("/", "_"), clipping=HOSTILE, task=HOSTILE)
    (folder / "environment.json").write_text(json.dumps({"versions": {HOSTILE: HOSTILE, "x": "\u2028"}}))
    (folder / "metrics.jsonl").write_text(json.dumps({"update": HOSTILE}) + "\n" + GOOD.decode())
    data = report_data([folder], title=HOSTILE)
    text = embedded(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data
    assert embedded({"a": "\ud800"}) == '{"a":"\\ud800"}'
