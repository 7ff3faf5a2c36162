"""Two processes have a store each, train one policy, and continue exactly."""

from pathlib import Path

import off_policy_two_process_run
import pytest
import torch
from equality import equal
from processes import launch

SCRIPT = Path(off_policy_two_process_run.__file__)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(SCRIPT, folder)
    assert {p.name for p in (folder / "whole" / "checkpoint-5").glob("replay_*")} == {"replay_0.pt", "replay_1.pt"}
    return [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_hold_the_same_policy_and_stores_of_their_own(ends):
    first, second = (end["whole"] for end in ends)
    assert equal(first["weights"], second["weights"])
    assert not equal(first["store"], second["store"])
    assert first["shares"] == [0, None, 0.5, None, 0.5, None, 0.5, None]
    for name in ("completion_ids", "policy_version"):
        assert not equal(first["batch"][0][name], second["batch"][0][name])


def test_the_size_of_the_batch_is_that_of_both(ends):
    batches = [end["whole"]["batch"] for end in ends]
    tokens = sum(int(part["completion_mask"].sum()) for batch in batches for part in batch)
    assert {int(part["num_items_in_batch"]) for batch in batches for part in batch} == {tokens}
    assert all(len(part["completion_ids"]) == 4 for batch in batches for part in batch)


def test_they_continue_exactly(ends):
    for end in ends:
        for name in ("weights", "store", "batch"):
            assert equal(end["resumed"][name], end["whole"][name]), name
