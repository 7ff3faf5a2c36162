"""The values that pass between the rooms of equipoise. Shapes are in the annotations; every logarithm is natural."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Float64
from torch import Tensor


class TokenStatistics(NamedTuple):
    """What one pass over the vocabulary tells about each sampled token. Natural logarithms, nats.

    `logprob` and `entropy` are differentiable; `tendency` and `correction` are detached. `tendency` is formed inside
    the pass, from the sums that leave the maximum out: formed from rounded outputs its sign would be wrong on
    near-certain tokens, which are most tokens of a trained model.

    Attributes:
        logprob: log pi(a|s) of the sampled token a, <= 0.
        entropy: H = -sum_k pi_k log pi_k, >= 0.
        tendency: T = C - pi_a (log pi_a + H) (arXiv 2605.11775, first-order entropy change): raising log pi_a by a
            small step eta changes H by eta T. Its expectation under pi is 0.
        correction: C = sum_k pi_k^2 (log pi_k + H) >= 0, the part that is the same for every a.
    """

    logprob: Float[Tensor, "*shape"]
    entropy: Float[Tensor, "*shape"]
    tendency: Float[Tensor, "*shape"]
    correction: Float[Tensor, "*shape"]


@dataclass(frozen=True)
class PolicyBatch:
    """The sampled tokens of a micro-batch, as an objective needs them.

    Attributes:
        advantage: A per token; group advantages are broadcast over their sequence.
        behavior_logprob: log mu(a|s) of the policy that sampled the token, in nats.
        action_mask: True on tokens the policy chose; environment tokens and padding are False. Values outside it are
            undefined (NaN is allowed there) and must not reach a result.
    """

    advantage: Float[Tensor, "batch time"]
    behavior_logprob: Float[Tensor, "batch time"]
    action_mask: Bool[Tensor, "batch time"]


@dataclass(frozen=True)
class ClipBounds:
    """Absolute bounds of the importance ratio, never epsilons: 0 < low <= 1 <= high.

    Numbers, or tensors without dimensions where a search has left them on its device; those are not looked at.

    Raises:
        ValueError: when the bounds break that order or are not finite (high may be infinite: no upper clip).
    """

    low: float | Float64[Tensor, ""]
    high: float | Float64[Tensor, ""]

    def __post_init__(self) -> None:
        if isinstance(self.low, Tensor) or isinstance(self.high, Tensor):
            return
        if not (0 < self.low <= 1 <= self.high):  # NaN fails every comparison
            raise ValueError(
                f"clip bounds must satisfy 0 < low <= 1 <= high, got ClipBounds(low={self.low}, high={self.high})"
            )


@dataclass(frozen=True)
class WeightedMean:
    """A metric as (sum, weight), so that means add correctly over micro-batches and ranks."""

    total: float
    weight: float

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        """The mean over both sets."""
        return WeightedMean(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> float:
        """total / weight; NaN when nothing was counted."""
        return self.total / self.weight if self.weight else math.nan


class TokenLoss(NamedTuple):
    """What an objective returns: a loss per token, to be minimised, and its metrics. It never aggregates.

    Attributes:
        loss: zero outside the action mask.
        metrics: name -> `WeightedMean` over the action tokens.
    """

    loss: Float[Tensor, "batch time"]
    metrics: dict[str, WeightedMean]
