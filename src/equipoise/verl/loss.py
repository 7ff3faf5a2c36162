"""The policy loss that verl knows as "equipoise": verl's own clipped one, at the bounds that steering has found."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.workers.config import ActorConfig

from equipoise.types import ClipBounds

_in_force: list[ClipBounds | None] = []
"""The bounds of the micro-batch that this process computes the loss of, None for verl's own; empty outside one."""


@contextmanager
def bounds_in_force(bounds: ClipBounds | None) -> Iterator[None]:
    """Within the block, the loss of a micro-batch is computed at these bounds; None for those of verl's settings."""
    _in_force.append(bounds)
    try:
        yield
    finally:
        _in_force.pop()


def equipoise_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's vanilla loss with dual clip, at the bounds in force; advantages are those that steering gave it.

    Args:
        old_log_prob: [batch, time], nats.
        log_prob: [batch, time], nats, with gradients.
        advantages: [batch, time].
        response_mask: [batch, time], tokens that carry loss.
        loss_agg_mode: verl's name of the denominator.
        config: of the actor.
        rollout_is_weights: [batch, time], verl's correction for the mismatch of the sampler, or None.

    Raises:
        RuntimeError: no update is being steered: without that the loss would be verl's own, and nobody would notice.
    """
    if not _in_force:
        raise RuntimeError(
            "policy_loss.loss_mode=equipoise, but this worker was not extended: it must load equipoise.verl before it "
            "builds the actor: set actor_rollout_ref.model.external_lib=equipoise.verl"
        )
    config = copy.copy(config)  # of itself alone: the sizes of the batch, which are in it, stay shared
    if (bounds := _in_force[-1]) is not None:
        object.__setattr__(config, "clip_ratio_low", 1 - bounds.low)
        object.__setattr__(config, "clip_ratio_high", bounds.high - 1)
    return compute_policy_loss_vanilla(
        old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
    )
