"""equipoise: entropy control for reinforcement fine-tuning of language models, token by token.

This package is the mathematics: pure functions and one small controller, on torch alone. The trainer lives in
`equipoise.trl`, which is not imported here.
"""

from equipoise.aggregation import UpdateSize, aggregate
from equipoise.balance import BoundGrid, BoundsSelection, Contribution, contribution, select_bounds
from equipoise.controllers import BalanceSignal, PolarityController, ReferenceSignal, ScheduleSignal, TrendSignal
from equipoise.objectives import ppo_clip
from equipoise.polarity import (
    BranchWeights,
    branch_only,
    entropy_polarity,
    expansion_threshold,
    predicted_entropy_change,
    reweight_by_polarity,
)
from equipoise.statistics import (
    linear_token_statistics,
    token_statistics,
    vocabulary_parallel_token_statistics,
)
from equipoise.types import ClipBounds, PolicyBatch, TokenLoss, TokenStatistics, WeightedMean

__version__ = "0.1.0"

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
