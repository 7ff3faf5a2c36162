"""The clipped surrogate of PPO with absolute bounds, and which tokens its clip takes out of the gradient."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.types import ClipBounds


def clipped_surrogate(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], bounds: ClipBounds
) -> Float[Tensor, "*shape"]:
    """min(rho A, clip(rho, low, high) A), to be maximised (arXiv 2510.18927, Eq. 4; absolute bounds, no epsilons)."""
    low, high = cast(float, bounds.low), cast(float, bounds.high)  # two numbers, or two tensors
    return torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def clipped_high(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], bounds: ClipBounds
) -> Bool[Tensor, "*shape"]:
    """A > 0 and rho >= high: the surrogate is flat above, the token counts as without gradient (BAPO, Eq. 6).

    Exactly on the bound the surrogate has a kink, where torch's gradient is that of the unclipped side.
    """
    return (advantage > 0) & (ratio >= bounds.high)


def clipped_low(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], bounds: ClipBounds
) -> Bool[Tensor, "*shape"]:
    """A < 0 and rho <= low: the surrogate is flat below, the token counts as without gradient (as `clipped_high`)."""
    return (advantage < 0) & (ratio <= bounds.low)


def unclipped(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], bounds: ClipBounds
) -> Bool[Tensor, "*shape"]:
    """Tokens whose gradient survives: X of the Entropy-Clip Rule (arXiv 2510.18927, Eq. 6-7), m of the polarity."""
    return ~(clipped_high(ratio, advantage, bounds) | clipped_low(ratio, advantage, bounds))
