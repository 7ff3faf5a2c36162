"""Rewards that float32 cannot normalise are refused by the trainer; equal rewards give no advantage at all."""

import math

import pytest
import torch
from trainer_setup import character_tokenizer, config, prompts, tiny_model

from equipoise.errors import InputError
from equipoise.trl import EquipoiseTrainer
from equipoise.trl.reward_checks import check_rewards, has_no_signal, without_noise

NAN = math.nan


def test_rewards_within_the_range_pass():
    check_rewards(torch.tensor([[1e8, -1e8], [0.0, NAN], [NAN, NAN]]), torch.tensor([0.5, 0.5]), ["a", "b"])


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([[0, 0], [0, 1e20]], [1, 1], r"reward function 'b' must be within ±1e\+08, got 1e\+20 for completion 2"),
        ([[0, 0], [-math.inf, 0]], [1, 1], "reward function 'a' .* got -inf for completion 2"),
        ([[6e7, 6e7], [0, 0]], [1, 1], r"the weighted sum of rewards .* got 1.2e\+08 for completion 1"),
        ([[1, 1], [0, 0]], [1e9, 1], "the weighted sum of rewards .* for completion 1"),
    ],
)
def test_rewards_beyond_the_range_are_refused_with_their_row(rewards, weights, message):
    with pytest.raises(InputError, match=message):
        check_rewards(torch.tensor(rewards, dtype=torch.float32), torch.tensor(weights), ["a", "b"])


def test_groups_without_signal():
    rewards = torch.tensor(
        [[1.0, NAN], [1.0, NAN], [1.0, 2.0], [1.0, 2.5], [1.0, 2.0], [NAN, 2.0], [NAN, NAN], [NAN, NAN]]
    )
    assert has_no_signal(rewards, 2).tolist() == [True, True, False, False, False, False, True, True]
    advantages = torch.tensor([0.3, -0.3, 0.5, -0.5])
    assert without_noise(advantages, rewards, 2, 0).tolist() == pytest.approx([0, 0, 0.5, -0.5])
    assert without_noise(advantages, rewards, 2, 1).tolist() == pytest.approx([0.3, -0.3, 0, 0])


def advantages(folder, reward, **settings):
    """The advantages of one batch, in which every group has six completions."""
    trainer = EquipoiseTrainer(
        model=tiny_model(), reward_funcs=reward, train_dataset=prompts(),
        args=config(folder, num_generations=6, per_device_train_batch_size=12, **settings),
        processing_class=character_tokenizer(),
    )  # fmt: skip
    trainer.model.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    return trainer._generate_and_score_completions(inputs)["advantages"]


@pytest.mark.parametrize("value", [1.0, 1000.1, 0.3, -999.9, 1e8])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_no_advantage(tmp_path, value, scale):
    assert (
        advantages(tmp_path, lambda completions, **columns: [value] * len(completions), scale_rewards=scale).tolist()
        == [0.0] * 12
    )


def test_other_groups_and_unscored_completions_are_as_trl_has_them(tmp_path):
    values = [1000.1] * 6 + [1000.1, 1000.2, None, 1000.1, 1000.2, 1000.1]
    found = advantages(tmp_path, lambda completions, **columns: values)
    assert found[:6].tolist() == [0.0] * 6
    assert found[8] == 0
    assert found[6] < 0 < found[7]
    assert found[7:11:3].tolist() == pytest.approx([float(found[7])] * 2)


def test_a_reward_that_would_be_nan_is_refused_before_the_update(tmp_path):
    with pytest.raises(InputError, match="for completion 3 of the batch"):
        advantages(tmp_path, lambda completions, **columns: [1.0, 1.0, -1e20] + [0.0] * 9)
