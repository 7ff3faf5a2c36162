"""Two processes make the run that one process makes, and continue it exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_process_run

SCRIPT = Path(two_process_run.__file__)
pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the run and what each process ended with."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, SCRIPT, folder], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, two_process_run.run(folder)


def logged(folder):
    """The global measures of each update, all but those that TRL averages over micro-batches."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("update", "loss", "grad_norm", "reward", "learning_rate", "num_tokens")
    return [{k: v for k, v in line.items() if k in kept or k.startswith("equipoise/")} for line in lines]


def test_the_processes_hold_different_amounts_of_tokens(two):
    first, second = (end["whole"]["num_tokens"] for end in two[1])
    assert first != second


def test_both_processes_clip_with_the_same_bounds_and_hold_the_same_weights(two):
    first, second = (end["whole"] for end in two[1])
    assert first["bounds"] == second["bounds"]
    assert len(set(first["bounds"].values())) > 3, "the search must have something to find"
    assert first["controller"] == second["controller"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_bounds_measures_and_weights_are_those_of_one_process(one, two):
    assert two[1][0]["whole"]["bounds"] == one[1]["bounds"]
    assert [line["update"] for line in logged(two[0])] == list(range(1, 11))
    assert any(line["equipoise/phase"] == 1 for line in logged(two[0])), "the controller must have something to do"
    for expected, line in zip(logged(one[0]), logged(two[0]), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert two[1][0]["whole"]["controller"] == pytest.approx(one[1]["controller"], rel=1e-4)
    for name, value in one[1]["weights"].items():
        torch.testing.assert_close(two[1][0]["whole"]["weights"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", two_process_run.RESUMED)
def test_two_processes_resume_exactly(two, step):
    folder, ends = two
    for end in ends:
        resumed = end[f"from-{step}"]
        assert all(torch.equal(value, resumed["weights"][name]) for name, value in end["whole"]["weights"].items())
        assert resumed["controller"] == end["whole"]["controller"]
        assert resumed["bounds"].items() <= end["whole"]["bounds"].items()
    assert logged(folder / f"from-{step}") == logged(folder)


def test_one_process_continues_the_run_of_two(two, tmp_path, caplog):
    folder = two_process_run.take_up(two[0], 4)
    end = two_process_run.run(folder, resume=True)
    assert "another number of processes: the rollout batch in use is sampled again" in caplog.text
    assert [line["update"] for line in logged(folder)] == list(range(1, 11))
    assert logged(folder)[:4] == logged(two[0])[:4]
    assert end["controller"]["num_updates"] == 10
