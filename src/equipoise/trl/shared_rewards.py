"""Rewards on several processes: an error of one ends all, and failed episodes are neutral in their whole group."""

from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate.utils import gather
from torch import Tensor

from equipoise.trl.episodes import neutral_rewards
from equipoise.trl.ranks import evaluation_ranks


def shared_rewards(trainer: Any, score: Callable[[], Tensor], count: int) -> Tensor:
    """The rewards of all processes [completions of all ranks, functions], as `score` returns them.

    Args:
        trainer: whose reward functions they are.
        score: TRL's scoring of the completions of this process, which ends with gathering those of all.
        count: completions of this process.

    Raises:
        Exception: of a reward function on this process; of one on another, see `EvaluationRanks.agreed`.
    """
    accelerator, error = trainer.accelerator, None
    if accelerator.num_processes == 1:
        return score()
    try:
        rewards = score()
    except Exception as caught:
        error = caught
        rewards = cast(Tensor, gather(torch.zeros(count, len(trainer.reward_funcs), device=accelerator.device)))
    evaluation_ranks(accelerator).raise_of_any(error)
    group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    return neutral_rewards(rewards, trainer.reward_funcs, group, accelerator.gather)
