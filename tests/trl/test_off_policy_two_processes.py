"""Two processes have a store each, go through rounds together, train one policy, and continue exactly."""

import importlib.util

import off_policy_two_processes as claims
import pytest
from processes import DDP, FSDP2, ZERO3

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[DDP, FSDP2, ZERO3], ids=["ddp", "fsdp2", "zero3"])
def ends(request, tmp_path_factory):
    if request.param == ZERO3 and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    found = claims.launched(tmp_path_factory.mktemp("two"), configuration=request.param)
    assert {end["whole"]["sharded"] for end in found} == {request.param != DDP}
    return found


def test_both_hold_the_same_policy_and_stores_of_their_own(ends):
    claims.one_policy_two_stores(ends)


def test_the_size_of_the_batch_is_that_of_both(ends):
    claims.size_of_the_batch(ends)


def test_they_go_through_the_same_rounds(ends):
    claims.lockstep(ends)


def test_behaviour_logprobs_are_those_of_the_policies_that_sampled(ends):
    claims.behaviour(ends, mean=1e-5, most=1e-4)


def test_they_continue_exactly(ends):
    claims.exact(ends)
