"""Run folders of any kind: what can be read is shown, what cannot is named, and no reader ends in a traceback."""

import contextlib
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

import pytest
from damaged_runs import gaps_of, shown
from report_setup import HOSTILE, make_run

from equipoise.diagnostics.doctor import RUN_CHECKS, RunEvidence
from equipoise.diagnostics.records import read_records
from equipoise.diagnostics.report import report_data
from equipoise.diagnostics.report.live import live_server
from equipoise.diagnostics.report.page import embedded
from equipoise.diagnostics.runs import read_log, read_run
from equipoise.errors import InputError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- metrics.jsonl ------------------------------------------------------------------------------------------------

GOOD = b'{"update": 1, "equipoise/entropy": 0.5, "learning_rate": 0.1}\n'
LAST = b'{"update": 9, "equipoise/entropy": 0.25}\n'
LINES = {
    "no UTF-8": b'{"update": 2, "x": "\xff"}',
    "UTF-16": '{"update": 2}'.encode("utf-16"),
    "a list": b"[1, 2]",
    "a word": b'"update"',
    "null": b"null",
    "a number": b"5",
    "no JSON": b"{update: 2}",
    "deep": b"[" * 5000,
    "deep and whole": b"[" * 400 + b"]" * 400,
    "no update": b'{"equipoise/entropy": 1}',
    "update true": b'{"update": true}',
    "update 2.0": b'{"update": 2.0}',
    "update -1": b'{"update": -1}',
    "update huge": b'{"update": 1' + b"0" * 400 + b"}",
    "update of 64 bits": b'{"update": 9223372036854775808}',
    "update text": b'{"update": "2"}',
    "update null": b'{"update": null}',
    "update a list": b'{"update": [2]}',
    "update NaN": b'{"update": NaN}',
    "the update twice": b'{"update": 2, "update": 3}',
    "an update again": GOOD[:-1],
    "an earlier update": b'{"update": 0}',
    "NaN": b'{"update": 2, "equipoise/entropy": NaN}',
    "infinity": b'{"update": 2, "equipoise/entropy": -Infinity}',
    "1e999": b'{"update": 2, "equipoise/entropy": 1e999}',
    "10^400": b'{"update": 2, "equipoise/entropy": 1' + b"0" * 400 + b"}",
    "5,000 digits": b'{"update": 2, "equipoise/entropy": ' + b"1" * 5000 + b"}",
    "1e300": b'{"update": 2, "equipoise/entropy": 1e300}',
    "text": b'{"update": 2, "equipoise/entropy": "0.5"}',
    "a list of numbers": b'{"update": 2, "equipoise/entropy": [0.5]}',
    "true": b'{"update": 2, "equipoise/entropy": true}',
    "an object": b'{"update": 2, "equipoise/entropy": {"mean": 1}}',
    "a host's metric as text": b'{"update": 2, "reward": "high"}',
    "half of a character": b'{"update": 2, "\\ud800": 1}',
    "a very long line": b'{"update": 2, "x": "' + b"y" * 2_000_000 + b'"}',
}


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
    ("text", "updates"),
    [
        (b"", 0),
        (b"\n\n", 0),
        (GOOD.replace(b"\n", b"\r\n") + b"\r\n", 1),
        (b"\xef\xbb\xbf" + GOOD, 1),
        (GOOD[:-1], 1),
        (GOOD + b'{"update": 2, "equi', 1),
        (b"\0" * 1000, 0),
        (b"\xff" * 1000 + b"\n" + GOOD, 1),
    ],
)
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
    [
        5,
        "x",
        [],
        {},
        {"mean": 1},
        {"mean": None, "low": 0, "high": 1},
        {"mean": "1", "low": 0, "high": 1},
        True,
        {"mean": float("nan"), "low": 0, "high": 1},
        {"mean": 1e300, "low": 0, "high": 1},
        {"mean": True, "low": 0, "high": 1},
    ],
)
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
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- 1",
        b"5",
        b"\xff\xfe",
        b"a: &a [*a]",
        b"[" * 9000,
        b"{1: 2, a: {1: x, b: y}, null: 3}",
        b'{"versions": 3, "seed": {}, "device": [1], "world_size": "x", "host": 7}',
    ],
)
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
    assert time.process_time() - begin < 20  # it was 46
    assert len(embedded(data)) < 3_000_000
    assert "500 of the 1,200 keys of config.yaml are shown" in "; ".join(data["runs"][0]["gaps"])


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
        with contextlib.suppress(InputError):
            read_records(folder)
            read_run(folder)


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
