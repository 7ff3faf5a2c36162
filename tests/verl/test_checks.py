"""What is refused before anything is trained, and where rollouts come from: no Ray, verl's own classes."""

import functools

import pytest
import torch

from equipoise.errors import InputError
from equipoise.steering import Ranks


@pytest.fixture
def check():
    from verl.workers.config import FSDPActorConfig, FSDPEngineConfig
    from verl.workers.utils.losses import ppo_loss

    from equipoise.verl.checks import check_actor
    from equipoise.verl.settings import settings_of

    def checked(keys=None, engine=None, model=None, loss=ppo_loss, **actor):
        given = {"strategy": "fsdp2", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 4} | actor
        config = FSDPActorConfig(**given, fsdp_config=FSDPEngineConfig(**(engine or {})))
        check_actor(functools.partial(loss, config=config), config, settings_of(keys or {}), model or {})

    return checked


def test_the_usual_configuration_is_accepted(check):
    check()
    check({"clipping": "balanced", "polarity": "papo"}, strategy="fsdp")
    check({"entropy_control": "kl_cov"}, clip_ratio_c=1e9)


REFUSED = {
    "Megatron": ({"strategy": "megatron"}, ["strategy", "fsdp2", "megatron"]),
    "fused kernels": ({"use_fused_kernels": True}, ["use_fused_kernels"]),
    "fused kernels of the model": ({"model": {"use_fused_kernels": True}}, ["use_fused_kernels"]),
    "padding to a length": ({"pad_to_length": True}, ["pad_to_length"]),
    "padding to a length, of the engine": ({"engine": {"pad_to_length": True}}, ["pad_to_length"]),
    "shared prefixes": ({"use_prefix_grouper": True}, ["use_prefix_grouper"]),
    "sequence parallelism": ({"ulysses_sequence_parallel_size": 2}, ["ulysses_sequence_parallel_size", "2"]),
    "sequence parallelism, of the engine": ({"engine": {"ulysses_sequence_parallel_size": 4}}, ["ulysses", "4"]),
    "a dual clip within the bounds": (
        {"keys": {"clipping": "balanced"}, "clip_ratio_c": 2.0}, ["clip_ratio_c", "3.0", "2.0", "bapo_high"],
    ),
    "a dual clip beside the surrogate measure": (
        {"keys": {"preset": "bapo_paper"}}, ["clip_ratio_c", "surrogate", "3.0"],
    ),
    "a dual clip beside set gradients": ({"keys": {"entropy_control": "ce_gppo"}}, ["clip_ratio_c", "ce_gppo"]),
}  # fmt: skip


@pytest.mark.parametrize(("given", "named"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_one_line_with_the_key(given, named, check):
    with pytest.raises(InputError) as refused:
        check(**given)
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in named), refused.value


def test_distillation_is_refused(check):
    with pytest.raises(InputError, match=r"distillation\.enabled=False"):
        check(loss=lambda config: None)


def step(rows=4, **columns):
    """A step's data as the trainer gives it to a rank."""
    from tensordict import NonTensorStack, TensorDict

    data = TensorDict({"input_ids": torch.ones(rows, 6).long(), "loss_mask": torch.ones(rows, 3).long()}, [rows])
    for name, column in columns.items():
        data[name] = column if isinstance(column, torch.Tensor) else NonTensorStack(*column)
    return data


def examined(data, versions=None, updates=0, **more):
    from equipoise.verl.origin import Versions, examine

    return examine(data, versions or Versions(), more.pop("ranks", Ranks()), updates=updates, samples=0, **more)


def versions_of(*updates):
    """Weights that were sent after so many updates, numbered from 0."""
    from equipoise.verl.origin import Versions

    versions = Versions()
    for number, count in enumerate(updates):
        versions.sent(number, count)
    return versions


def told(*numbers):
    return [{"min_global_steps": number, "max_global_steps": 9} for number in numbers]


def test_the_version_of_a_row_is_the_updates_behind_the_weights_that_began_it():
    old = torch.zeros(4, 3)
    data = step(old_log_probs=old, rollout_log_probs=old, extra_fields=told(0, 2, 3, None))
    examined(data, versions_of(0, 2, 4, 6), updates=6)
    assert data["equipoise_version"].tolist() == [0, 4, 6, 6]


def test_versions_that_were_never_sent_count_as_the_one_before_and_forgotten_ones_as_the_oldest():
    from equipoise.verl.origin import Versions

    versions = Versions()
    for number in range(0, 2 * Versions.KEPT, 2):
        versions.sent(number, 10 * number)
    assert versions.updates_before(301, -1) == 3000
    versions.sent(2 * Versions.KEPT, 20 * Versions.KEPT)
    assert 0 not in versions.updates
    assert versions.updates_before(0, -1) == 20
    assert versions.updates_before(None, -1) == -1


@pytest.mark.parametrize(("updates", "old_policy"), [(6, 6), (8, 6)], ids=["after a version", "between versions"])
def test_verls_own_old_log_probs_are_of_the_weights_that_were_sent_last(updates, old_policy):
    data = step(old_log_probs=torch.zeros(4, 3), extra_fields=told(3, 3, 3, 3))
    origin = examined(data, versions_of(0, 2, 4, 6), updates=updates)  # rows of that version are not stale
    assert (origin.updates, origin.old_policy) == (updates, old_policy)
    assert examined(step(old_log_probs=torch.zeros(4, 3)), updates=updates).old_policy == updates  # none were sent


@pytest.mark.parametrize("same", [True, False])
def test_old_log_probs_are_the_rollouts_when_they_equal_them_on_every_rank(same):
    old = torch.randn(4, 3)
    data = step(old_log_probs=old, rollout_log_probs=old + (0 if same else 1e-6))
    assert examined(data).from_rollout == same
    other_differs = Ranks(all_reduce=lambda facts: facts + torch.tensor([0, 0, 0, 0, 1.0]).double())
    assert not examined(data, ranks=other_differs).from_rollout


def test_tokens_without_a_log_prob_do_not_hide_that_the_others_are_the_rollouts():
    old = torch.randn(4, 3)
    old[0, 1] = torch.nan  # of a tool
    assert examined(step(old_log_probs=old, rollout_log_probs=old.clone())).from_rollout


def test_stale_rollouts_without_their_log_probs_are_refused_also_when_they_are_another_ranks():
    old, versions = torch.zeros(4, 3), versions_of(0, 2)
    examined(step(old_log_probs=old, extra_fields=told(1, 1, 1, 1)), versions, updates=2)
    for told_here, ranks in (
        (told(1, 1, 0, 1), Ranks()),
        (told(1, 1, 1, 1), Ranks(all_reduce=lambda facts: facts + torch.tensor([0, 0, 0, 1.0, 0]).double())),
    ):
        with pytest.raises(InputError, match=r"calculate_log_probs=True"):
            examined(step(old_log_probs=old, extra_fields=told_here), versions, updates=2, ranks=ranks)


def test_rewards_are_measured_by_group_over_all_ranks_without_the_rows_that_only_fill_a_batch():
    scores = torch.tensor([[0, 0, 1.0], [0, 0, 0.0], [0, 0, 1.0], [0, 0, 5.0]])
    data = step(old_log_probs=torch.zeros(4, 3), rm_scores=scores, uid=["a", "b", "a", "a"])
    data["loss_mask"][3] = 0
    elsewhere = Ranks(all_gather=lambda rows: [rows, torch.stack([rows[1] + torch.tensor([0, 1.0]).double()])], rank=0)
    measured = examined(data, ranks=elsewhere).rewards
    assert measured["reward"] == pytest.approx(3 / 4)
    assert measured["equal_reward_fraction"] == 0.5  # a: 1, 1; b: 0, 1
    assert measured["reward_std"] == pytest.approx(0.5**0.5 / 2)
    assert data["equipoise_sample"].tolist() == [0, 1, 2, 3]
    assert data["equipoise_group"][0] == data["equipoise_group"][2] != data["equipoise_group"][1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_advantage_that_is_no_number_is_refused_where_a_token_of_the_policy_has_it(value):
    advantages = torch.zeros(4, 3)
    advantages[1, 2] = value
    data = step(old_log_probs=torch.zeros(4, 3), advantages=advantages)
    with pytest.raises(InputError, match="advantages must be finite"):
        examined(data)
    data["loss_mask"][1, 2] = 0
    examined(data)


def test_without_scores_nothing_is_said_of_the_reward():
    assert examined(step(old_log_probs=torch.zeros(4, 3))).rewards == {}
