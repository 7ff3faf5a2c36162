"""What holds of `off_policy_two_process_run.py`, whatever samples and however the model is sharded."""

from pathlib import Path

import off_policy_two_process_run
import torch
from equality import equal
from processes import launch

SCRIPT = Path(off_policy_two_process_run.__file__)


def launched(folder: Path, *arguments: object, **settings) -> list[dict]:
    """What the two processes ended with."""
    launch(SCRIPT, folder, *arguments, **settings)
    names = {p.name for p in (folder / "whole" / "checkpoint-5").glob("replay_*")}
    assert names == {"replay_0.pt", "replay_1.pt"}
    return [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]


def one_policy_two_stores(ends) -> None:
    first, second = (end["whole"] for end in ends)
    assert equal(first["weights"], second["weights"])
    assert not equal(first["store"], second["store"])
    assert first["shares"] == [0, None, 0.5, None, 0.5, None, 0.5, None]
    for name in ("completion_ids", "policy_version"):
        assert not equal(first["batch"][0][name], second["batch"][0][name])


def size_of_the_batch(ends) -> None:
    batches = [end["whole"]["batch"] for end in ends]
    tokens = sum(int(part["completion_mask"].sum()) for batch in batches for part in batch)
    assert {int(part["num_items_in_batch"]) for batch in batches for part in batch} == {tokens}
    assert all(len(part["completion_ids"]) == 4 for batch in batches for part in batch)


def lockstep(ends) -> None:
    """As many rounds on both, each as large as the larger asks; processes that have enough, or nothing, take part."""
    waited = idle = 0
    for name in ("rounds", "unequal"):
        first, second = (end["whole"][name] for end in ends)
        for (step, one, agreed), (other_step, other, also) in zip(first, second, strict=True):
            assert step == other_step
            assert agreed == also == list(map(max, one, other))
            waited += agreed[0] > 0 >= min(one[0], other[0])
            idle += agreed[0] > 0 == min(one[1], other[1])
    assert waited, "a process must have had enough before the other for this test to say anything"
    assert idle, "a process must have had nothing to continue for this test to say anything"


def behaviour(ends, *, mean: float, most: float) -> None:
    for end in ends:
        assert len(end["whole"]["errors"]) > 200
        assert end["whole"]["errors"].mean() < mean
        assert end["whole"]["errors"].max() < most


def exact(ends) -> None:
    for end in ends:
        for name in ("weights", "store", "batch"):
            assert equal(end["resumed"][name], end["whole"][name]), name
