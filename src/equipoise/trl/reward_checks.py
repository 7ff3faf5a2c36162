"""Rewards as TRL gathers them: refused where float32 cannot normalise them, and no signal where a group has none."""

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.tasks.task import MAX_REWARD


def check_rewards(rewards: Tensor, weights: Tensor, names: Sequence[str]) -> None:
    """Refuses rewards beyond ±`MAX_REWARD`, alone and as their weighted sum; NaN is an unscored completion.

    Args:
        rewards: [completions, functions], of all ranks.
        weights: [functions].
        names: of the functions.

    Raises:
        InputError: naming the function, the completion (from 1) and the value.
    """
    sums = (rewards * weights.to(rewards)).nansum(dim=1, keepdim=True)
    for values, name in ((rewards, None), (sums, "the weighted sum of rewards")):
        beyond = values.abs() > MAX_REWARD
        if beyond.any():
            row, column = (int(index) for index in beyond.nonzero()[0])
            raise InputError(
                f"{name or f'reward function {names[column]!r}'} must be within ±{MAX_REWARD:g},"
                f" got {values[row, column].item():g} for completion {row + 1} of the batch"
            )


def has_no_signal(rewards: Tensor, num_generations: int) -> Tensor:
    """Whether all completions of a group have the same rewards: [completions], True for each of such a group.

    Their mean in float32 differs from them by a rounding error, which TRL divides by a standard deviation of the same
    size: six rewards of 1000.1 have advantages of -0.37 there, instead of 0.

    Args:
        rewards: [completions, functions], the completions of a group one after another; NaN is unscored.
        num_generations: of a group.
    """
    groups = rewards.view(-1, num_generations, rewards.shape[1])
    first = groups[:, :1]
    same = (groups == first) | (groups.isnan() & first.isnan())
    return same.all(dim=2).all(dim=1).repeat_interleave(num_generations)


def without_noise(advantages: Tensor, rewards: Tensor, num_generations: int, rank: int) -> Tensor:
    """Advantages [completions of this rank] with 0 in groups without signal; rewards are those of all ranks."""
    begin = rank * len(advantages)
    silent = has_no_signal(rewards, num_generations)[begin : begin + len(advantages)]
    return torch.where(silent.to(advantages.device), 0.0, advantages)
