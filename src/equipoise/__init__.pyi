from .aggregation import UpdateSize, aggregate
from .balance import BoundGrid, BoundsSelection, Contribution, contribution, select_bounds
from .controllers import BalanceSignal, PolarityController, ReferenceSignal, ScheduleSignal, TrendSignal
from .objectives import ppo_clip
from .polarity import (
    BranchWeights,
    branch_only,
    entropy_polarity,
    expansion_threshold,
    predicted_entropy_change,
    reweight_by_polarity,
)
from .statistics import (
    linear_token_statistics,
    token_statistics,
    vocabulary_parallel_token_statistics,
)
from .types import ClipBounds, PolicyBatch, TokenLoss, TokenStatistics, WeightedMean

__version__: str

__all__ = [
    "BalanceSignal",
    "BoundGrid",
    "BoundsSelection",
    "BranchWeights",
    "ClipBounds",
    "Contribution",
    "PolarityController",
    "PolicyBatch",
    "ReferenceSignal",
    "ScheduleSignal",
    "TokenLoss",
    "TokenStatistics",
    "TrendSignal",
    "UpdateSize",
    "WeightedMean",
    "aggregate",
    "branch_only",
    "contribution",
    "entropy_polarity",
    "expansion_threshold",
    "linear_token_statistics",
    "ppo_clip",
    "predicted_entropy_change",
    "reweight_by_polarity",
    "select_bounds",
    "token_statistics",
    "vocabulary_parallel_token_statistics",
]
