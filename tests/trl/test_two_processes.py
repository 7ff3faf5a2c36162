"""Two processes make the run that one process makes, and continue it exactly: each with the whole model, or a shard."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import two_process_run
from processes import FSDP2, launch

from equipoise.trl.checkpoints import CheckpointError

SCRIPT = Path(two_process_run.__file__)
pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return SimpleNamespace(folder=folder, end=two_process_run.run(folder))


def logged(folder):
    """The global measures of each update, all but those that TRL averages over micro-batches."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("update", "loss", "grad_norm", "reward", "learning_rate", "num_tokens")
    return [{k: v for k, v in line.items() if k in kept or k.startswith("equipoise/")} for line in lines]


def assert_same_measures(folder, expected):
    for line, expected_line in zip(logged(folder), logged(expected), strict=True):
        assert line == pytest.approx(expected_line, rel=1e-4, abs=1e-5)


def test_the_processes_hold_different_amounts_of_tokens(two):
    first, second = (end["whole"]["num_tokens"] for end in two.ends)
    assert first != second


def test_every_parameter_is_sharded_where_it_is_asked_for(ddp, sharded):
    for end in ddp.ends:
        assert end["whole"]["sharded"] == []
    for end in sharded.ends:
        assert end["whole"]["sharded"] == list(end["whole"]["weights"])


def test_both_processes_clip_with_the_same_bounds_and_hold_the_same_weights(two):
    first, second = (end["whole"] for end in two.ends)
    assert first["bounds"] == second["bounds"]
    assert len(set(first["bounds"].values())) > 3, "the search must have something to find"
    assert first["controller"] == second["controller"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_bounds_measures_and_weights_are_those_of_one_process(one, two):
    assert two.ends[0]["whole"]["bounds"] == one.end["bounds"]
    assert [line["update"] for line in logged(two.folder)] == list(range(1, 11))
    assert any(line["equipoise/phase"] == 1 for line in logged(two.folder)), "the controller must have something to do"
    assert_same_measures(two.folder, one.folder)
    assert two.ends[0]["whole"]["controller"] == pytest.approx(one.end["controller"], rel=1e-4)
    for name, value in one.end["weights"].items():
        torch.testing.assert_close(two.ends[0]["whole"]["weights"][name], value, rtol=1e-4, atol=1e-5)


def test_in_float64_two_processes_are_one_to_the_last_digits(ddp, tmp_path):
    for name, value in two_process_run.exact(tmp_path).items():
        torch.testing.assert_close(ddp.ends[0]["exact"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", two_process_run.RESUMED)
def test_two_processes_resume_exactly(two, step):
    for end in two.ends:
        resumed = end[f"from-{step}"]
        assert all(torch.equal(value, resumed["weights"][name]) for name, value in end["whole"]["weights"].items())
        assert resumed["controller"] == end["whole"]["controller"]
        assert resumed["bounds"].items() <= end["whole"]["bounds"].items()
    assert logged(two.folder / f"from-{step}") == logged(two.folder)


def test_processes_with_shards_generate_what_processes_with_the_whole_model_do(ddp, sharded):
    first, second = (end["longest"] for end in sharded.ends)
    assert all(a != b for a, b in zip(first, second, strict=True)), "the processes must need different numbers of steps"
    assert [first, second] == [end["longest"] for end in ddp.ends]
    assert_same_measures(sharded.folder / "generated", ddp.folder / "generated")


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_mixed_precision_does_not_round_log_probs(how, request):
    for end in request.getfixturevalue(how).ends:
        for logprob in end["mixed"]:
            assert logprob.dtype == torch.float32
            assert (logprob != logprob.bfloat16().float()).any()


def assert_continued(folder, end, whole):
    assert [line["update"] for line in logged(folder)] == list(range(1, 11))
    assert logged(folder)[:4] == logged(whole)[:4]
    assert end["controller"]["num_updates"] == 10


def test_one_process_continues_the_run_of_two(ddp, tmp_path, caplog):
    folder = two_process_run.take_up(ddp.folder, 4)
    end = two_process_run.run(folder, resume=True)
    assert "another number of processes: the rollout batch in use is sampled again" in caplog.text
    assert_continued(folder, end, ddp.folder)


def test_zero3_is_not_continued_without_it(zero3):
    folder = two_process_run.take_up(zero3.folder, 4)
    with pytest.raises(CheckpointError, match="was saved by DeepSpeed.*accelerate launch.*as many processes"):
        two_process_run.run(folder, resume=True)


def test_one_process_continues_the_sharded_run_of_two(fsdp2):
    folder = two_process_run.take_up(fsdp2.folder, 4)
    with pytest.raises(CheckpointError, match="was saved by FSDP.*accelerate launch.*--num_processes 1"):
        two_process_run.run(folder, resume=True)
    launch(SCRIPT, folder, "--resume", configuration=FSDP2, processes=1)
    end = torch.load(folder / "ends-0.pt", weights_only=True)
    assert end["sharded"]
    assert_continued(folder, end, fsdp2.folder)
