"""What a report is made of: sums against the records themselves, bands by hand, labelled gaps, and every refusal."""

import json
import shutil
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from report_setup import HOSTILE, make_run

from equipoise.cli import main
from equipoise.diagnostics.records import read_records
from equipoise.diagnostics.report import report_data, write_report
from equipoise.diagnostics.report.curves import MOST_POINTS, predicted_and_realised, thinned
from equipoise.diagnostics.report.live import live_server
from equipoise.diagnostics.report.page import embedded
from equipoise.diagnostics.report.rollouts import LEAST_COST
from equipoise.diagnostics.report.sources import read_sources
from equipoise.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "a-1")


def with_change(folder):
    frame = read_records(folder).to_pandas()
    frame["change"] = np.where(frame["clipped_low"] | frame["clipped_high"], 0, frame["ratio"] * frame["polarity"])
    return frame


def test_sums_by_update_are_those_of_the_records(run):
    records, frame = report_data([run])["runs"][0]["records"], with_change(run)
    assert [row["update"] for row in records["updates"]] == [1, 2, 12]
    for row in records["updates"]:
        tokens = frame[frame["update"] == row["update"]]
        assert row["tokens"] == len(tokens) == 48
        assert (row["samples"], row["positive_samples"], row["negative_samples"], row["reward"]) == (8, 4, 3, 4)
        assert row["entropy"] == pytest.approx(tokens["entropy"].sum(), rel=1e-4)
        assert row["clipped_low"] == tokens["clipped_low"].sum()
        for sign, side in (("positive", tokens["advantage"] > 0), ("negative", tokens["advantage"] < 0)):
            change = tokens["change"][side]
            assert row[f"expanding_{sign}"] == pytest.approx(change.clip(lower=0).sum(), rel=1e-4)
            assert row[f"contracting_{sign}"] == pytest.approx((-change).clip(lower=0).sum(), rel=1e-4)
        weighted = tokens["change"] * np.where(tokens["sample"] % 8 == 0, 1.5, 1)
        net = row["reweighted_expanding"] - row["reweighted_contracting"]
        assert net == pytest.approx(weighted.sum(), rel=1e-3, abs=1e-4)


def test_map_ratios_staleness_and_tokens_add_up(run):
    records, frame = report_data([run])["runs"][0]["records"], with_change(run)
    for sign, side in (("positive", frame["advantage"] > 0), ("negative", frame["advantage"] < 0)):
        chosen = frame[side]
        assert np.sum(records["map"][sign]["count"]) == len(chosen)
        assert np.sum(records["map"][sign]["change"]) == pytest.approx(chosen["change"].sum(), rel=1e-3)
        x = np.digitize(chosen["logprob"] / np.log(10), np.linspace(-4, 0, 41)) - 1
        assert np.array_equal(np.sum(records["map"][sign]["count"], axis=1), np.bincount(x.clip(0, 39), minlength=40))
        assert sum(records["ratios"][sign]) == len(chosen)
    assert [row["tokens"] for row in records["staleness"]] == [48, 96]
    log_ratio = np.log2(frame["ratio"][frame["update"] != 1])
    assert records["staleness"][1]["spread"] == pytest.approx(log_ratio.std(ddof=0), rel=1e-3)
    by_text = frame.groupby(frame["token"].astype(str))["change"].sum()
    for branch, sign in (("expanding", 1), ("contracting", -1)):
        expected = (by_text * sign).sort_values(ascending=False)
        expected = expected[expected > 0]
        found = records["top"][branch]
        assert [entry["text"] for entry in found] == list(expected.index)
        assert [entry["change"] * sign for entry in found] == pytest.approx(list(expected), rel=1e-3)


def test_rollouts_are_whole_and_their_numbers_those_of_the_records(run):
    data, frame = report_data([run]), with_change(run)
    rollouts = data["runs"][0]["records"]["rollouts"]
    assert len(rollouts) == data["runs"][0]["records"]["all_rollouts"] == 24
    for rollout in rollouts:
        own = frame[(frame["update"] == rollout["update"]) & (frame["sample"] == rollout["sample"])]
        assert [data["vocabulary"][t] for t in rollout["t"]] == list(own["token"])
        assert rollout["change"] == pytest.approx(own["change"].sum(), rel=1e-3, abs=1e-6)
        assert rollout["H"] == pytest.approx(list(own["entropy"]), rel=1e-3)
        assert rollout["w"] == (1.5 if rollout["sample"] % 8 == 0 else 1)
        states = rollout["c"] if isinstance(rollout["c"], list) else [rollout["c"]] * 6
        assert states == own["clipped_low"].astype(int).tolist()
        assert rollout["prompt"].startswith("question")
        assert rollout["question"] == rollout["prompt"]
        assert rollout["answer"] == " ".join("".join(own["token"]).split())[:59] + "…" * (len(rollout["answer"]) == 60)


def test_a_bounded_sample_holds_the_rollouts_that_moved_most(run, monkeypatch):
    from equipoise.diagnostics.report import data as report

    monkeypatch.setattr(report, "TOKEN_BUDGET", LEAST_COST * 4 * 3)  # four of eight rollouts of each update
    rollouts = report_data([run])["runs"][0]["records"]["rollouts"]
    assert len(rollouts) == 12
    moved = with_change(run).groupby(["update", "sample"])["change"].sum().abs()
    for update in (1, 2, 12):
        shown = {r["sample"] for r in rollouts if r["update"] == update}
        assert set(moved[update].nlargest(2).index) <= shown


def test_seeds_of_equal_settings_are_one_band_with_mean_and_range(tmp_path):
    folders = [make_run(tmp_path / f"a-{seed}", seed=seed, records=False) for seed in (0, 2)]
    folders.append(make_run(tmp_path / "b", clipping="balanced", records=False))
    data = report_data(folders)
    assert [(g["name"], g["runs"]) for g in data["groups"]] == [("a (2 seeds)", [0, 1]), ("b", [2])]
    band = data["groups"][0]["bands"]["reward"]
    assert (band["y"][0], band["low"][0], band["high"][0], band["runs"]) == (1.1, 0.1, 2.1, 2)
    assert data["settings"]["differing"] == {"clipping": ["—", "—", "balanced"], "seed": ["0", "2", "0"]}
    assert data["settings"]["in_force"]["adam_beta1"] == ["0.9"] * 3


def test_long_curves_are_means_over_stretches():
    x, y = thinned(np.arange(6000.0), np.arange(6000.0) * 2)
    assert len(x) == MOST_POINTS
    assert (x[0], y[0]) == (4.5, 9.0)


def test_prediction_pairs_an_update_with_the_change_to_the_next(run):
    predicted = predicted_and_realised(read_sources([run])[0])
    assert predicted["update"] == list(range(1, 12))
    assert predicted["x"][4] == pytest.approx(-1e-3 * 0.001 * 5)
    assert predicted["y"][0] == pytest.approx(1 / 2 - 1)
    assert predicted["same_sign"] == 1


def test_what_is_missing_is_a_labelled_gap(tmp_path):
    bare = make_run(tmp_path / "bare", records=False, evaluations=False)
    for name in ("config.yaml", "environment.json"):
        (bare / name).unlink()
    with (bare / "metrics.jsonl").open("a") as file:
        file.write('{"update": 13, "equi')
    cut = make_run(tmp_path / "cut")
    path = next((cut / "tokens").iterdir())
    (cut / "tokens" / "part-000009-rank0000.parquet").write_bytes(path.read_bytes()[:-50])
    tokens_only = make_run(tmp_path / "tokens-only")
    (tokens_only / "metrics.jsonl").unlink()
    gaps = [run["gaps"] for run in report_data([bare, cut, tokens_only])["runs"]]
    assert gaps[0] == [
        "metrics.jsonl, line 13 is no JSON: it is cut off", "no evaluations on held-out data",
        "no token records: train with record_tokens", "no config.yaml", "no environment.json",
    ]  # fmt: skip
    assert len(gaps[1]) == 1
    assert gaps[1][0].startswith("tokens/part-000009-rank0000.parquet cannot be read, it is cut off")
    assert gaps[2] == ["no metrics.jsonl: no curves over the updates"]


def test_runs_of_different_tasks_are_said_to_be(tmp_path):
    runs = [make_run(tmp_path / task, task=task, records=False) for task in ("ladder", "sums")]
    assert "different tasks" in report_data(runs)["warnings"][0]
    assert "ladder: ladder; sums: sums" in report_data(runs)["warnings"][0]
    assert report_data(runs[:1])["warnings"] == []


def test_text_of_tokens_cannot_leave_the_data_element(run):
    text = embedded(report_data([run]))
    assert "<" not in text
    assert HOSTILE in json.loads(text)["vocabulary"]


def error_of(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1
    return out.err


def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, capsys):
    output = tmp_path / "out" / "report.html"
    output.parent.mkdir()
    (tmp_path / "empty").mkdir()
    assert "empty is no run folder: it has neither metrics.jsonl nor tokens/" in error_of(
        capsys, tmp_path / "empty", "-o", output
    )
    assert "is given twice" in error_of(capsys, run, run, "-o", output)
    assert "there is no folder" in error_of(capsys, run, "-o", tmp_path / "none" / "r.html")
    assert "it is a folder" in error_of(capsys, run, "-o", output.parent)
    assert "--refresh must be >= 1" in error_of(capsys, run, "--live", "--refresh", 0)
    assert "flag --colour is not known" in error_of(capsys, run, "--colour", "red")
    assert list(output.parent.iterdir()) == []
    assert main(["report", str(run), "-o", str(output)]) == 0
    assert "Done:" in capsys.readouterr().out
    whole = output.read_text()
    assert "exists; choose another -o, or overwrite it with --force" in error_of(capsys, run, "-o", output)
    assert output.read_text() == whole
    assert main(["report", str(run), "-o", str(output), "--force", "--title", "again"]) == 0
    assert '"title":"again"' in output.read_text()


def test_records_of_a_newer_schema_are_a_gap(tmp_path, monkeypatch):
    from equipoise.diagnostics.records import schema

    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    newer = make_run(tmp_path / "newer")
    monkeypatch.undo()
    shown = report_data([newer])["runs"][0]
    assert shown["records"] is None
    assert any("schema version 2; this equipoise reads versions up to 1" in gap for gap in shown["gaps"])
    assert shown["curves"]["entropy"]["y"]


def test_a_disk_that_is_full_leaves_the_old_report(run, tmp_path, monkeypatch):
    output = tmp_path / "report.html"
    output.write_text("old")

    def disk_full(self, text, **_):
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(output), "write_text", disk_full)
    with pytest.raises(InputError, match=r"report .*report.html cannot be written: No space left on device"):
        write_report([run], output, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert output.read_text() == "old"


def test_a_live_report_serves_what_is_new_and_only_to_this_machine(tmp_path, capsys):
    folder = make_run(tmp_path / "live", updates=3)
    server = live_server([folder], title=None, port=0, seconds=0.0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"

    def get(path, **headers):
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as answer:
            return answer.read().decode()

    try:
        assert "const REFRESH_SECONDS = 0.0" in get("")
        assert json.loads(get("data.json"))["runs"][0]["updates"] == 3
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"update": 4, "equipoise/entropy": 0.5}\n{"upd')
        data = json.loads(get("data.json"))
        assert data["runs"][0]["updates"] == 4
        assert data["runs"][0]["curves"]["entropy"]["y"][-1] == 0.5
        (folder / "metrics.jsonl").write_text("no json\n")
        assert "metrics.jsonl, line 1 is no JSON" in json.loads(get("data.json"))["runs"][0]["gaps"][0]
        (folder / "metrics.jsonl").unlink()
        shutil.rmtree(folder / "tokens")
        assert "is no run folder" in json.loads(get("data.json"))["warnings"][0]
        for path, headers, code in (("etc", {}, 404), ("", {"Host": "evil.example"}, 403)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(path, **headers)
            assert caught.value.code == code
            caught.value.close()
        with pytest.raises(InputError, match=r"port \d+ cannot be used: Address already in use"):
            live_server([make_run(tmp_path / "b")], title=None, port=server.server_address[1], seconds=1)
    finally:
        server.shutdown()
        server.server_close()
    assert "no run folder" in error_of(capsys, tmp_path, "--live")
