"""Estimates from n sampled completions per prompt: pass@k, distinct answers among k, and bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

from equipoise.errors import require

RESAMPLED_AT_ONCE = 2**21
"""Values that are drawn at a time: 16 MB of places. The draws are the same however they are parted."""


def pass_at_k(num_correct: Sequence[int] | np.ndarray | int, num_samples: int, k: int) -> np.ndarray:
    """1 - C(n-c, k) / C(n, k): unbiased probability that one of k samples is correct (arXiv 2107.03374, Eq. 1).

    Args:
        num_correct: c, correct completions of each prompt, in 0..n; any shape.
        num_samples: n, completions sampled per prompt.
        k: samples to draw, 1 <= k <= n.

    Returns:
        Probabilities in [0, 1], shaped like `num_correct`.

    Raises:
        ValueError: when k is not in 1..n or a count not in 0..n.
    """
    return np.asarray(1.0 - _absence(_counts(num_correct, "num_correct", num_samples), num_samples, k))


def distinct_at_k(counts: Sequence[int] | np.ndarray, num_samples: int, k: int) -> float:
    """sum_i 1 - C(n-m_i, k) / C(n, k): expected number of distinct answers among k of n samples (rarefaction).

    Samples that are in none of the counts (wrong completions, say) take up draws but are no answers.

    Args:
        counts: m_i, multiplicity of each distinct answer among the n samples; their sum is at most n.
        num_samples: n.
        k: samples to draw without replacement, 1 <= k <= n.

    Returns:
        A number in [0, min(k, number of distinct answers)].

    Raises:
        ValueError: when k is not in 1..n, or the counts are negative or add up to more than n.
    """
    multiplicities = _counts(counts, "counts", num_samples)
    if multiplicities.sum() > num_samples:
        raise ValueError(f"counts must add up to at most num_samples = {num_samples}, got {multiplicities.sum()}")
    return float(np.sum(1.0 - _absence(multiplicities, num_samples, k)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over prompts, resampled with replacement (`scipy.stats.bootstrap`).

    Args:
        values: [prompts], one finite number per prompt.
        level: probability the interval is to cover, in (0, 1).
        num_resamples: resamples drawn.
        seed: the same seed resamples the same prompts, so that intervals of two measures are comparable.

    Returns:
        (low, high), in the unit of the values.

    Raises:
        ValueError: when there are no values, one is not finite, the level is not in (0, 1), or nothing is resampled.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("bootstrap_interval needs a flat, non-empty sequence of finite values")
    require("level", level, "in (0, 1)", 0 < level < 1)
    require("num_resamples", num_resamples, ">= 1", num_resamples >= 1)
    if array.size == 1:  # scipy refuses it; every resample is the value itself
        return float(array[0]), float(array[0])
    means = bootstrap(
        (array,), np.mean, n_resamples=num_resamples, batch=max(RESAMPLED_AT_ONCE // array.size, 1),
        method="percentile", rng=np.random.default_rng(seed),
    ).bootstrap_distribution  # fmt: skip
    # scipy's own quantile differs from numpy's in the last bit, and numbers are to stay what they were.
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _absence(multiplicity: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """C(n-m, k) / C(n, k): probability that none of m marked samples is among k of n drawn."""
    require("k", k, f"in 1..num_samples={num_samples}", 1 <= k <= num_samples)
    # As a product of k factors in [0, 1]: the binomials themselves overflow.
    drawn = np.arange(k)
    remaining = np.maximum(num_samples - multiplicity[..., None] - drawn, 0)
    return np.asarray(np.prod(remaining / (num_samples - drawn), axis=-1))


def _counts(values: Sequence[int] | np.ndarray | int, name: str, num_samples: int) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > num_samples:
        raise ValueError(f"{name} must be integers in 0..num_samples = {num_samples}, got {values!r}")
    return array
