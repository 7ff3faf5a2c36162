"""Student's interval of paired differences, against scipy's own test."""

import math

import numpy as np
import pytest
from scipy import stats

from equipoise.diagnostics.paired import paired_difference


def test_interval_is_that_of_the_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    found = paired_difference(a, b, level=0.9)
    expected = stats.ttest_rel(b, a).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((b - a).mean())
    assert (found.num_pairs, found.num_positive) == (7, int((b > a).sum()))


def test_a_pair_with_a_failed_run_is_left_out():
    found = paired_difference([1.0, math.nan, 3.0], [2.0, 5.0, 5.0])
    assert (found.mean, found.num_pairs) == (1.5, 2)


@pytest.mark.parametrize(("a", "b", "mean"), [([], [], math.nan), ([1.0], [3.0], 2.0)])
def test_too_few_pairs_have_no_interval(a, b, mean):
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_refusals():
    with pytest.raises(ValueError, match="as many values on both sides, got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got level=1"):
        paired_difference([1.0], [1.0], level=1)
