"""Medians and quartiles."""

import statistics
from collections.abc import Sequence


def of(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, digits), "quartile_1": round(low, digits), "quartile_3": round(high, digits)}


def of_ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of the ratios within pairs, which were measured beside each other."""
    return of([a / b for a, b in zip(ours, theirs, strict=True)])
