"""What one optimizer update adds up to, over all its micro-batches and ranks: one vector, reduced once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from equipoise.balance import BoundGrid, BoundsSelection, Contribution, Measure, contribution
from equipoise.clipping import clipped_high, clipped_low, clipped_surrogate, unclipped
from equipoise.diagnostics.off_policy import (
    STALENESS_BUCKETS,
    behavior_kl,
    covariance,
    effective_sample_fraction,
    ratio_counts,
    ratio_quantile,
    staleness_counts,
)
from equipoise.polarity import BranchWeights, balance_authority, predicted_entropy_change
from equipoise.types import ClipBounds, TokenStatistics

OF_POLICY = ("tokens", "entropy", "ratio", "ratio_square", "log_ratio", "ratio_tail", "moved", "staleness")
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
SUMS = (*OF_POLICY, *OF_LOSS)
"""Sums over the tokens that the policy chose, and over those of them that carry loss."""

RATIO_QUANTILES = {"p1": 0.01, "p10": 0.1, "p90": 0.9, "p99": 0.99}
UNCLIPPED = ClipBounds(1e-12, float("inf"))


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one micro-batch as the measures need them.

    Attributes:
        statistics: detached or not; only values are read.
        ratio: rho = pi / mu per token, detached.
        advantage: A before reweighting.
        action_mask: tokens the policy chose.
        loss_mask: those of them that carry loss (a host may drop more).
        token_weight: w of the share of contributions; None for 1.
        staleness: updates since the policy that sampled the token.
    """

    statistics: TokenStatistics
    ratio: Float[Tensor, "batch time"]
    advantage: Float[Tensor, "batch time"]
    action_mask: Bool[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    token_weight: Float[Tensor, "batch time"] | None
    staleness: Int[Tensor, "batch time"]

    def contribution(self, grid: BoundGrid, measure: Measure) -> Contribution:
        """What this micro-batch adds to the two sides of the update."""
        return contribution(
            self.ratio, self.advantage, self.loss_mask, grid, measure=measure, token_weight=self.token_weight
        )

    def sums(self, bounds: ClipBounds) -> Float64[Tensor, " sums"]:
        """The named sums of `SUMS`, then the counts by staleness and by ratio (`equipoise.diagnostics.off_policy`)."""
        mask = self.action_mask
        ratio, staleness = self.ratio[mask].double(), self.staleness[mask]
        of_policy = torch.stack(
            [
                mask.sum().double(),
                self.statistics.entropy.detach()[mask].double().sum(),
                ratio.sum(),
                ratio.square().sum(),
                ratio.log().sum(),
                ((ratio > 2) | (ratio < 0.5)).sum().double(),
                (ratio != 1).sum().double(),
                staleness.double().sum(),
            ]
        )
        return torch.cat([of_policy, self._sums_of_loss(bounds), staleness_counts(staleness), ratio_counts(ratio)])

    def _sums_of_loss(self, bounds: ClipBounds) -> Float64[Tensor, " of_loss"]:
        mask = self.loss_mask
        ratio, advantage = self.ratio[mask], self.advantage[mask]  # clipped in the type in which the host clips
        logprob = self.statistics.logprob.detach()[mask].double()
        change = predicted_entropy_change(self.statistics, self.advantage, self.ratio, bounds)[mask].double()
        positive_change = change[advantage > 0]
        unclipped_advantage = advantage.double() * unclipped(ratio, advantage, bounds)
        surrogate = clipped_surrogate(ratio, advantage, bounds).double().abs()
        return torch.stack(
            [
                mask.sum().double(),
                change.clamp(min=0).sum(),
                (-change).clamp(min=0).sum(),
                clipped_low(ratio, advantage, bounds).sum().double(),
                clipped_high(ratio, advantage, bounds).sum().double(),
                (advantage < 0).sum().double(),
                logprob.sum(),
                unclipped_advantage.sum(),
                (logprob * unclipped_advantage).sum(),
                surrogate.sum(),
                surrogate[advantage < 0].sum(),
                positive_change.clamp(min=0).sum(),
                (-positive_change).clamp(min=0).sum(),
                (advantage != 0).sum().double(),
            ]
        )


class Update:
    """One optimizer update in progress: its bounds and branch weights, and the sums measured so far.

    Args:
        weights: branch weights, constant within the update.
        grid: the grid the contributions are binned on; None when the loss has no bounds to measure shares at.
        measure: the measure that steers the search.
        selection: bounds that are known before the first micro-batch; None until they are found.
        searches_each: every micro-batch gets bounds of its own.
    """

    def __init__(
        self,
        weights: BranchWeights | None,
        grid: BoundGrid | None,
        measure: Measure,
        selection: BoundsSelection | None,
        *,
        searches_each: bool = False,
    ):
        self.weights, self.grid, self.selection, self.searches_each = weights, grid, selection, searches_each
        self.marks: list[Tensor] = []  # of entropy_control, for the micro-batches that are still to come
        self.measure: Measure = measure
        self._used: list[BoundsSelection] = []
        self._sums: Tensor | None = None
        self._contribution: Contribution | None = None

    @property
    def bounds(self) -> ClipBounds:
        """The clip bounds in force."""
        return UNCLIPPED if self.selection is None else self.selection.bounds

    def add(self, micro_batch: MicroBatch, part: Contribution | None) -> None:
        """Measure one micro-batch; `part` is its contribution on the grid, if there is one."""
        sums = micro_batch.sums(self.bounds)
        self._sums = sums if self._sums is None else self._sums + sums
        if self.selection is not None:
            self._used.append(self.selection)
        if part is not None:
            self._contribution = part if self._contribution is None else self._contribution + part

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> "UpdateMeasures":
        """The measures of the whole update; `all_reduce` is called once, with one float64 vector."""
        assert self._sums is not None, "an update without micro-batches"
        parts = [self._sums] if self._contribution is None else [self._sums, self._contribution.vector]
        total = all_reduce(torch.cat(parts)).cpu()
        named, counts, rest = total.tensor_split([len(SUMS), self._sums.numel()])
        by_staleness, by_ratio = counts.tensor_split([len(STALENESS_BUCKETS)])
        whole = None if self._contribution is None else self._contribution.with_vector(rest)
        sums: dict[str, float] = dict(zip(SUMS, named.tolist(), strict=True))
        return UpdateMeasures(sums, by_staleness, by_ratio, whole, tuple(self._used))


@dataclass(frozen=True)
class UpdateMeasures:
    """Globally reduced measures of one finished update; `selections` are the bounds of its micro-batches."""

    sums: dict[str, float]
    by_staleness: Float64[Tensor, " buckets"]
    by_ratio: Float64[Tensor, " intervals"]
    contribution: Contribution | None
    selections: tuple[BoundsSelection, ...]

    @property
    def num_tokens(self) -> float:
        """Action tokens of the update; 0 when every completion was truncated and masked."""
        return self.sums["tokens"]

    def mean(self, name: str) -> float:
        """A sum per action token; NaN for an update without any."""
        return self.sums[name] / self.num_tokens if self.num_tokens else math.nan

    @property
    def entropy(self) -> float:
        """Token mean, nats."""
        return self.mean("entropy")

    @property
    def expanding_flow(self) -> float:
        """P: positive predicted entropy changes, per action token and unit step, before reweighting."""
        return self.mean("expanding_flow")

    @property
    def contracting_flow(self) -> float:
        """N: magnitude of the negative ones."""
        return self.mean("contracting_flow")

    @property
    def degenerate(self) -> bool:
        """Every ratio is exactly 1 although the data is stale: behaviour log-probs were lost on the way."""
        return self.sums["staleness"] > 0 and self.sums["moved"] == 0

    def metrics(self) -> dict[str, float]:
        """The scalars of an update, by name."""
        values = {
            "entropy": self.entropy,
            "expanding_flow": self.expanding_flow,
            "contracting_flow": self.contracting_flow,
            "balance_authority": balance_authority(self.expanding_flow, self.contracting_flow),
        }
        return values | self._off_policy() | self._imbalance() | self._bounds()

    def _off_policy(self) -> dict[str, float]:
        sums, num_tokens, ratio_mean = self.sums, self.num_tokens, self.mean("ratio")
        values = {
            "ratio_mean": ratio_mean,
            "ratio_std": max(self.mean("ratio_square") - ratio_mean**2, 0.0) ** 0.5,
            "ratio_tail_fraction": self.mean("ratio_tail"),
            "effective_sample_fraction": effective_sample_fraction(num_tokens, sums["ratio"], sums["ratio_square"]),
            "behavior_kl": behavior_kl(num_tokens, sums["ratio"], sums["log_ratio"]),
            "staleness": self.mean("staleness"),
        }
        values |= {f"ratio_{name}": ratio_quantile(self.by_ratio, q) for name, q in RATIO_QUANTILES.items()}
        shares = (self.by_staleness / num_tokens).tolist() if num_tokens else [math.nan] * len(STALENESS_BUCKETS)
        return values | dict(zip((f"staleness_{name}_fraction" for name in STALENESS_BUCKETS), shares, strict=True))

    def _imbalance(self) -> dict[str, float]:
        sums = self.sums
        count = sums["loss_tokens"]
        return {
            "entropy_clip_covariance": covariance(
                count, sums["logprob"], sums["unclipped_advantage"], sums["logprob_advantage"]
            ),
            "negative_token_fraction": sums["negative_tokens"] / count if count else math.nan,
            "negative_loss_fraction": sums["negative_surrogate"] / sums["surrogate"] if sums["surrogate"] else math.nan,
        }

    def _bounds(self) -> dict[str, float]:
        if not self.selections:
            return {}
        values = {
            "bounds_low": fmean(s.bounds.low for s in self.selections),
            "bounds_high": fmean(s.bounds.high for s in self.selections),
            "bounds_exhausted": fmean(s.exhausted for s in self.selections),
            "bounds_inactive": fmean(s.inactive for s in self.selections),
            "clip_fraction_low": self.mean("clipped_low"),
            "clip_fraction_high": self.mean("clipped_high"),
        }
        return values | self._shares()

    def _shares(self) -> dict[str, float]:
        if self.contribution is None:
            return {}
        shares = {}
        measures: tuple[Measure, ...] = get_args(Measure)
        steps = {selection.steps for selection in self.selections}
        for measure in measures:
            shares[f"share_{measure}_before"] = self.contribution.share(measure=measure)
            if len(steps) == 1:  # else there is no one place on the path at which the update has a share
                point = self.contribution.grid.path_point(next(iter(steps)))
                shares[f"share_{measure}_after"] = self.contribution.share(*point, measure=measure)
        return shares
