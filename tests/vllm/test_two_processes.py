"""Two processes with an engine each: replay and partial rollouts under DDP and FSDP2, resumed exactly."""

import off_policy_two_processes as claims
import pytest
from processes import DDP, FSDP2
from vllm_setup import MEAN_ERROR, MOST_ERROR

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[DDP, FSDP2], ids=["ddp", "fsdp2"])
def ends(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    found = claims.launched(folder, model, configuration=request.param, seconds=540)
    assert {end["whole"]["sharded"] for end in found} == {request.param == FSDP2}
    return found


def test_both_hold_the_same_policy_and_stores_of_their_own(ends):
    claims.one_policy_two_stores(ends)


def test_they_go_through_the_same_rounds(ends):
    claims.lockstep(ends)


def test_weights_are_sent_once_per_rollout_batch(ends):
    for end in ends:
        assert end["whole"]["sent"] == [0, 2, 4, 6]
        assert end["resumed"]["sent"] == [6]


def test_behaviour_logprobs_are_those_of_the_policies_that_sampled(ends):
    claims.behaviour(ends, mean=MEAN_ERROR, most=MOST_ERROR)


def test_they_continue_exactly(ends):
    claims.exact(ends)
