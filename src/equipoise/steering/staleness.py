"""How far the data is from the policy: counts that add over micro-batches and ranks, and what is read from them.

Counting waits for no device: what lies outside a mask is counted with weight 0 and not selected away.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

STALENESS_BUCKETS = {"0": (0, 0), "1": (1, 1), "2_3": (2, 3), "4_7": (4, 7), "8_15": (8, 15), "16_up": (16, math.inf)}
"""Staleness of a token, in updates since the policy that sampled it: first and last of each bucket."""

LOG_RATIO_WIDTH, LOG_RATIO_END = 0.01, 3.0
"""Ratios are counted in intervals of 1% from e^-3 to e^3; what lies beyond is in the outermost two."""


def staleness_counts(staleness: Int[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float64[Tensor, " buckets"]:
    """Tokens of the mask in each of `STALENESS_BUCKETS`."""
    starts = [start for start, _ in STALENESS_BUCKETS.values()][1:]
    buckets = torch.stack([staleness >= start for start in starts]).sum(0)
    return _counted(buckets, mask, len(STALENESS_BUCKETS))


def ratio_counts(ratio: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float64[Tensor, " intervals"]:
    """Tokens of the mask in each interval of log rho, as `ratio_quantile` reads them. Ratios are > 0 there."""
    half = round(LOG_RATIO_END / LOG_RATIO_WIDTH)
    # Intervals are centred on whole multiples of the width, so that a ratio of 1 lies in the middle of one.
    interval = (torch.where(mask, ratio, 1).double().log() / LOG_RATIO_WIDTH).round().clamp(-half, half)
    return _counted(interval.nan_to_num().long() + half, mask, 2 * half + 1)


def _counted(place: Tensor, mask: Bool[Tensor, "*shape"], size: int) -> Float64[Tensor, " size"]:
    counts = torch.zeros(size, dtype=torch.float64, device=mask.device)
    return counts.scatter_add_(0, place.flatten(), mask.flatten().double())


def ratio_quantile(counts: Float64[Tensor, " intervals"], quantile: float) -> float:
    """The ratio below or at which a share `quantile` of the tokens lies, to half a percent; NaN without tokens."""
    total = float(counts.sum())
    if total == 0:
        return math.nan
    index = int(torch.searchsorted(counts.cumsum(0), quantile * total))
    return math.exp((min(index, counts.numel() - 1) - counts.numel() // 2) * LOG_RATIO_WIDTH)


def effective_sample_fraction(num_tokens: float, ratio: float, ratio_square: float) -> float:
    """(sum rho)^2 / (n sum rho^2), in (0, 1]: the share of the tokens that weighted samples are worth (Kish).

    Args:
        num_tokens: n.
        ratio: sum of rho.
        ratio_square: sum of rho^2.
    """
    return ratio**2 / (num_tokens * ratio_square) if num_tokens and ratio_square else math.nan


def behavior_kl(num_tokens: float, ratio: float, log_ratio: float) -> float:
    """Mean of rho - 1 - log rho: KL(mu || pi) per token, nats, from tokens that mu sampled.

    Unbiased because E_mu[rho] = 1, and never negative (the k3 estimator of J. Schulman, "Approximating KL divergence").

    Args:
        num_tokens: n.
        ratio: sum of rho.
        log_ratio: sum of log rho.
    """
    return max((ratio - log_ratio) / num_tokens - 1, 0.0) if num_tokens else math.nan


def covariance(count: float, x: float, y: float, product: float) -> float:
    """mean(xy) - mean(x) mean(y), from the sums over `count` pairs; NaN without any."""
    return product / count - (x / count) * (y / count) if count else math.nan
