"""Work in processes side by side: what they are given, what is said of those that fail, and how far runs are."""

import json
import os
from pathlib import Path

import pytest
import side_by_side_jobs as jobs

from equipoise.commands import side_by_side
from equipoise.commands.side_by_side import Job, num_updates, work

pytestmark = pytest.mark.slow

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setattr(side_by_side, "subprocess", None)
    assert work([], 2, ENVIRONMENT) == {}


def test_processes_have_their_environment_and_this_one_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert work([Job("note", tmp_path / "deep" / "note", jobs.note, ("OMP_NUM_THREADS",))], 1, ENVIRONMENT) == {}
    assert json.loads((tmp_path / "deep" / "note" / "found.json").read_text()) == {"OMP_NUM_THREADS": "1", "threads": 1}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_failure_is_its_last_line_and_the_others_go_on(tmp_path, capsys):
    functions = {"refuse": jobs.refuse, "crash": jobs.crash, "vanish": jobs.vanish, "note": jobs.note}
    work_to_do = [Job(name, tmp_path / name, function) for name, function in functions.items()]
    failures = work(work_to_do, 1, ENVIRONMENT)
    assert failures == {
        "refuse": f"refuse cannot be used (see {tmp_path / 'refuse.log'})",
        "crash": f"RuntimeError: a bug (see {tmp_path / 'crash.log'})",
        "vanish": "it ended without a word (exit code 3)",
    }
    assert (tmp_path / "note" / "found.json").exists()
    assert (tmp_path / "refuse.log").read_text().startswith("begun\n")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [[f"{k}/4", name] for k, name in enumerate(functions, start=1)]
    assert all(failures.get(name, "") in line for name, line in zip(functions, lines, strict=True))


def test_a_log_lies_where_it_is_looked_for_wherever_the_first_work_was_done(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert work([Job("refuse", Path("refuse"), jobs.refuse)], 1, ENVIRONMENT) == {
            "refuse": "refuse cannot be used (see refuse.log)"
        }
        assert (tmp_path / name / "refuse.log").exists()


@pytest.mark.parametrize("num_jobs", [2, 3])
def test_as_many_run_at_once_as_asked_for(tmp_path, num_jobs):
    """Each of the two waits for the other to begin."""
    assert work([Job(a, tmp_path / a, jobs.meet, (b,)) for a, b in ("xy", "yx")], num_jobs, ENVIRONMENT) == {}


def test_output_that_is_no_terminal_gets_no_control_characters(tmp_path, capsys):
    work([Job("note", tmp_path / "note", jobs.note)], 1, ENVIRONMENT)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == "1/1 note\n"


def test_updates_are_counted_by_the_lines_that_a_run_has_logged(tmp_path):
    assert num_updates(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2}\n')
    assert num_updates(tmp_path) == 2
