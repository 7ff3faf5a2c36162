"""Objectives: (statistics, batch) -> loss per token and metrics. None of them aggregates."""

from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.clipping import clipped_high, clipped_low, clipped_surrogate
from equipoise.ratios import importance_ratio
from equipoise.types import ClipBounds, PolicyBatch, TokenLoss, TokenStatistics, WeightedMean


def ppo_clip(statistics: TokenStatistics, batch: PolicyBatch, *, bounds: ClipBounds) -> TokenLoss:
    """-min(rho A, clip(rho, low, high) A) per token (PPO, arXiv 1707.06347, Eq. 7; bounds absolute as in BAPO, Eq. 4).

    Differentiable through `statistics.logprob`; the advantage is detached. Zero outside the action mask, whatever
    stands there.
    """
    mask = batch.action_mask
    # Masked before the exponential: a NaN or an infinity outside the mask would reach the gradient through 0 * NaN.
    logprob = statistics.logprob.masked_fill(~mask, 0.0)
    ratio = importance_ratio(logprob, batch.behavior_logprob.masked_fill(~mask, 0.0))
    advantage = batch.advantage.detach().masked_fill(~mask, 0.0)
    loss = -clipped_surrogate(ratio, advantage, bounds)
    metrics = {
        "ratio": _mean_over(ratio, mask),
        "clip_fraction/low": _mean_over(clipped_low(ratio, advantage, bounds).to(ratio.dtype), mask),
        "clip_fraction/high": _mean_over(clipped_high(ratio, advantage, bounds).to(ratio.dtype), mask),
    }
    return TokenLoss(loss, metrics)


def _mean_over(value: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> WeightedMean:
    return WeightedMean(float(value.detach().masked_fill(~mask, 0.0).double().sum()), float(mask.sum()))
