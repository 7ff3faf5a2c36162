"""Differences between methods that started from the same seeds: the spread between seeds drops out."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_1samp

from equipoise.errors import require


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b - a over pairs, with a Student t interval.

    Attributes:
        mean: of the differences, in the unit of the values; NaN without pairs.
        low: of the interval; NaN with fewer than two pairs.
        high: of the interval.
        num_pairs: pairs of which both values are finite.
        num_positive: those of them in which b > a.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    num_positive: int


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, level: float = 0.95
) -> PairedDifference:
    """Mean difference b - a of pairs: mean ± t_(n-1) s / sqrt(n), s the standard deviation of the differences.

    `scipy.stats.ttest_1samp` of the differences, which is what `ttest_rel` is.

    Student's interval assumes differences that are about normal; with five seeds nothing better can be checked.

    Args:
        a: one value per pair; a pair with a value that is not finite (a run that failed) is left out.
        b: as many.
        level: probability the interval is to cover, in (0, 1).

    Returns:
        PairedDifference.

    Raises:
        ValueError: sequences of different lengths, or a level outside (0, 1).
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many values on both sides, got {len(a)} and {len(b)}")
    require("level", level, "in (0, 1)", 0 < level < 1)
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    differences = differences[np.isfinite(differences)]
    count, positive = len(differences), int((differences > 0).sum())
    if count < 2:
        return PairedDifference(float(differences.mean()) if count else math.nan, math.nan, math.nan, count, positive)
    with warnings.catch_warnings():
        # Differences that are equal but for rounding have an interval that is a point: no loss of precision.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        low, high = ttest_1samp(differences, 0).confidence_interval(level)
    return PairedDifference(float(differences.mean()), float(low), float(high), count, positive)
