"""Hostile inputs for every command, and that the harness sees what it is to see."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from fuzz import (
    byte_mutations,
    place_mutations,
    value_mutations,
    verdict,
    word_mutations,
    workers,
    yaml_mutations,
)
from fuzz.kinds import KINDS, Kind, numbers
from fuzz.verdict import Ended, problems

from equipoise.errors import InputError

INPUTS = 2000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_input_breaks_a_command(tmp_path):
    ended = _fuzz("--inputs", INPUTS, "--kept", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


def _fuzz(*arguments):
    """The harness, as `make fuzz` calls it, on one core."""
    return subprocess.run(
        [sys.executable, "-m", "fuzz", "--jobs", "1", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )


def _raise(words):
    raise KeyError("a bug")


def _leave(words):
    raise SystemExit(2)


def _say(text, code=2):
    def main(words):
        print(text, file=sys.stderr)
        return code

    return main


def _write(name, code=0):
    def main(words):
        Path(name).write_text("new")
        return code

    return main


def _begin_a_thread(words):
    threading.Thread(target=time.sleep, args=(2,), name="late").start()
    return 0


def _begin_a_process(words):
    subprocess.Popen(["sleep", "60"])
    return 0


def _remove(words):
    Path("file").unlink()
    return 0


FAULTS = {
    "an exception": (_raise, "raised KeyError"),
    "an exit": (_leave, "raised SystemExit"),
    "a traceback that is printed": (_say("Traceback (most recent call last):", 0), "printed a traceback"),
    "another exit code": (_say("", 3), "exit code 3"),
    "the exit code of a finding": (_say("", 1), "exit code 1"),
    "no line": (_say("oh"), "with 0 lines"),
    "two lines": (_say("equipoise: given is wrong\nequipoise: given is wrong"), "with 2 lines"),
    "a line that names nothing": (_say("equipoise: something is wrong"), "names nothing"),
    "a line without end": (_say("equipoise: given " + "x" * 5000), "length"),
    "control characters": (_say("equipoise: given \x1b[2J"), "control characters"),
    "an input that is changed": (_write("file"), "input changed: work/file"),
    "an input that is removed": (_remove, "input removed: work/file"),
    "half a file": (_write("table.part"), "left half-written: work/table.part"),
    "a file after a refusal": (_write("table", 2), "left behind: work/table"),
    "a file in the folder for temporary ones": (_write("../tmp/x"), "left behind: tmp/x"),
    "a thread": (_begin_a_thread, "left running: thread late"),
    "a process": (_begin_a_process, "left running: process sleep 60"),
    "no end": (lambda words: time.sleep(60), "not ended"),
    "a killed process": (lambda words: os._exit(1), "killed the process"),
    "all memory": (lambda words: bytearray(2 * workers.MEMORY), "raised MemoryError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_command_is_seen(name, tmp_path, monkeypatch):
    main, expected = FAULTS[name]
    found = _result(main, tmp_path, monkeypatch)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("main", [
    _say("a warning\nequipoise: flag --given must be a number, got given"), _write("table"), lambda words: 0,
])  # fmt: skip
def test_a_proper_end_is_no_fault(main, tmp_path, monkeypatch):
    assert _result(main, tmp_path, monkeypatch) == []


def _result(main, tmp_path, monkeypatch):
    """What is found wrong when the command line is `main`, with one file as input."""

    def make(rng, materials, place):
        (place / "file").write_text("old")
        return ["given"]

    monkeypatch.setitem(KINDS, "own", Kind(make, 1))
    monkeypatch.setattr("equipoise.cli.main", main)
    monkeypatch.setattr(workers, "SECONDS", 3)
    monkeypatch.setattr(workers, "WORK", ())
    (result,) = workers.results([("own", 0)], 0, tmp_path, tmp_path, 1)
    return result.problems


def test_a_worker_that_was_ended_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "own", Kind(lambda rng, materials, place: [str(rng.random())], 1))
    monkeypatch.setattr("equipoise.cli.main", lambda words: os._exit(1) if float(words[0]) < 0.5 else 0)
    monkeypatch.setattr(workers, "WORK", ())
    found = list(workers.results([("own", n) for n in range(12)], 0, tmp_path, tmp_path, 2))
    assert sorted(r.number for r in found) == list(range(12))
    for result in found:
        drawn = random.Random(f"0/own/{result.number}").random()
        assert result.problems == (["killed the process"] if drawn < 0.5 else [])


VALID = {"seed": 1, "model": "base", "bapo_low": [0.6, 0.9], "nested": {"a": {"b": "c"}}}


@pytest.mark.parametrize("mutate", [
    lambda rng: byte_mutations.damaged(rng, b"seed: 1\nmodel: base\n" * 20, b"other: 2\n"),
    lambda rng: yaml_mutations.mutated(rng, yaml.safe_dump(VALID)),
    lambda rng: repr(value_mutations.mutated(rng, VALID)),
    lambda rng: word_mutations.mutated(rng, ["train", "--model", "base", "--seed", "1"], ["--json", "--seed"]),
])  # fmt: skip
def test_a_mutation_follows_from_its_seed_and_hardly_ever_comes_twice(mutate):
    made = [mutate(random.Random(n)) for n in range(200)]
    assert made == [mutate(random.Random(n)) for n in range(200)]
    assert len({str(x) for x in made}) > 100
    assert VALID["nested"] == {"a": {"b": "c"}}  # what is mutated is a copy


@pytest.mark.parametrize("mutation", place_mutations.MUTATIONS)
@pytest.mark.parametrize("folder", [False, True])
def test_a_place_is_changed_whatever_is_there(mutation, folder, tmp_path):
    path = tmp_path / "x"
    path.mkdir() if folder else path.write_text("y")
    (path / "inside" if folder else tmp_path / "neighbour").write_text("z")
    before = verdict.snapshot(tmp_path)
    mutation(random.Random(0), path)
    assert verdict.snapshot(tmp_path) != before


@pytest.mark.slow
def test_what_is_not_mutated_is_accepted(tmp_path):
    """Else a mutation would be tried on what is refused in any case."""
    ended = _fuzz("--inputs", 300, "--plain", "--kept", tmp_path)
    assert ended.returncode == 0, ended.stdout
    counts = [line.split() for line in ended.stdout.splitlines() if line.split()[:1] and line.split()[0] in KINDS]
    assert len(counts) == len(KINDS)
    for kind, inputs, accepted, *_ in counts:
        # "one-key" sets a key to what may be out of its range: 29% of 2,000 were accepted.
        assert int(accepted) >= (0.1 if kind == "one-key" else 0.3) * int(inputs), kind
    assert sum(int(accepted) for _, _, accepted, *_ in counts) >= 0.65 * 300


def test_inputs_are_shared_by_the_shares_of_their_kinds():
    counts = dict.fromkeys(KINDS, 0)
    for kind, number in numbers(1000, list(KINDS)):
        assert number == counts[kind]
        counts[kind] += 1
    whole = sum(kind.share for kind in KINDS.values())
    for kind, count in counts.items():
        assert count == pytest.approx(1000 * KINDS[kind].share / whole, abs=1)


def test_a_command_that_finds_something_may_end_with_one():
    assert problems(Ended(["doctor", "run"], code=1)) == []
    assert problems(Ended(["report", "run"], code=1)) == ["exit code 1"]


def test_a_reader_may_write_nothing():
    after = {"work/report.html": "1"}
    assert problems(Ended(["report", "run"], code=0, after=after)) == []
    assert problems(Ended(["doctor", "run"], code=0, after=after)) == ["left behind: work/report.html"]


def test_a_refusal_is_what_the_command_line_makes_of_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.cli._run", lambda words: (_ for _ in ()).throw(InputError("given is wrong")))
    from equipoise.cli import main

    assert _result(main, tmp_path, monkeypatch) == []
