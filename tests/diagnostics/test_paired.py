"""Student's interval of paired differences."""

import math

import pytest

from equipoise.diagnostics.paired import paired_difference


def test_golden_interval():
    found = paired_difference([1.0, 1.0, 1.0, 9.0], [2.0, 3.0, 4.0, math.inf])
    half = 4.302652729749464 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%, times 1 / sqrt(n)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half), rel=1e-9)
    assert (found.num_pairs, found.num_positive) == (3, 3)
    narrow = paired_difference([1.0, 1.0, 1.0], [2.0, 3.0, 4.0], level=0.5)
    assert narrow.high - 2 == pytest.approx(0.8164965809277261 / math.sqrt(3), rel=1e-9)  # t at 75%: sqrt(2/3)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [2.0, 3.0]), ([0.2, 0.1], [0.3, 0.2]), ([0.0, 0.0], [0.0, 0.0])])
def test_equal_differences_have_a_point_as_their_interval_and_warn_of_nothing(a, b):
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((found.mean, found.mean))


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
