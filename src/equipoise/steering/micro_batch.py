"""The tokens of one micro-batch, and what they add to the sums of an update. Nothing here waits for a device."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from equipoise.balance import BoundGrid, Contribution, Measure, contribution
from equipoise.clipping import clipped_high, clipped_low, clipped_surrogate, unclipped
from equipoise.polarity import predicted_entropy_change
from equipoise.ratios import importance_ratio, sequence_importance_ratio
from equipoise.steering.staleness import ratio_counts, staleness_counts
from equipoise.types import ClipBounds, TokenStatistics

OF_POLICY = ("tokens", "nonfinite", "entropy", "ratio", "ratio_square", "log_ratio", "ratio_tail", "moved", "staleness")
OF_LOSS = (
    "loss_tokens",
    "expanding_flow",
    "contracting_flow",
    "clipped_low",
    "clipped_high",
    "negative_tokens",
    "logprob",
    "unclipped_advantage",
    "logprob_advantage",
    "surrogate",
    "negative_surrogate",
    "expanding_positive_flow",
    "contracting_positive_flow",
    "nonzero_advantage",
)
OF_ENGINE = ("engine_tokens", "engine_ratio", "engine_ratio_square", "engine_ratio_tail", "engine_error")
SUMS = (*OF_POLICY, *OF_LOSS, *OF_ENGINE)
"""Sums over the tokens that the policy chose; over those of them that carry loss; over those of which is known what the
engine that sampled them took their probability for."""


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one micro-batch as steering needs them. Values outside `action_mask` are never read.

    Attributes:
        statistics: detached or not; only values are read.
        old_logprob: of the policy that the ratio is taken to, nats; None where that is the policy itself.
        ratio: rho = pi / mu per token, detached.
        advantage: A before reweighting.
        action_mask: tokens the policy chose.
        loss_mask: those of them that carry loss (a host may drop more).
        token_weight: w of the share of contributions; None for 1.
        staleness: updates since the policy that sampled the token.
        engine_log_ratio: log of the policy that sampled, as the trainer computes it, over the same as the engine did:
            what engines differ by, without staleness. NaN where it is not known; None where it is nowhere.
        row: identity of each sequence (`equipoise.entropy_control.draw.row_identity`); None where nothing is drawn.
    """

    statistics: TokenStatistics
    old_logprob: Float[Tensor, "batch time"] | None
    ratio: Float[Tensor, "batch time"]
    advantage: Float[Tensor, "batch time"]
    action_mask: Bool[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    token_weight: Float[Tensor, "batch time"] | None
    staleness: Int[Tensor, "batch time"]
    engine_log_ratio: Float[Tensor, "batch time"] | None = None
    row: Int64[Tensor, " batch"] | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        statistics: TokenStatistics,
        *,
        old_logprob: Float[Tensor, "batch time"] | None,
        advantage: Float[Tensor, "batch"] | Float[Tensor, "batch 1"] | Float[Tensor, "batch time"],
        action_mask: Bool[Tensor, "batch time"],
        loss_mask: Bool[Tensor, "batch time"],
        staleness: Int[Tensor, "batch time"],
        sequence_ratio: bool = False,
        rollout_weight: bool = False,
        correction: Float[Tensor, "batch time"] | Float[Tensor, "batch 1"] | None = None,
        dual_clip: float | None = None,
        engine_log_ratio: Float[Tensor, "batch time"] | None = None,
        row: Int64[Tensor, " batch"] | None = None,
    ) -> "MicroBatch":
        """From what a host has at hand.

        Args:
            statistics: of the current policy.
            old_logprob: as the attribute.
            advantage: one per sequence or per token.
            action_mask: as the attribute.
            loss_mask: as the attribute.
            staleness: as the attribute.
            sequence_ratio: one ratio per sequence (GSPO) in the place of one per token.
            rollout_weight: weigh the share by the rollout's probabilities (BAPO, Eq. 8).
            correction: weights that a host puts on the loss, for the mismatch of its sampler; they weigh the share too.
            dual_clip: largest ratio that a host lets a token with A < 0 have (dual clip, arXiv 1912.09729, Eq. 5): the
                loss is constant beyond it, and such tokens leave `loss_mask`. At least the upper clip bound.
            engine_log_ratio: as the attribute.
            row: as the attribute.
        """
        logprob = statistics.logprob.detach()
        behavior = logprob if old_logprob is None else old_logprob
        if sequence_ratio:
            ratio = sequence_importance_ratio(logprob, behavior, action_mask).expand_as(logprob)
        else:
            ratio = importance_ratio(logprob, behavior)
        advantage = (advantage.unsqueeze(1) if advantage.dim() == 1 else advantage).expand_as(logprob)
        weight = behavior.exp() if rollout_weight else None
        if correction is not None:
            correction = correction.expand_as(logprob)
            weight = correction if weight is None else weight * correction
        if dual_clip is not None:
            loss_mask = loss_mask & ~((advantage < 0) & (ratio > dual_clip))
        return cls(
            statistics, old_logprob, ratio, advantage, action_mask, loss_mask, weight, staleness, engine_log_ratio, row
        )

    @property
    def log_ratio(self) -> Float[Tensor, "batch time"]:
        """log pi - log pi_old per token, also where the ratio is one of sequences."""
        logprob = self.statistics.logprob.detach()
        return torch.zeros_like(logprob) if self.old_logprob is None else logprob - self.old_logprob

    def contribution(self, grid: BoundGrid, measure: Measure) -> Contribution:
        """What this micro-batch adds to the two sides of the update; values that are not finite count in `sums`."""
        return contribution(
            self.ratio, self.advantage, self.loss_mask, grid, measure=measure, token_weight=self.token_weight,
            checked=False,
        )  # fmt: skip

    def sums(self, bounds: ClipBounds) -> Float64[Tensor, " sums"]:
        """The named sums of `SUMS`, then the counts by staleness and by ratio (`equipoise.steering.staleness`)."""
        mask = self.action_mask
        ratio = torch.where(mask, self.ratio, 1).double()
        columns = (
            mask,
            self._nonfinite(),
            self.statistics.entropy.detach(),
            ratio,
            ratio.square(),
            ratio.log(),
            (ratio > 2) | (ratio < 0.5),
            ratio != 1,
            self.staleness,
        )
        counts = staleness_counts(self.staleness, mask), ratio_counts(self.ratio, mask)
        return torch.cat([_masked_sums(columns, mask), self._sums_of_loss(bounds), self._sums_of_engine(), *counts])

    def _nonfinite(self) -> Bool[Tensor, "batch time"]:
        finite = self.ratio.isfinite() & self.advantage.isfinite()
        return ~(finite if self.token_weight is None else finite & self.token_weight.isfinite())

    def _sums_of_loss(self, bounds: ClipBounds) -> Float64[Tensor, " of_loss"]:
        ratio, advantage = self.ratio, self.advantage  # clipped in the type in which the host clips
        logprob = self.statistics.logprob.detach().double()
        change = predicted_entropy_change(self.statistics, advantage, ratio, bounds).double()
        expanding, contracting = change.clamp(min=0), (-change).clamp(min=0)
        positive, negative = advantage > 0, advantage < 0
        unclipped_advantage = advantage.double() * unclipped(ratio, advantage, bounds)
        surrogate = clipped_surrogate(ratio, advantage, bounds).double().abs()
        columns = (
            self.loss_mask,
            expanding,
            contracting,
            clipped_low(ratio, advantage, bounds),
            clipped_high(ratio, advantage, bounds),
            negative,
            logprob,
            unclipped_advantage,
            logprob * unclipped_advantage,
            surrogate,
            torch.where(negative, surrogate, 0),
            torch.where(positive, expanding, 0),
            torch.where(positive, contracting, 0),
            advantage != 0,
        )
        return _masked_sums(columns, self.loss_mask)

    def _sums_of_engine(self) -> Float64[Tensor, " of_engine"]:
        if self.engine_log_ratio is None:
            return torch.zeros(len(OF_ENGINE), dtype=torch.float64, device=self.action_mask.device)
        known = self.action_mask & ~self.engine_log_ratio.isnan()
        ratio = self.engine_log_ratio.double().exp()
        tail = (ratio > 2) | (ratio < 0.5)
        return _masked_sums((known, ratio, ratio.square(), tail, self.engine_log_ratio.abs()), known)


def _masked_sums(columns: tuple[Tensor, ...], mask: Bool[Tensor, "batch time"]) -> Float64[Tensor, " columns"]:
    """The sum of each column over the mask, whatever stands outside it."""
    return torch.stack([torch.where(mask, column.double(), 0).sum() for column in columns])
