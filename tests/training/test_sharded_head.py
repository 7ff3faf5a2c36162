"""The statistics head under FSDP2: two processes with a sharded model compute what one unsharded model does."""

from pathlib import Path

import pytest
import sharded_head_run
import torch
from processes import launch

CASES = ("tied", "untied", "bias", "head alone", "accelerate tied", "accelerate untied")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    launch(sharded_head_run.__file__, folder)
    return [torch.load(Path(folder) / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_whole_model(ends, case):
    for end in ends:
        assert end[case]["inside"], "the head must be sharded, or nothing is tested"
        plain = end[case]["plain"]
        for time, sharded in enumerate(end[case]["sharded"]):
            assert plain.keys() == sharded.keys()
            for name, value in plain.items():
                where = f"{name}, time {time}"
                torch.testing.assert_close(
                    sharded[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, w=where: f"{w}: {m}"
                )
                assert value.abs().max() > 0


def test_the_ranks_differ(ends):
    first, second = (end["untied"]["plain"]["log_probs"] for end in ends)
    assert (first != 0).sum() != (second != 0).sum()
