"""BAPO's search for clip bounds, as a pure function of sums that add over tokens, micro-batches and ranks.

Source: "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive
Clipping", arXiv 2510.18927, Eq. 4-8 and Algorithm 1. Not Batch Adaptation or Boundary-Aware policy optimization.

The paper recomputes the share of positive contributions after every step of the bounds. The contribution of positive
tokens depends on the upper bound only and that of negative tokens on the lower only, so the whole path of the search
needs one sum per grid interval: a histogram. It is exact, it adds, and one all-reduce of it gives every rank the same
bounds.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from equipoise.errors import require
from equipoise.types import ClipBounds

Measure = Literal["gradient", "surrogate"]

TIE = 1e-9
"""A share this close below the target has reached it: the target is often an exact tie of float64 sums."""


MOST_POINTS = 10_000
"""Of a grid: every update sums into so many bins."""


@dataclass(frozen=True)
class BoundGrid:
    """The grid the bounds are searched on: absolute ratio bounds, each as (start, end), and the steps.

    Points are start + k * step for integer k, never an accumulated float (0.6 + 15 * 0.02 by addition misses 0.9).
    Defaults are the paper's values. low=(l, l) fixes the lower bound, high=(h, h) the upper.

    Raises:
        ValueError: unless 0 < low[0] <= low[1] <= 1 <= high[0] <= high[1] < inf and both steps are positive.
    """

    low: tuple[float, float] = (0.6, 0.9)
    high: tuple[float, float] = (1.2, 3.0)
    low_step: float = 0.02
    high_step: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.low[0] <= self.low[1] <= 1):
            raise ValueError(f"low must satisfy 0 < low[0] <= low[1] <= 1, got low={self.low}")
        if not (1 <= self.high[0] <= self.high[1] < math.inf):
            raise ValueError(f"high must satisfy 1 <= high[0] <= high[1] < inf, got high={self.high}")
        for name in ("low_step", "high_step"):
            value, (start, end) = getattr(self, name), getattr(self, name.removesuffix("_step"))
            require(name, value, "positive and finite", 0 < value < math.inf)
            holds = (end - start) / value <= MOST_POINTS
            require(name, value, f"so large that there are at most {MOST_POINTS:,} steps from {start} to {end}", holds)

    @classmethod
    def fixed(cls, bounds: ClipBounds) -> "BoundGrid":
        """The grid with one point: nothing to search, shares can still be measured. The upper bound must be finite."""
        low, high = float(bounds.low), float(bounds.high)
        return cls(low=(low, low), high=(high, high))

    @property
    def low_points(self) -> list[float]:
        """Lower bounds in search order, ascending."""
        return _points(*self.low, self.low_step)

    @property
    def high_points(self) -> list[float]:
        """Upper bounds in search order, ascending."""
        return _points(*self.high, self.high_step)

    def path_point(self, steps: int) -> tuple[int, int]:
        """(low_index, high_index) after `steps` steps of the search: the upper bound first, to its end."""
        high_index = min(steps, len(self.high_points) - 1)
        return steps - high_index, high_index

    def path_bounds(self, steps: int) -> ClipBounds:
        """The bounds after `steps` steps of the search."""
        low_index, high_index = self.path_point(steps)
        return ClipBounds(self.low_points[low_index], self.high_points[high_index])


def _points(start: float, end: float, step: float) -> list[float]:
    # 1e-9 of a step forgives the rounding of (end - start) / step, so that the end point belongs to the grid.
    # Rounded to 12 places: 0.6 + 15 * 0.02 is 0.8999999999999999.
    return [round(start + k * step, 12) for k in range(math.floor((end - start) / step + 1e-9) + 1)]


@functools.lru_cache(maxsize=64)
def _points_on(
    grid: BoundGrid, device: torch.device
) -> tuple[Float64[Tensor, " low_points"], Float64[Tensor, " high_points"]]:
    """The points of the grid on a device, copied there once: a copy waits for the device."""
    low, high = (torch.tensor(p, dtype=torch.float64, device=device) for p in (grid.low_points, grid.high_points))
    return low, high


@dataclass(frozen=True)
class Contribution:
    """Sums of w A rho and w A per interval of a grid, for positive and negative tokens. Adds; see `contribution`.

    Attributes:
        positive_ratio: sum of w A rho over tokens with A > 0 by interval of the upper grid: bin k holds
            h_(k-1) <= rho < h_k, the last bin rho >= the last point.
        positive: the same sums of w A.
        negative_ratio: sum of w |A| rho over tokens with A < 0 by interval of the lower grid: bin m holds
            l_(m-1) < rho <= l_m, the last bin rho > the last point.
        negative: the same sums of w |A|.
        grid: the grid of the bins.
        measure: which of the two measures `select_bounds` follows; both can be read from the sums.
    """

    positive_ratio: Float64[Tensor, " high_bins"]
    positive: Float64[Tensor, " high_bins"]
    negative_ratio: Float64[Tensor, " low_bins"]
    negative: Float64[Tensor, " low_bins"]
    grid: BoundGrid
    measure: Measure

    def __add__(self, other: "Contribution | int") -> "Contribution":
        """The contribution of both sets of tokens. 0 is neutral, so that `sum` works."""
        if other == 0:
            return self
        if not isinstance(other, Contribution):
            return NotImplemented
        if (self.grid, self.measure) != (other.grid, other.measure):
            raise ValueError(
                f"contributions add only on one grid and measure, got {self.grid}, {self.measure!r} "
                f"and {other.grid}, {other.measure!r}"
            )
        return self.with_vector(self.vector + other.vector)

    __radd__ = __add__

    @property
    def vector(self) -> Float64[Tensor, " size"]:
        """All sums in one vector: what an all-reduce has to carry."""
        return torch.cat([self.positive_ratio, self.positive, self.negative_ratio, self.negative])

    def with_vector(self, vector: Float64[Tensor, " size"]) -> "Contribution":
        """This contribution with the sums replaced, as they come back from an all-reduce."""
        high, low = self.positive.numel(), self.negative.numel()
        a, b, c, d = vector.split([high, high, low, low])
        return replace(self, positive_ratio=a, positive=b, negative_ratio=c, negative=d)

    def positive_sums(self, measure: Measure | None = None) -> Float64[Tensor, " high_points"]:
        """P(h) at every point of the upper grid.

        gradient: sum of w A rho over rho < h. surrogate: sum of w A min(rho, h).
        """
        below = self.positive_ratio.cumsum(0)[:-1]
        if (measure or self.measure) == "gradient":
            return below
        above = self.positive.sum() - self.positive.cumsum(0)[:-1]
        return below + above * _points_on(self.grid, below.device)[1]

    def negative_sums(self, measure: Measure | None = None) -> Float64[Tensor, " low_points"]:
        """N(l) at every point of the lower grid.

        gradient: sum of w |A| rho over rho > l. surrogate: sum of w |A| max(rho, l).
        """
        # Summed from the far end: a difference of two large sums would leave rounding where exactly 0 is meant.
        above = self.negative_ratio.flip(0).cumsum(0).flip(0)[1:]
        if (measure or self.measure) == "gradient":
            return above
        return above + self.negative.cumsum(0)[:-1] * _points_on(self.grid, above.device)[0]

    def share(self, low_index: int = 0, high_index: int = 0, measure: Measure | None = None) -> float:
        """rho = P / (P + N) at grid point (low_index, high_index); NaN when nothing contributes."""
        positive = float(self.positive_sums(measure)[high_index])
        negative = float(self.negative_sums(measure)[low_index])
        return positive / (positive + negative) if positive + negative > 0 else math.nan


@torch.no_grad()
def contribution(
    ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    action_mask: Bool[Tensor, "*shape"],
    grid: BoundGrid,
    *,
    measure: Measure = "gradient",
    token_weight: Float[Tensor, "*shape"] | None = None,
    checked: bool = True,
) -> Contribution:
    """What each token adds to the positive and the negative side of an update, summed by interval of the grid.

    Source: arXiv 2510.18927, Eq. 7-8. "gradient" counts w rho |A| of the tokens whose gradient survives the clip
    (Eq. 5, 7 and the paper's text; the share rises with both bounds). "surrogate" counts the clipped objective
    (Eq. 8 as printed; raising the lower bound then lowers the share).

    Args:
        ratio: rho = pi / mu per token, detached here; > 0 inside the mask.
        advantage: A per token.
        action_mask: tokens that carry loss; whatever lies outside is ignored, NaN included.
        grid: the grid the bounds will be searched on.
        measure: the measure `select_bounds` will follow.
        token_weight: w per token: pi_rollout(y_t) for the weighting of Eq. 8, None for 1.
        checked: look at the values, which waits for the device. Without, what is not finite ends up in the sums.

    Returns:
        Contribution in float64; add those of micro-batches, and all-reduce `.vector` over ranks.

    Raises:
        ValueError: an unknown measure, or NaN, infinite or negative values inside the mask (`checked`).
    """
    require("measure", measure, "'gradient' or 'surrogate'", measure in get_args(Measure))
    weighted = advantage if token_weight is None else advantage.double() * token_weight
    weighted = torch.where(action_mask, weighted, 0).flatten()
    ratio = torch.where(action_mask, ratio, 1).flatten()
    if checked:
        _check_values(weighted, ratio, None if token_weight is None else token_weight[action_mask])
    low, high = _points_on(grid, ratio.device)
    positive, negative = weighted > 0, weighted < 0
    up = _binned(ratio, weighted, positive & (ratio >= high[0]), positive & (ratio < high[0]), high, untouched_bin=0)
    down = _binned(
        ratio, -weighted, negative & (ratio <= low[-1]), negative & (ratio > low[-1]), low, untouched_bin=low.numel()
    )
    return Contribution(*up, *down, grid=grid, measure=measure)


def _check_values(weighted: Tensor, ratio: Tensor, token_weight: Tensor | None) -> None:
    if not ratio.numel():
        return
    least = [ratio.min()] + ([token_weight.min()] if token_weight is not None and token_weight.numel() else [])
    extremes = torch.stack([*weighted.aminmax(), ratio.max(), *least])  # NaN passes through all of them
    if not bool(extremes.isfinite().all()) or bool((torch.stack(least) < 0).any()):
        raise ValueError(
            "ratio, advantage and token_weight must be finite on every action token, ratio and token_weight not "
            "negative, got a value that is not"
        )


def _binned(
    ratio: Tensor, weighted: Tensor, touched: Tensor, untouched: Tensor, points: Tensor, *, untouched_bin: int
) -> tuple[Tensor, Tensor]:
    """Sums of w|A| rho and w|A| by interval of one side; tokens that no bound can touch are summed apart."""
    # Upper intervals hold h_(k-1) <= rho < h_k, lower ones l_(m-1) < rho <= l_m.
    bins = torch.bucketize(ratio.double(), points, right=untouched_bin == 0)
    touched_weight = torch.where(touched, weighted, 0).double()
    size = points.numel() + 1
    # Not bincount, nor the touched tokens alone: their number would have to be waited for.
    of_ratio, of_weight = (
        torch.zeros(size, dtype=torch.float64, device=ratio.device).scatter_add_(0, bins, values)
        for values in (touched_weight * ratio.double(), touched_weight)
    )
    rest = torch.where(untouched, weighted, 0).double()
    of_ratio[untouched_bin] += torch.dot(rest, ratio.double())
    of_weight[untouched_bin] += rest.sum()
    return of_ratio, of_weight


@dataclass(frozen=True)
class BoundsSelection:
    """The bounds of one update and how they were found.

    Attributes:
        bounds: absolute clip bounds.
        share_before: P / (P + N) at the start of the path; NaN when nothing contributes.
        share_after: the same at the selected bounds.
        steps: position on the path: 0 is the start.
        exhausted: the path ended before the target was reached.
        inactive: no bound on the path changes anything (all ratios 1, or no tokens), so the start was kept.
    """

    bounds: ClipBounds
    share_before: float
    share_after: float
    steps: int
    exhausted: bool
    inactive: bool


@dataclass(frozen=True)
class BoundsSearch:
    """A finished search whose result is still on its device, so that nothing has to wait for it.

    Attributes:
        grid: that was searched.
        vector: what `read` needs: steps, share before and after, exhausted, inactive.
        bounds: the bounds found, as tensors without dimensions.
    """

    grid: BoundGrid
    vector: Float64[Tensor, "5"]
    bounds: ClipBounds

    def read(self, vector: Float64[Tensor, "5"] | None = None) -> BoundsSelection:
        """The result as plain numbers.

        Args:
            vector: `self.vector`, where it has been brought to the host with other things; None waits for the device.
        """
        steps, before, after, exhausted, inactive = (self.vector if vector is None else vector).tolist()
        return BoundsSelection(
            self.grid.path_bounds(int(steps)), before, after, int(steps), exhausted=exhausted > 0, inactive=inactive > 0
        )


def select_bounds(contribution: Contribution, grid: BoundGrid, *, target_share: float = 0.4) -> BoundsSelection:
    """The first bounds on BAPO's path whose share of positive contributions reaches the target (Algorithm 1).

    The path raises the upper bound to its end, then the lower. Exact in one pass over the sums; no memory between
    updates. All bounds equal (every ratio 1): the start, reported as inactive. Nothing reaches the target: the end of
    the path, reported as exhausted.

    Args:
        contribution: of the whole update: summed over micro-batches and ranks.
        grid: the grid the contribution was binned on.
        target_share: rho_0 in (0, 1).

    Returns:
        BoundsSelection.

    Raises:
        ValueError: target_share outside (0, 1), or a contribution of another grid.
    """
    return search_bounds(contribution, grid, target_share=target_share).read()


def search_bounds(contribution: Contribution, grid: BoundGrid, *, target_share: float = 0.4) -> BoundsSearch:
    """`select_bounds`, with the result left on the device of the contribution.

    Args:
        contribution: of the whole update.
        grid: it was binned on.
        target_share: rho_0 in (0, 1).

    Raises:
        ValueError: as `select_bounds`.
    """
    require("target_share", target_share, "in (0, 1)", 0 < target_share < 1)
    if contribution.grid != grid:
        raise ValueError(f"contribution was binned on {contribution.grid}, got grid {grid}")
    positive, negative = _along_path(contribution.positive_sums(), contribution.negative_sums())
    inactive = (positive == positive[0]).all() & (negative == negative[0]).all()
    total = positive + negative
    share = torch.where(total > 0, positive / total, torch.nan)
    reached = share >= target_share - TIE
    # Without any negative token the start is kept, even where every positive one is clipped there (share 0/0).
    keep_start = inactive | ~contribution.negative.any()
    exhausted = ~keep_start & ~reached.any()
    first = reached.to(torch.uint8).argmax()
    steps = torch.where(keep_start, 0, torch.where(exhausted, share.numel() - 1, first)).view(1)
    vector = torch.cat([steps, share[:1], share.gather(0, steps), exhausted.view(1), inactive.view(1)])
    low, high = _points_on(grid, share.device)
    high, low = _along_path(high, low)
    return BoundsSearch(grid, vector, ClipBounds(low.gather(0, steps)[0], high.gather(0, steps)[0]))


def _along_path(of_high: Tensor, of_low: Tensor) -> tuple[Float64[Tensor, " path"], Float64[Tensor, " path"]]:
    """Values by upper and by lower point, along the path: the lower bound stays while the upper rises, then moves."""
    high = torch.cat([of_high, of_high[-1:].expand(of_low.numel() - 1)])
    low = torch.cat([of_low[:1].expand(of_high.numel()), of_low[1:]])
    return high, low
