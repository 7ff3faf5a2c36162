"""What one optimizer update measured, over all its micro-batches and ranks."""

import math
from dataclasses import dataclass
from typing import get_args

from jaxtyping import Float64
from torch import Tensor

from equipoise.balance import BoundsSelection, Contribution, Measure
from equipoise.polarity import balance_authority
from equipoise.steering.staleness import (
    STALENESS_BUCKETS,
    behavior_kl,
    covariance,
    effective_sample_fraction,
    ratio_quantile,
)

RATIO_QUANTILES = {"p1": 0.01, "p10": 0.1, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class UpdateMeasures:
    """Globally reduced measures of one finished update, on the host.

    Attributes:
        sums: by the names of `SUMS`.
        by_staleness: tokens in each of `STALENESS_BUCKETS`.
        by_ratio: tokens in each interval of the ratio.
        contribution: of the whole update; None when the loss has no bounds.
        selection: the bounds in force; None likewise.
    """

    sums: dict[str, float]
    by_staleness: Float64[Tensor, " buckets"]
    by_ratio: Float64[Tensor, " intervals"]
    contribution: Contribution | None
    selection: BoundsSelection | None

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
        return values | self._off_policy() | self._engine() | self._imbalance() | self._bounds()

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

    def _engine(self) -> dict[str, float]:
        """What the sampling engine and the trainer differ by, before any truncation; nothing where it is unknown."""
        sums, count = self.sums, self.sums["engine_tokens"]
        if not count:
            return {}
        mean = sums["engine_ratio"] / count
        return {
            "engine_ratio_mean": mean,
            "engine_ratio_std": max(sums["engine_ratio_square"] / count - mean**2, 0.0) ** 0.5,
            "engine_ratio_tail_fraction": sums["engine_ratio_tail"] / count,
            "engine_logprob_error": sums["engine_error"] / count,
            "engine_known_fraction": count / self.num_tokens,
        }

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
        if self.selection is None:
            return {}
        values = {
            "bounds_low": float(self.selection.bounds.low),
            "bounds_high": float(self.selection.bounds.high),
            "bounds_exhausted": float(self.selection.exhausted),
            "bounds_inactive": float(self.selection.inactive),
            "clip_fraction_low": self.mean("clipped_low"),
            "clip_fraction_high": self.mean("clipped_high"),
        }
        return values | self._shares(self.selection)

    def _shares(self, selection: BoundsSelection) -> dict[str, float]:
        if self.contribution is None:
            return {}
        shares = {}
        point = self.contribution.grid.path_point(selection.steps)
        measures: tuple[Measure, ...] = get_args(Measure)
        for measure in measures:
            shares[f"share_{measure}_before"] = self.contribution.share(measure=measure)
            shares[f"share_{measure}_after"] = self.contribution.share(*point, measure=measure)
        return shares
