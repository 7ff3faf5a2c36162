"""BAPO's one-pass search against its golden values, a literal loop, and the rules at the edges."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import BoundGrid, BoundsSelection, ClipBounds, contribution, select_bounds

GRID = BoundGrid()
RATIO = torch.tensor([0.50, 0.70, 0.85, 1.00, 1.10, 1.30, 1.70, 2.50, 0.65, 0.95], dtype=torch.float64)
ADVANTAGE = torch.tensor([-1, -1, -1, 1, -1, 1, 1, 1, -1, -1], dtype=torch.float64)
TOKEN_WEIGHT = torch.tensor([0.05, 0.2, 0.5, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.9], dtype=torch.float64)
MEASURES = ["gradient", "surrogate"]


def of_tokens(ratio, advantage, *, grid=GRID, measure="gradient", token_weight=None, mask=None):
    ratio, advantage = (torch.as_tensor(x, dtype=torch.float64) for x in (ratio, advantage))
    mask = torch.ones_like(ratio, dtype=torch.bool) if mask is None else mask
    return contribution(ratio, advantage, mask, grid, measure=measure, token_weight=token_weight)


def test_grid_ends_belong_to_the_grid_exactly():
    assert (len(GRID.low_points), len(GRID.high_points)) == (16, 37)
    assert (GRID.low_points[0], GRID.low_points[-1]) == (0.6, 0.9)
    assert (GRID.high_points[0], GRID.high_points[-1]) == (1.2, 3.0)
    assert GRID.high_points[11] == 1.75
    for points, step in ((GRID.low_points, 0.02), (GRID.high_points, 0.05)):
        assert all(b - a == pytest.approx(step, rel=1e-9) for a, b in pairwise(points))


def test_grid_stops_below_an_end_that_is_no_multiple_of_the_step():
    assert BoundGrid(low=(0.5, 0.79), low_step=0.1).low_points == [0.5, 0.6, 0.7]


def test_path_raises_the_upper_bound_to_its_end_and_then_the_lower():
    grid = BoundGrid(low=(0.7, 0.9), low_step=0.1, high=(1.0, 2.0), high_step=0.5)
    assert [grid.path_point(steps) for steps in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("measure", "at_start", "at_end"),
    [("surrogate", (4.60, 4.85), (6.50, 5.65)), ("gradient", (1.00, 4.25), (6.50, 2.05))],
)
def test_golden_sums(measure, at_start, at_end):
    sums = of_tokens(RATIO, ADVANTAGE, measure=measure)
    positive, negative = sums.positive_sums(), sums.negative_sums()
    assert (float(positive[0]), float(negative[0])) == pytest.approx(at_start, abs=1e-12)
    assert (float(positive[-1]), float(negative[-1])) == pytest.approx(at_end, abs=1e-12)
    assert sums.share(15, 36) == pytest.approx(at_end[0] / sum(at_end))


def test_token_exactly_on_a_bound_counts_as_clipped():
    sums = of_tokens([0.7, 1.5], [-1.0, 1.0])
    positive, negative = sums.positive_sums().tolist(), sums.negative_sums().tolist()
    on_high, on_low = GRID.high_points.index(1.5), GRID.low_points.index(0.7)
    assert (positive[on_high], positive[on_high + 1]) == (0.0, 1.5)
    assert (negative[on_low - 1], negative[on_low]) == (0.7, 0.0)


def test_either_measure_can_be_read_from_the_sums():
    gradient, surrogate = (of_tokens(RATIO, ADVANTAGE, measure=measure) for measure in MEASURES)
    assert gradient.share(3, 5, "surrogate") == surrogate.share(3, 5)
    assert surrogate.share(3, 5, "gradient") == gradient.share(3, 5)
    assert gradient.share(3, 5) != surrogate.share(3, 5)
    assert gradient.share() == gradient.share(0, 0)


GOLDEN = [
    ("surrogate", None, 0.40, (0.60, 1.20), 0.486772),
    ("surrogate", None, 0.50, (0.60, 1.30), 0.502564),
    ("surrogate", None, 0.55, (0.60, 1.95), 0.550926),
    ("surrogate", None, 0.60, (0.90, 3.00), 0.534979),
    ("gradient", None, 0.30, (0.60, 1.35), 0.351145),
    ("gradient", None, 0.40, (0.60, 1.75), 0.484848),
    ("gradient", None, 0.50, (0.60, 2.55), 0.604651),
    ("gradient", None, 0.70, (0.86, 3.00), 0.760234),
    ("surrogate", TOKEN_WEIGHT, 0.50, (0.60, 1.30), 0.5),
    ("gradient", TOKEN_WEIGHT, 0.60, (0.86, 3.00), 0.632025),
]


@pytest.mark.parametrize(("measure", "token_weight", "target", "bounds", "share"), GOLDEN)
def test_golden_selection(measure, token_weight, target, bounds, share):
    sums = of_tokens(RATIO, ADVANTAGE, measure=measure, token_weight=token_weight)
    selection = select_bounds(sums, GRID, target_share=target)
    assert selection.bounds == ClipBounds(*bounds)
    assert selection.share_after == pytest.approx(share, abs=5e-7)
    assert selection.exhausted == (share < target - 1e-9)
    assert not selection.inactive
    low_index, high_index = GRID.path_point(selection.steps)
    assert ClipBounds(GRID.low_points[low_index], GRID.high_points[high_index]) == selection.bounds


def test_exact_tie_reaches_the_target_although_its_sums_round_below_it():
    # A share of 0.3, short of the target by less than any token weighs, and then by more than rounding explains.
    sums = of_tokens([1.0, 1.0, 1.0, 1.5], [0.1, 0.2, -0.7, 1.0])
    assert select_bounds(sums, GRID, target_share=0.3 + 1e-10).steps == 0
    assert select_bounds(sums, GRID, target_share=0.3 + 1e-8).steps > 0


def test_default_measure_is_gradient_and_default_target_the_papers():
    sums = contribution(RATIO, ADVANTAGE, torch.ones(10, dtype=torch.bool), GRID)
    assert sums.measure == "gradient"
    assert select_bounds(sums, GRID).bounds == ClipBounds(0.6, 1.75)


def loop_share(tokens, low, high, measure):
    """P / (P + N) at one pair of bounds, from the definition; None when nothing contributes."""
    if measure == "gradient":
        positive = math.fsum(w * r * a for r, a, w in tokens if a > 0 and r < high)
        negative = math.fsum(w * r * -a for r, a, w in tokens if a < 0 and r > low)
    else:
        positive = math.fsum(w * a * min(r, high) for r, a, w in tokens if a > 0)
        negative = math.fsum(w * -a * max(r, low) for r, a, w in tokens if a < 0)
    return positive / (positive + negative) if positive + negative > 0 else None


def nothing_moves(tokens, low_points, high_points, measure):
    """No token lies where a bound on the path could touch it."""
    if measure == "gradient":
        touched = [
            high_points[0] <= r < high_points[-1] if a > 0 else low_points[0] < r <= low_points[-1] for r, a in tokens
        ]
    else:
        movable_high, movable_low = len(high_points) > 1, len(low_points) > 1
        touched = [
            movable_high and r > high_points[0] if a > 0 else movable_low and r < low_points[-1] for r, a in tokens
        ]
    return not any(touched)


def searched_by_loop(tokens, low_points, high_points, measure, target):
    """Algorithm 1: recompute the share after every step; the upper bound first, to its end, then the lower.

    Grid indices, so that no float accumulates. A share of nothing has not reached the target; with no negative token
    at all there is nothing to balance. With a fixed lower bound the upper is still searched.
    """
    if not any(a < 0 and w > 0 for r, a, w in tokens) or nothing_moves(
        [(r, a) for r, a, w in tokens if a], low_points, high_points, measure
    ):
        return 0, 0
    low = high = 0
    while low + 1 < len(low_points) or high + 1 < len(high_points):
        share = loop_share(tokens, low_points[low], high_points[high], measure)
        if share is not None and share >= target - 1e-9:
            break
        if high + 1 < len(high_points):
            high += 1
        else:
            low += 1
    return low, high


@st.composite
def grids(draw):
    """Grids on whole hundredths, with one point now and then."""
    low, high = draw(st.integers(30, 100)), draw(st.integers(100, 150))
    low_step, high_step = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    low_end = min(100, low + draw(st.integers(0, 12)) * low_step)
    high_end = high + draw(st.integers(0, 12)) * high_step
    points = (
        [k / 100 for k in range(low, low_end + 1, low_step)],
        [k / 100 for k in range(high, high_end + 1, high_step)],
    )
    grid = BoundGrid((low / 100, low_end / 100), (high / 100, high_end / 100), low_step / 100, high_step / 100)
    return grid, *points


TOKENS = st.lists(
    st.tuples(
        st.one_of(st.floats(0.25, 4.0), st.integers(25, 400).map(lambda x: x / 100)),  # often exactly on the grid
        st.sampled_from([-2.0, -1.0, -0.3, 0.0, 0.25, 1.0, 1.75]),
        st.sampled_from([0.05, 0.4, 1.0]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=200)
@given(case=grids(), tokens=TOKENS, target=st.floats(0.05, 0.95))
def test_one_pass_finds_what_the_loop_finds(measure, case, tokens, target):
    grid, low_points, high_points = case
    assert (grid.low_points, grid.high_points) == (low_points, high_points)
    ratio, advantage, weight = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    sums = of_tokens(ratio, advantage, grid=grid, measure=measure, token_weight=weight)
    selection = select_bounds(sums, grid, target_share=target)
    low, high = searched_by_loop(tokens, low_points, high_points, measure, target)
    assert selection.bounds == ClipBounds(low_points[low], high_points[high])
    assert selection.steps == low + high
    for value, (i, j) in ((selection.share_before, (0, 0)), (selection.share_after, (low, high))):
        expected = loop_share(tokens, low_points[i], high_points[j], measure)
        assert value == pytest.approx(math.nan if expected is None else expected, rel=1e-9, abs=1e-12, nan_ok=True)
    reached = not math.isnan(selection.share_after) and selection.share_after >= target - 1e-9
    assert selection.exhausted == (not selection.inactive and not reached and bool((advantage * weight < 0).any()))


@pytest.mark.parametrize("measure", MEASURES)
@given(tokens=TOKENS, cut=st.integers(0, 25), seed=st.integers(0, 9))
def test_any_split_and_order_gives_the_same_bounds(measure, tokens, cut, seed):
    ratio, advantage, weight = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    whole = of_tokens(ratio, advantage, measure=measure, token_weight=weight)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    parts = [
        of_tokens(ratio[part], advantage[part], measure=measure, token_weight=weight[part])
        for part in (order[:cut], order[cut:])
    ]
    total = sum(parts)
    torch.testing.assert_close(total.vector, whole.vector, rtol=1e-12, atol=1e-12)
    assert select_bounds(total, GRID).bounds == select_bounds(whole, GRID).bounds


@pytest.mark.parametrize("measure", MEASURES)
def test_share_of_the_gradient_rises_with_both_bounds_and_of_the_surrogate_falls_with_the_lower(measure):
    sums = of_tokens(RATIO, ADVANTAGE, measure=measure)
    by_high = [sums.share(0, k) for k in range(37)]
    by_low = [sums.share(m, 36) for m in range(16)]
    assert by_high == sorted(by_high)
    assert by_low == sorted(by_low, reverse=measure == "surrogate")
    assert by_low[0] != by_low[-1]


def test_padding_and_poison_outside_the_mask_change_nothing():
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[:, 10:] = False
    values = [RATIO.repeat(2, 1), ADVANTAGE.repeat(2, 1), TOKEN_WEIGHT.repeat(2, 1)]
    for poison in (math.nan, math.inf, -math.inf, 3.0):
        ratio, advantage, weight = (torch.nn.functional.pad(x, (0, 4), value=poison) for x in values)
        sums = of_tokens(ratio, advantage, token_weight=weight, mask=mask)
        expected = 2 * of_tokens(RATIO, ADVANTAGE, token_weight=TOKEN_WEIGHT).vector
        torch.testing.assert_close(sums.vector, expected, rtol=1e-13, atol=0)


def test_sums_are_float64_for_any_input_type():
    mask = torch.tensor([True, True])
    for dtype in (torch.bfloat16, torch.float32):
        sums = contribution(torch.tensor([1.0, 1.5]).to(dtype), torch.tensor([1.0, -1.0]).to(dtype), mask, GRID)
        assert sums.vector.dtype == torch.float64


def test_sums_are_detached():
    ratio = RATIO.clone().requires_grad_()
    assert not of_tokens(ratio, ADVANTAGE).vector.requires_grad


def test_all_reduced_vector_comes_back_in_place():
    sums = of_tokens(RATIO, ADVANTAGE, token_weight=TOKEN_WEIGHT)
    assert sums.vector.numel() == 2 * (37 + 1) + 2 * (16 + 1)
    again = sums.with_vector(sums.vector)
    for name in ("positive_ratio", "positive", "negative_ratio", "negative"):
        assert getattr(again, name).tolist() == getattr(sums, name).tolist()
    assert sums.with_vector(3 * sums.vector).share(2, 9) == pytest.approx(sums.share(2, 9), rel=1e-12)


START, END = ClipBounds(0.6, 1.2), ClipBounds(0.9, 3.0)


@pytest.mark.parametrize("measure", MEASURES)
def test_empty_mask_keeps_the_start(measure):
    sums = of_tokens(RATIO, ADVANTAGE, measure=measure, mask=torch.zeros(10, dtype=torch.bool))
    assert sums.vector.dtype == torch.float64
    selection = select_bounds(sums, GRID)
    assert selection.bounds == START
    assert (selection.steps, selection.exhausted, selection.inactive) == (0, False, True)
    assert math.isnan(selection.share_before)
    assert math.isnan(selection.share_after)


@pytest.mark.parametrize("measure", MEASURES)
def test_only_positives_keep_the_start(measure):
    selection = select_bounds(of_tokens(RATIO, ADVANTAGE.abs(), measure=measure), GRID, target_share=0.99)
    assert selection == BoundsSelection(START, 1.0, 1.0, 0, exhausted=False, inactive=False)


@pytest.mark.parametrize("measure", MEASURES)
def test_only_negatives_go_to_the_end(measure):
    selection = select_bounds(of_tokens(RATIO, -ADVANTAGE.abs(), measure=measure), GRID, target_share=0.01)
    assert selection == BoundsSelection(END, 0.0, 0.0, 51, exhausted=True, inactive=False)


@pytest.mark.parametrize("measure", MEASURES)
def test_ratio_one_everywhere_is_inactive(measure):
    selection = select_bounds(of_tokens(torch.ones(10), ADVANTAGE, measure=measure), GRID, target_share=0.9)
    assert selection == BoundsSelection(START, 0.4, 0.4, 0, exhausted=False, inactive=True)


@pytest.mark.parametrize("measure", MEASURES)
def test_target_out_of_reach_goes_to_the_end(measure):
    selection = select_bounds(of_tokens(RATIO, ADVANTAGE, measure=measure), GRID, target_share=0.999)
    assert selection.bounds == END
    assert (selection.steps, selection.exhausted, selection.inactive) == (51, True, False)


def test_fixed_lower_bound_still_searches_the_upper():
    grid = BoundGrid(low=(0.8, 0.8))
    assert grid.low_points == [0.8]
    sums = of_tokens(RATIO, ADVANTAGE, grid=grid)
    # By hand: N = 0.85 + 1.1 + 0.95; P = 1.0 below 1.3, then 2.3, a share of 0.442.
    assert select_bounds(sums, grid, target_share=0.4).bounds == ClipBounds(0.8, 1.35)
    assert select_bounds(sums, grid, target_share=0.99).bounds == ClipBounds(0.8, 3.0)


def test_grid_of_one_point_measures_shares():
    grid = BoundGrid.fixed(ClipBounds(0.8, 1.28))
    selection = select_bounds(of_tokens(RATIO, ADVANTAGE, grid=grid), grid, target_share=0.99)
    assert selection.bounds == ClipBounds(0.8, 1.28)
    assert selection.share_before == pytest.approx(1.0 / (1.0 + 0.85 + 1.1 + 0.95), rel=1e-12)
    assert selection.inactive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": (0.0, 0.9)}, r"low must satisfy 0 < low\[0\] <= low\[1\] <= 1, got low=\(0.0, 0.9\)"),
        ({"low": (0.9, 0.6)}, r"low must satisfy .* got low=\(0.9, 0.6\)"),
        ({"low": (0.6, 1.1)}, r"low must satisfy .* got low=\(0.6, 1.1\)"),
        ({"low": (math.nan, 0.9)}, "low must satisfy"),
        ({"high": (0.9, 3.0)}, r"high must satisfy 1 <= high\[0\] <= high\[1\] < inf, got high=\(0.9, 3.0\)"),
        ({"high": (3.0, 1.2)}, "high must satisfy"),
        ({"high": (1.2, math.inf)}, "high must satisfy"),
        ({"low_step": 0.0}, "low_step must be positive and finite, got low_step=0.0"),
        ({"low_step": math.nan}, "low_step must be positive"),
        ({"high_step": -0.05}, "high_step must be positive and finite, got high_step=-0.05"),
        ({"high_step": math.inf}, "high_step must be positive and finite, got high_step=inf"),
    ],
)
def test_refuses_grids(changes, message):
    with pytest.raises(ValueError, match=message):
        BoundGrid(**changes)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, math.nan])
def test_refuses_target_share(target):
    with pytest.raises(ValueError, match=rf"target_share must be in \(0, 1\), got target_share={target}"):
        select_bounds(of_tokens(RATIO, ADVANTAGE), GRID, target_share=target)


def test_refuses_another_grid():
    other = BoundGrid(low=(0.8, 0.9))
    with pytest.raises(ValueError, match=r"contribution was binned on .*0\.6, 0\.9.* got grid .*0\.8, 0\.9"):
        select_bounds(of_tokens(RATIO, ADVANTAGE), other)
    with pytest.raises(ValueError, match="contributions add only on one grid and measure"):
        of_tokens(RATIO, ADVANTAGE) + of_tokens(RATIO, ADVANTAGE, grid=other)
    with pytest.raises(ValueError, match=r"'gradient' and .* 'surrogate'"):
        of_tokens(RATIO, ADVANTAGE) + of_tokens(RATIO, ADVANTAGE, measure="surrogate")


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_what_is_not_finite_inside_the_mask(position, value):
    inputs = [RATIO.clone(), ADVANTAGE.clone(), TOKEN_WEIGHT.clone()]
    inputs[position][4] = value
    with pytest.raises(ValueError, match="must be finite on every action token"):
        of_tokens(*inputs[:2], token_weight=inputs[2])


def test_refuses_an_unknown_measure():
    with pytest.raises(ValueError, match="measure must be 'gradient' or 'surrogate', got measure='loss'"):
        # Unwrapped: under the import hook of these tests the type annotations would refuse it first.
        inspect.unwrap(contribution)(RATIO, ADVANTAGE, torch.ones(10, dtype=torch.bool), GRID, measure="loss")


def test_without_a_negative_token_the_start_is_kept_even_where_all_are_clipped():
    ratio = torch.tensor([1.5, 2.0], dtype=torch.float64)
    part = contribution(ratio, torch.ones_like(ratio), torch.ones(2, dtype=torch.bool), BoundGrid())
    selection = select_bounds(part, BoundGrid())
    assert (selection.steps, selection.exhausted) == (0, False)


@pytest.mark.parametrize(("ratio", "weight"), [(-1.0, 1.0), (1.0, -1.0)])
def test_negative_ratios_and_weights_are_refused(ratio, weight):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="ratio and token_weight not negative"):
        contribution(one * ratio, one, one.bool(), BoundGrid(), token_weight=one * weight)
