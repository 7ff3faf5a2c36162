"""The arithmetic of a rollout batch, and which updates are whole."""

import pytest

from equipoise.settings.batches import RolloutBatch

BATCH = RolloutBatch(rows=4, micro_batches=6, passes=2, accumulated=3, group_size=8)


def test_numbers_follow_from_the_keys():
    keys = {
        "per_device_train_batch_size": 4, "steps_per_generation": 6, "num_iterations": 2,
        "gradient_accumulation_steps": 3, "num_generations": 8,
    }  # fmt: skip
    assert RolloutBatch.of(keys) == BATCH
    assert (BATCH.completions, BATCH.groups, BATCH.completions_per_update) == (24, 3, 12)
    assert (BATCH.trained_micro_batches, BATCH.updates) == (12, 4)
    assert [BATCH.replayed_groups(fraction) for fraction in (0, 0.3, 1 / 3, 0.7)] == [0, 0, 1, 2]


def test_what_is_not_given_has_the_host_s_default():
    assert RolloutBatch.of({}) == RolloutBatch(8, 1, 1, 1, 8)
    assert RolloutBatch.of({"gradient_accumulation_steps": 5, "steps_per_generation": None}).micro_batches == 5


@pytest.mark.parametrize(
    ("micro_batches", "passes", "accumulated", "within", "spanning"),
    [(6, 2, 3, True, True), (6, 2, 12, True, True), (3, 2, 4, False, False), (2, 1, 4, False, True)],
)
def test_updates_are_whole_within_a_rollout_batch_or_over_several(micro_batches, passes, accumulated, within, spanning):
    batch = RolloutBatch(4, micro_batches, passes, accumulated, 8)
    assert batch.has_whole_updates() == within
    assert batch.has_whole_updates(may_span=True) == spanning
    for may_span, holds in ((False, within), (True, spanning)):
        if holds:
            batch.require_whole_updates("it", may_span=may_span)
        else:
            rule = rf"it .*gradient_accumulation_steps={accumulated} must divide .* = {micro_batches * passes}"
            with pytest.raises(ValueError, match=rule):
                batch.require_whole_updates("it", may_span=may_span)


def test_groups_are_whole_on_every_process():
    BATCH.require_whole_groups("it")
    with pytest.raises(ValueError, match=r"num_generations=7 must divide .* 4 \* 6 = 24"):
        RolloutBatch(4, 6, 2, 3, 7).require_whole_groups("it")
