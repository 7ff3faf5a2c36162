"""Sums over a vocabulary that leave the maximum out, and what follows from them.

For one row of tempered logits z with maximum m, let z' = z - m and let the sums run over all entries but one maximum:

    T0 = sum e^z'    S1 = sum z' e^z'    U0 = sum e^2z'    Q1 = sum z' e^2z'

With S0 = 1 + T0, Q0 = 1 + U0 and r = S1/S0 (equations derived in docs/mathematics.md):

    log Z = m + log1p(T0)          H = log1p(T0) - r          C = (Q1 - r Q0) / S0^2
    T(a) = C - p_a (z'_a - r)      T(argmax) = (r (T0 - U0) + Q1) / S0^2  <= 0

On near-certain tokens T0 is far below the rounding of 1. Left out of the maximum's shadow it keeps all its digits, and
with them the signs of T; the textbook sums lose them. Sums of two parts of a vocabulary merge, so tiles and shards of
any size give the same numbers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Mergeable sums of some part of the vocabulary, one value per row. The empty part has maximum -inf."""

    maximum: Float[Tensor, "*rows"]
    t0: Float[Tensor, "*rows"]
    s1: Float[Tensor, "*rows"]
    u0: Float[Tensor, "*rows"]
    q1: Float[Tensor, "*rows"]


def moments_of(logits: Float[Tensor, "*rows vocabulary"]) -> Moments:
    """The sums of one part of the vocabulary, in the type of `logits`. -inf entries count as absent; NaN propagates."""
    maximum, argmax = logits.max(dim=-1, keepdim=True)
    # An all -inf part has no maximum to subtract: -inf - -inf would be NaN where "absent" is meant.
    shifted = logits - maximum.masked_fill(maximum.isneginf(), 0.0)
    shifted.scatter_(-1, argmax, -torch.inf)
    weight = shifted.exp()
    shifted = shifted.masked_fill_(shifted.isneginf(), 0.0)  # 0 * -inf would be NaN
    weighted = shifted.mul_(weight)
    t0, s1 = weight.sum(-1), weighted.sum(-1)
    q1 = weighted.mul_(weight).sum(-1)
    u0 = weight.square_().sum(-1)
    return Moments(maximum.squeeze(-1), t0, s1, u0, q1)


def absent_part(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Moments:
    """The sums of no vocabulary at all: neutral in `merged`."""
    zero = torch.zeros(shape, dtype=dtype, device=device)
    return Moments(torch.full_like(zero, -torch.inf), zero, zero, zero, zero)


def merged(a: Moments, b: Moments) -> Moments:
    """The sums of the union of two disjoint parts of the vocabulary."""
    maximum = torch.maximum(a.maximum, b.maximum)
    a_wins = a.maximum >= b.maximum
    winner = Moments(*(torch.where(a_wins, x, y) for x, y in zip(a, b, strict=True)))
    loser = Moments(*(torch.where(a_wins, y, x) for x, y in zip(a, b, strict=True)))
    distance = loser.maximum - maximum
    absent = loser.maximum.isneginf()
    # The loser's own maximum (e^0 = 1 in its frame) is an ordinary entry of the union.
    scale = distance.exp()
    distance = distance.masked_fill(absent, 0.0)
    scale = scale.masked_fill(absent, 0.0)
    full0, full_square0 = 1 + loser.t0, 1 + loser.u0
    return Moments(
        maximum,
        winner.t0 + scale * full0,
        winner.s1 + scale * (loser.s1 + distance * full0),
        winner.u0 + scale.square() * full_square0,
        winner.q1 + scale.square() * (loser.q1 + distance * full_square0),
    )


class RowStatistics(NamedTuple):
    """Per row: log-prob, entropy, tendency and correction of the target, and log Z for a backward pass.

    log Z comes as the difference to the maximum, log S0: their sum would round away the digits of log p.
    """

    logprob: Float[Tensor, "*rows"]
    entropy: Float[Tensor, "*rows"]
    tendency: Float[Tensor, "*rows"]
    correction: Float[Tensor, "*rows"]
    log_s0: Float[Tensor, "*rows"]


def row_statistics(moments: Moments, target_logit: Float[Tensor, "*rows"]) -> RowStatistics:
    """Statistics of the target whose tempered logit is given, from the sums over the whole vocabulary."""
    maximum, t0, s1, u0, q1 = moments
    undefined = maximum - maximum  # 0, or NaN where a logit is NaN or +inf: never a plausible number from those
    shifted = target_logit - maximum
    s0, log_s0 = 1 + t0, t0.log1p()
    r = s1 / s0
    correction = (q1 - r * (1 + u0)) / s0.square()
    probability = shifted.exp() / s0
    surprise = (shifted - r).masked_fill(shifted.isneginf(), 0.0)  # a token of probability 0 contributes nothing
    of_maximum = (r * (t0 - u0) + q1) / s0.square()
    tendency = torch.where(shifted == 0, of_maximum, correction - probability * surprise)
    # C >= 0 by definition; rounding of a nearly uniform row may leave -4e-17.
    correction = correction.clamp(min=0) + undefined
    return RowStatistics(shifted - log_s0, log_s0 - r + undefined, tendency, correction, log_s0)
