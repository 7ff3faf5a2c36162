"""The statistics head under FSDP2 and ZeRO-3: two processes with a sharded model compute what one whole model does."""

import importlib.util
from pathlib import Path

import pytest
import sharded_head_run
import torch
from processes import launch

FSDP2 = Path(sharded_head_run.__file__)
ZERO3 = FSDP2.with_name("zero3_head_run.py")  # not imported: DeepSpeed need not be there
CASES = ("tied", "untied", "bias", "head alone", "accelerate tied", "accelerate untied")
ZERO3_CASES = ("tied", "untied", "bias")


def ends_of(script, folder):
    launch(script, folder)
    return [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return ends_of(FSDP2, tmp_path_factory.mktemp("fsdp2"))


@pytest.fixture(scope="module")
def zero3(tmp_path_factory):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    return ends_of(ZERO3, tmp_path_factory.mktemp("zero3"))


def assert_same(ends, case, **tolerance):
    for end in ends:
        assert end[case]["inside"], "the head must be sharded, or nothing is tested"
        plain = end[case]["plain"]
        for time, sharded in enumerate(end[case]["sharded"]):
            assert plain.keys() == sharded.keys()
            for name, value in plain.items():
                where = f"{name}, time {time}"
                torch.testing.assert_close(sharded[name], value, **tolerance, msg=lambda m, w=where: f"{w}: {m}")
                assert value.abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_whole_model(fsdp2, case):
    assert_same(fsdp2, case, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ZERO3_CASES)
def test_values_and_gradients_are_those_of_the_whole_model_under_zero3(zero3, case):
    assert_same(zero3, case, rtol=1e-4, atol=1e-5)  # it adds the ranks' gradients in an order of its own


def test_the_ranks_differ(fsdp2):
    first, second = (end["untied"]["plain"]["log_probs"] for end in fsdp2)
    assert (first != 0).sum() != (second != 0).sum()
