"""Entropy polarity: identities, finite differences through the real loss, the threshold, and the reweighting."""

import math

import mpmath
import pytest
import scipy.special
import torch
from core_reference import every_target
from hypothesis import given
from hypothesis import strategies as st

from equipoise import (
    BranchWeights,
    ClipBounds,
    PolicyBatch,
    TokenStatistics,
    branch_only,
    entropy_polarity,
    expansion_threshold,
    ppo_clip,
    predicted_entropy_change,
    reweight_by_polarity,
    token_statistics,
)
from equipoise.polarity import _lambert_w0

BOUNDS = ClipBounds(0.8, 1.2)
ROWS = st.lists(st.floats(-6, 6), min_size=2, max_size=12).map(lambda row: torch.tensor(row, dtype=torch.float64))


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(*shape, seed=0):
    return 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(row=ROWS)
def test_tendency_has_mean_zero_under_the_policy(row):
    statistics = token_statistics(*every_target(row))
    assert abs(float((row.softmax(-1) * statistics.tendency).sum())) < 1e-14


@given(row=ROWS, seed=st.integers(0, 99))
def test_mean_polarity_is_minus_the_covariance_of_logprob_and_probability_times_centred_advantage(row, seed):
    p, log_p = row.softmax(-1), row.log_softmax(-1)
    advantage = random_logits(row.numel(), seed=seed)
    advantage = advantage - (p * advantage).sum()
    weighted = p * advantage
    covariance = (p * log_p * weighted).sum() - (p * log_p).sum() * (p * weighted).sum()
    actual = (p * entropy_polarity(token_statistics(*every_target(row)), advantage)).sum()
    torch.testing.assert_close(actual, -covariance, rtol=1e-11, atol=1e-13)


@given(row=ROWS)
def test_correction_is_not_negative_and_bounds_the_tendency(row):
    statistics = token_statistics(*every_target(row))
    assert (statistics.correction >= -1e-16).all()
    bound = statistics.correction + (-1 - statistics.entropy).exp()
    assert (statistics.tendency <= bound + 1e-15).all()


def test_correction_is_zero_only_for_a_uniform_policy():
    uniform = token_statistics(torch.full((7,), 2.5), torch.tensor(3))
    assert float(uniform.correction) == 0.0
    assert float(uniform.tendency) == pytest.approx(0.0, abs=1e-8)
    assert float(token_statistics(torch.tensor([0.1, 0.0, 0.0]), torch.tensor(0)).correction) > 1e-4


@given(row=ROWS)
def test_tendency_is_positive_exactly_below_the_threshold(row):
    statistics = token_statistics(*every_target(row))
    threshold = expansion_threshold(statistics)
    gap = threshold - row.softmax(-1)
    clear = gap.abs() > 1e-9
    assert ((statistics.tendency > 0) == (gap > 0))[clear].all()
    assert (threshold >= (-statistics.entropy).exp() - 1e-14).all()
    assert (threshold <= 1 + 1e-14).all()


def test_threshold_lies_between_inverse_perplexity_and_one_for_a_binary_policy():
    logits = doubles(0.9, 0.1).log()
    entropy, correction = 0.3250829733914482, 0.9 * 0.1 * 0.8 * math.log(9)
    expected = math.exp(float(scipy.special.lambertw(correction * math.exp(entropy)).real) - entropy)
    assert float(expansion_threshold(token_statistics(logits, torch.tensor(0)))) == pytest.approx(expected, rel=1e-12)
    assert math.exp(-entropy) < expected < 0.9


@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-9, 1e-3, 0.3, 1.0, math.e, 50.0, 1e6, 1e12])
def test_lambert_w_equals_scipy(x):
    assert float(_lambert_w0(doubles(x))) == pytest.approx(float(scipy.special.lambertw(x).real), rel=1e-13, abs=0)


def test_threshold_keeps_the_type_and_is_detached():
    statistics = token_statistics(torch.randn(3, 5).requires_grad_(), torch.tensor([0, 1, 2]))
    threshold = expansion_threshold(statistics)
    assert threshold.dtype == torch.float32
    assert not threshold.requires_grad


def fixed_statistics(tendency):
    tendency = tendency.double()
    return TokenStatistics(-torch.ones_like(tendency), torch.ones_like(tendency), tendency, torch.ones_like(tendency))


def test_golden_polarity_signs():
    polarity = entropy_polarity(fixed_statistics(doubles(0.5, 0.5, -0.25, -0.25)), doubles(2, -2, 2, -2))
    assert polarity.tolist() == [1.0, -1.0, -0.5, 0.5]


def test_polarity_and_prediction_are_detached():
    statistics = token_statistics(random_logits(2, 5).requires_grad_(), torch.tensor([0, 1]))
    advantage = doubles(1, -1).requires_grad_()
    ratio = (statistics.logprob + 1).exp()
    assert not entropy_polarity(statistics, advantage).requires_grad
    assert not predicted_entropy_change(statistics, advantage, ratio, BOUNDS).requires_grad


def test_golden_prediction_is_zero_where_the_clip_leaves_no_gradient():
    ratio = doubles(0.7, 0.8, 1.0, 1.2, 1.3)
    statistics = fixed_statistics(torch.full((5,), 0.5))
    up = predicted_entropy_change(statistics, torch.full((5,), 2.0).double(), ratio, BOUNDS)
    down = predicted_entropy_change(statistics, torch.full((5,), -2.0).double(), ratio, BOUNDS)
    assert up.tolist() == [0.7, 0.8, 1.0, 0.0, 0.0]
    assert down.tolist() == [0.0, 0.0, -1.0, -1.2, -1.3]


def surrogate_step(logits, targets, advantage, ratio):
    """The step that descends the summed ppo_clip loss on the logits, and the predicted change of each entropy."""
    logits = logits.clone().requires_grad_()
    statistics = token_statistics(logits, targets)
    behavior = statistics.logprob.detach() - ratio.log()
    batch = PolicyBatch(advantage, behavior, torch.ones_like(targets, dtype=torch.bool))
    ppo_clip(statistics, batch, bounds=BOUNDS).loss.sum().backward()
    return -logits.grad, predicted_entropy_change(statistics, advantage, ratio, BOUNDS)


def entropy_of(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


def surrogate_problem():
    """Every combination of a token, the sign of its advantage and a ratio inside, below and above the bounds."""
    logits = random_logits(2, 30, 6)
    targets = torch.arange(60).reshape(2, 30) % 6
    advantage = torch.where(torch.arange(60).reshape(2, 30) % 4 < 2, 1.3, -0.7).double()
    ratio = doubles(0.6, 0.9, 1.0, 1.1, 1.5)[torch.arange(60).reshape(2, 30) % 5]
    return logits, targets, advantage, ratio


def test_prediction_is_the_entropy_slope_along_the_descent_of_the_clipped_loss():
    logits, targets, advantage, ratio = surrogate_problem()
    step, predicted = surrogate_step(logits, targets, advantage, ratio)
    size = 1e-4
    slope = (entropy_of(logits + size * step) - entropy_of(logits - size * step)) / (2 * size)
    torch.testing.assert_close(slope, predicted, rtol=1e-6, atol=1e-9)
    clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    assert clipped.any()
    assert (predicted[clipped] == 0).all()
    assert (predicted[~clipped].abs() > 1e-6).all()


def test_remainder_of_the_first_order_change_is_quadratic_in_the_step():
    logits, targets, advantage, ratio = surrogate_problem()
    step, predicted = surrogate_step(logits, targets, advantage, ratio)
    remainder = {
        size: float((entropy_of(logits + size * step) - entropy_of(logits) - size * predicted).abs().max()) / size**2
        for size in (1e-1, 1e-2, 1e-3)
    }
    assert 0.01 < remainder[1e-3] < 10
    assert remainder[1e-2] == pytest.approx(remainder[1e-3], rel=0.02)
    assert remainder[1e-1] == pytest.approx(remainder[1e-3], rel=0.2)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_step_on_raw_logits_scales_the_tendency_by_the_inverse_square_of_the_temperature(temperature):
    logits = random_logits(6)
    sampled = torch.tensor(2)
    tempered = logits.clone().requires_grad_()
    statistics = token_statistics(tempered, sampled, temperature=temperature)
    statistics.logprob.backward()
    size = 1e-4
    ends = [entropy_of((logits + sign * size * tempered.grad) / temperature) for sign in (1, -1)]
    expected = float(statistics.tendency) / temperature**2
    assert float(ends[0] - ends[1]) / (2 * size) == pytest.approx(expected, rel=1e-6)


def test_moments_identity_of_the_correction():
    row = random_logits(9)
    log_p = [mpmath.mpf(float(x)) for x in row.log_softmax(-1)]
    p = [mpmath.exp(x) for x in log_p]
    mean_p = mpmath.fsum(x * x for x in p)
    mean_log_p = mpmath.fsum(x * y for x, y in zip(p, log_p, strict=True))
    covariance = mpmath.fsum(x * (x - mean_p) * (y - mean_log_p) for x, y in zip(p, log_p, strict=True))
    assert float(token_statistics(row, torch.tensor(0)).correction) == pytest.approx(float(covariance), rel=1e-12)


def test_golden_reweighting_by_quadrant():
    weights = BranchWeights(
        expanding_positive=1.5, expanding_negative=1.25, contracting_positive=0.75, contracting_negative=0.5
    )
    advantage = doubles(2, -2, 2, -2, 2, 0)
    polarity = doubles(1, 1, -1, -1, 0, 0)
    assert reweight_by_polarity(advantage, polarity, weights).tolist() == [3.0, -2.5, 1.5, -1.0, 2.0, 0.0]


def test_of_branches_gives_two_equal_pairs():
    assert BranchWeights.of_branches(1.2, 0.8) == BranchWeights(1.2, 1.2, 0.8, 0.8)
    assert BranchWeights() == BranchWeights.of_branches(1.0, 1.0)


def test_neutral_zone_is_closed():
    advantage = torch.ones(5, dtype=torch.float64)
    polarity = doubles(-0.2, -0.1, 0.05, 0.1, 0.2)
    weighted = reweight_by_polarity(advantage, polarity, BranchWeights.of_branches(2.0, 0.5), neutral_zone=0.1)
    assert weighted.tolist() == [0.5, 1.0, 1.0, 1.0, 2.0]


@given(
    pairs=st.lists(st.tuples(st.floats(-3, 3), st.floats(-1, 1)), min_size=1, max_size=20),
    lean=st.floats(-0.9, 0.9),
)
def test_reweighting_is_a_bonus_on_expanding_tokens_scaled_by_the_size_of_the_advantage(pairs, lean):
    advantage, tendency = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    weights = BranchWeights.of_branches(1 + lean, 1 - lean)
    # The sign of the product, not the product: two tiny factors underflow to a neutral token.
    actual = reweight_by_polarity(advantage, advantage.sign() * tendency, weights)
    torch.testing.assert_close(actual, advantage + lean * advantage.abs() * tendency.sign(), rtol=1e-14, atol=1e-15)


def test_reweighting_changes_no_clip_decision():
    generator = torch.Generator().manual_seed(4)
    logprob, behavior, advantage, polarity = torch.randn(4, 3, 40, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 40, dtype=torch.bool)
    weights = BranchWeights(1.9, 1.3, 0.6, 0.2)
    reweighted = reweight_by_polarity(advantage, polarity, weights)
    statistics = TokenStatistics(logprob, logprob, logprob, logprob)
    plain = ppo_clip(statistics, PolicyBatch(advantage, behavior, mask), bounds=BOUNDS)
    weighted = ppo_clip(statistics, PolicyBatch(reweighted, behavior, mask), bounds=BOUNDS)
    torch.testing.assert_close(weighted.loss, plain.loss * (reweighted / advantage), rtol=1e-12, atol=1e-15)
    assert weighted.metrics == plain.metrics


def test_reweighted_advantage_is_detached_and_keeps_its_type():
    advantage = torch.tensor([1.0, -1.0], dtype=torch.bfloat16, requires_grad=True)
    weighted = reweight_by_polarity(advantage, torch.tensor([1.0, 1.0]).bfloat16(), BranchWeights())
    assert weighted.dtype == torch.bfloat16
    assert not weighted.requires_grad


@pytest.mark.parametrize("value", [0.0, -0.5, math.inf, math.nan])
@pytest.mark.parametrize(
    "name", ["expanding_positive", "expanding_negative", "contracting_positive", "contracting_negative"]
)
def test_refuses_branch_weights(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got .*{name}={value}"):
        BranchWeights(**{name: value})


def test_golden_tanh_weights_follow_the_size_of_the_tendency():
    advantage, tendency = doubles(2, -2, 2, 0), doubles(0.05, 0.3, -0.1, 0.4)
    weights = BranchWeights(1.5, 1.25, 0.75, 0.5)
    actual = reweight_by_polarity(advantage, advantage * tendency, weights, tendency_scale=0.1)
    # A T: expanding positive, contracting negative, contracting positive
    expected = [2 * (1 + 0.5 * math.tanh(0.5)), -2 * (1 - 0.5 * math.tanh(3)), 2 * (1 - 0.25 * math.tanh(1)), 0.0]
    assert actual.tolist() == pytest.approx(expected, rel=1e-12)
    hard = reweight_by_polarity(advantage, advantage * tendency, weights)
    sharp = reweight_by_polarity(advantage, advantage * tendency, weights, tendency_scale=1e-6)
    torch.testing.assert_close(sharp, hard)


def test_golden_branches_and_they_add_up_to_the_advantage_outside_the_neutral_zone():
    advantage = doubles(2, -2, 2, -2, 2, math.nan)
    polarity = doubles(1, 0.2, -1, -0.2, 0.1, 0.0)
    positive = branch_only(advantage, polarity, "positive", neutral_zone=0.1)
    negative = branch_only(advantage, polarity, "negative", neutral_zone=0.1)
    assert positive.tolist() == [2, -2, 0, 0, 0, 0]
    assert negative.tolist() == [0, 0, 2, -2, 0, 0]
    assert not branch_only(torch.ones(2, requires_grad=True), torch.ones(2), "positive").requires_grad
