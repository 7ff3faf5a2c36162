"""Entropy polarity: which updates expand the entropy and which contract it, and the reweighting built on it.

Source: "Entropy Polarity in Reinforcement Fine-Tuning: Direction, Asymmetry, and Control", arXiv 2605.11775. The
first-order formulas are derived (docs/mathematics.md); the form of the reweighting is our reading of the paper.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.clipping import unclipped
from equipoise.errors import require
from equipoise.types import ClipBounds, TokenStatistics

Values = TypeVar("Values", Tensor, np.ndarray)

Branch = Literal["positive", "negative"]
"""Of polarity: tokens whose update expands the entropy, and tokens whose update contracts it."""


def entropy_polarity(statistics: TokenStatistics, advantage: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """P = A T (arXiv 2605.11775): > 0 where a small step on A log pi_a expands the entropy, < 0 where it contracts.

    Detached. Unit: nats per unit step size. Undefined where the advantage or the statistics are.
    """
    return advantage.detach() * statistics.tendency


def predicted_entropy_change(
    statistics: TokenStatistics,
    advantage: Float[Tensor, "*shape"],
    ratio: Float[Tensor, "*shape"],
    bounds: ClipBounds,
) -> Float[Tensor, "*shape"]:
    """m rho A T: first-order entropy change of the clipped surrogate per unit step on the tempered logits.

    m = 0 where the clip leaves no gradient (`equipoise.clipping.unclipped`), else 1. Detached; nats per unit step. It
    is the tabular change at the token's own state: parameters shared between states are not in it.
    """
    ratio = ratio.detach()
    return surviving_change(entropy_polarity(statistics, advantage), ratio, unclipped(ratio, advantage, bounds))


def surviving_change(polarity: Values, ratio: Values, survives: Any) -> Values:
    """m rho P, of tensors or of arrays: `predicted_entropy_change` where polarity and clip decisions were recorded.

    Args:
        polarity: P = A T, nats per unit step.
        ratio: rho, shaped like it.
        survives: m, booleans shaped like it: the token carries loss, and no clip has taken its gradient away.
    """
    return survives * ratio * polarity


def balance_authority(expanding_flow: float, contracting_flow: float, acted_on: float | None = None) -> float:
    """b* = (N - P) / (P' + N'): the strength * phase at which the predicted net flow is 0; 0 where nothing flows.

    Args:
        expanding_flow: P, sum of the positive predicted entropy changes, >= 0.
        contracting_flow: N, sum of the magnitudes of the negative ones, >= 0.
        acted_on: P' + N', the part of both that is reweighted; None: all of it, where b* is in [-1, 1].
    """
    total = expanding_flow + contracting_flow if acted_on is None else acted_on
    return (contracting_flow - expanding_flow) / total if total > 0 else 0.0


def expansion_threshold(statistics: TokenStatistics) -> Float[Tensor, "*shape"]:
    """p*(s) = exp(W0(C e^H) - H): raising a token expands the entropy (T > 0) iff pi_a < p*. In [e^-H, 1]. Detached.

    W0 is the Lambert W function; derived from T = C - pi_a (log pi_a + H) (docs/mathematics.md).
    """
    entropy = statistics.entropy.detach().double()
    correction = statistics.correction.double()
    threshold = (_lambert_w0(correction * entropy.exp()) - entropy).exp()
    return threshold.to(statistics.correction.dtype)


def _lambert_w0(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """w >= 0 with w e^w = x, for x >= 0: Halley's iteration, which converges cubically from log1p(x)."""
    w = x.log1p()
    for _ in range(8):
        exp_w = w.exp()
        residual = w * exp_w - x
        w = w - residual / (exp_w * (w + 1) - (w + 2) * residual / (2 * w + 2))
    return w


@dataclass(frozen=True)
class BranchWeights:
    """One weight on the advantage for each quadrant: expanding or contracting token x sign of its advantage.

    The plain form of PAPO has two equal pairs (`BranchWeights.of_branches`). Weights are > 0, so that no advantage
    changes its sign and no clip decision changes.

    Raises:
        ValueError: a weight that is not positive and finite.
    """

    expanding_positive: float = 1.0
    expanding_negative: float = 1.0
    contracting_positive: float = 1.0
    contracting_negative: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(f"branch weight {name}", value, "positive and finite", 0 < value < math.inf)

    @classmethod
    def of_branches(cls, expanding: float, contracting: float) -> "BranchWeights":
        """w+ on both expanding quadrants, w- on both contracting ones."""
        return cls(expanding, expanding, contracting, contracting)


def reweight_by_polarity(
    advantage: Float[Tensor, "*shape"],
    polarity: Float[Tensor, "*shape"],
    weights: BranchWeights,
    *,
    neutral_zone: float = 0.0,
    tendency_scale: float | None = None,
) -> Float[Tensor, "*shape"]:
    """A' = w A, w chosen by the sign of the polarity and of A; tokens with |P| <= neutral_zone keep A. Detached.

    Our reading of PAPO's advantage reweighting (arXiv 2605.11775, abstract). With w± = 1 ± k this is
    A' = A + k |A| sign(T), a bonus on expanding tokens scaled by |A|. With a `tendency_scale` T0 the sign becomes
    tanh(T / T0): the weight is 1 + (w - 1) tanh(|T| / T0), so that tokens that hardly move the entropy keep theirs.

    Args:
        advantage: A.
        polarity: P = A T.
        weights: one per quadrant.
        neutral_zone: nats per unit step, >= 0.
        tendency_scale: T0 > 0 in nats; None for hard weights.
    """
    advantage = advantage.detach()
    # masked_fill keeps the type of the advantage; torch.where of two numbers would round the weights to float32.
    positive = advantage > 0
    expanding = torch.full_like(advantage, weights.expanding_negative).masked_fill(positive, weights.expanding_positive)
    contracting = torch.full_like(advantage, weights.contracting_negative).masked_fill(
        positive, weights.contracting_positive
    )
    weight = torch.where(polarity > neutral_zone, expanding, torch.where(polarity < -neutral_zone, contracting, 1.0))
    if tendency_scale is not None:
        tendency = torch.where(advantage == 0, 0.0, polarity / advantage)
        weight = 1 + (weight - 1) * (tendency.abs() / tendency_scale).tanh()
    return advantage * weight


def branch_only(
    advantage: Float[Tensor, "*shape"],
    polarity: Float[Tensor, "*shape"],
    branch: Branch,
    *,
    neutral_zone: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """A on one branch of polarity and 0 elsewhere: "positive" keeps P > neutral_zone, "negative" P < -neutral_zone.

    The ablations that show what each branch does alone (arXiv 2605.11775, abstract: the branches play complementary
    roles). Neutral tokens belong to neither. The denominator of the loss stays that of all action tokens, so the two
    gradients add up to that of the base method, up to neutral tokens. Detached.
    """
    kept = polarity > neutral_zone if branch == "positive" else polarity < -neutral_zone
    return advantage.detach().masked_fill(~kept, 0.0)
