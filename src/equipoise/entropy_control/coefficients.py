"""Methods that set the gradient of a token: the factor g of its part g * grad log pi(a|s) of the ascent direction.

Of the plain clipped surrogate it is m rho A, m = 0 where the clip has taken the gradient away. All values are detached.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.clipping import unclipped
from equipoise.types import ClipBounds

UNMOVED = 32
"""4e-6 nats in float32. Forward passes of one policy on one text, padded differently, differ by a tenth of that."""


def kl_cov_coefficient(
    log_ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    bounds: ClipBounds,
    *,
    coefficient: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """g = m rho A - coefficient sign(log pi - log pi_old): the gradient of the surrogate with KL-Cov's penalty.

    The penalty, coefficient |log pi - log pi_old| (arXiv 2505.22617), pulls a selected token back to where it was. The
    paper adds it to the surrogate without a clip; here the surrogate keeps the clip of the run. A token that has not
    moved is not pulled: a log ratio of rounding alone, at most `UNMOVED` times the resolution of its type, counts as 0.
    Its sign would depend on which tokens share a micro-batch.
    """
    ratio = log_ratio.exp()
    moved = log_ratio.abs() > UNMOVED * torch.finfo(log_ratio.dtype).eps
    pull = torch.where(moved, log_ratio.sign(), 0)
    return unclipped(ratio, advantage, bounds) * ratio * advantage - coefficient * pull


def ce_gppo_coefficient(
    log_ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    bounds: ClipBounds,
    *,
    beta_low: float = 0.5,
    beta_high: float = 1.0,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """g of the tokens that the clip takes out, and which those are: CE-GPPO (arXiv 2509.20712).

    A < 0, rho < low: g = beta_low low A (their beta1).  A > 0, rho > high: g = beta_high high A (their beta2). In the
    paper's form the loss of such a token is -beta bound (rho / sg(rho)) A.

    Returns:
        g, zero elsewhere, and the mask of the tokens it applies to.
    """
    ratio = log_ratio.exp()
    low, high = (advantage < 0) & (ratio < bounds.low), (advantage > 0) & (ratio > bounds.high)
    scale = low.to(advantage.dtype) * (beta_low * bounds.low)
    # An infinite upper bound clips nothing, and 0 * inf would be NaN.
    scale = scale.masked_fill(high, beta_high * bounds.high)
    return scale * advantage, low | high
