from types import SimpleNamespace

import pytest
import torch

from equipoise.types import ClipBounds


def settings_of_actor(**changes):
    from verl.workers.config import FSDPActorConfig

    keys = {"strategy": "fsdp2", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 4, "clip_ratio_high": 0.28} | changes
    config = FSDPActorConfig(**keys)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=30, global_batch_size=4, loss_scale_factor=None)
    return config


def tokens(seed=0):
    torch.manual_seed(seed)
    logprob = -torch.rand(4, 9) * 3
    return SimpleNamespace(
        old=logprob + torch.randn(4, 9) * 0.4,
        logprob=logprob.requires_grad_(),
        advantage=torch.randn(4, 1).expand(4, 9),
        mask=torch.rand(4, 9) < 0.8,
    )


def gradient(loss, rows, config, **more):
    value, metrics = loss(rows.old, rows.logprob, rows.advantage, rows.mask, "token-mean", config, **more)
    (found,) = torch.autograd.grad(value, rows.logprob)
    return value.detach(), found, metrics


@pytest.mark.parametrize("weights", [None, torch.rand(4, 9)], ids=["no weights", "importance weights"])
def test_without_bounds_of_ours_it_is_verls_loss_to_the_last_bit(weights):
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla

    from equipoise.verl.loss import bounds_in_force, equipoise_loss

    rows, config = tokens(), settings_of_actor()
    with bounds_in_force(None):
        ours = gradient(equipoise_loss, rows, config, rollout_is_weights=weights)
    verls = gradient(compute_policy_loss_vanilla, rows, config, rollout_is_weights=weights)
    assert torch.equal(ours[0], verls[0])
    assert torch.equal(ours[1], verls[1])
    assert ours[2] == verls[2]


@pytest.mark.parametrize("on_device", [False, True], ids=["numbers", "left by a search"])
@pytest.mark.parametrize(("low", "high"), [(0.6, 1.2), (0.98, 3.0)])
def test_at_bounds_it_is_the_clipped_loss_of_the_core(low, high, on_device):
    from equipoise.objectives import ppo_clip
    from equipoise.types import PolicyBatch, TokenStatistics
    from equipoise.verl.loss import bounds_in_force, equipoise_loss

    rows, config = tokens(), settings_of_actor(clip_ratio_c=1e9)  # the core has no dual clip
    exact = (
        (torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)) if on_device else (low, high)
    )
    with bounds_in_force(ClipBounds(*exact)):
        loss, found, _ = gradient(equipoise_loss, rows, config)
    core = ppo_clip(
        TokenStatistics(rows.logprob, *[rows.logprob.detach()] * 3),
        PolicyBatch(rows.advantage, rows.old, rows.mask),
        bounds=ClipBounds(low, high),
    )
    expected = core.loss.sum() / 30
    (gradient_of_core,) = torch.autograd.grad(expected, rows.logprob)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found, gradient_of_core, rtol=1e-5, atol=1e-9)
    assert config.clip_ratio_high == 0.28  # of verl's own settings nothing is changed
    assert config.clip_ratio_low == 0.2


def test_in_a_worker_that_was_not_extended_it_says_so_and_computes_nothing():
    from equipoise.verl.loss import bounds_in_force, equipoise_loss

    rows = tokens()
    with bounds_in_force(ClipBounds(0.6, 1.2)):
        pass
    with pytest.raises(RuntimeError, match=r"external_lib=equipoise\.verl"):
        gradient(equipoise_loss, rows, settings_of_actor())
