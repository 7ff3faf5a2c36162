"""Ratios, the clipped surrogate, ppo_clip and aggregate: signs by hand, denominators, masks, poison."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise import ClipBounds, PolicyBatch, TokenStatistics, UpdateSize, WeightedMean, aggregate, ppo_clip
from equipoise.clipping import clipped_high, clipped_low, clipped_surrogate, unclipped
from equipoise.ratios import importance_ratio, sequence_importance_ratio

BOUNDS = ClipBounds(0.8, 1.2)
POISON = [math.nan, math.inf, -math.inf]


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def statistics_with(logprob):
    rest = torch.zeros_like(logprob).detach()
    return TokenStatistics(logprob, rest, rest, rest)


def ppo(ratio, advantage, mask=None, bounds=BOUNDS):
    """ppo_clip of tokens with these ratios, and the leaf its gradient is taken in."""
    behavior = torch.full_like(ratio, -2.0)
    logprob = (behavior + ratio.log()).requires_grad_()
    mask = torch.ones_like(ratio, dtype=torch.bool) if mask is None else mask
    return ppo_clip(statistics_with(logprob), PolicyBatch(advantage, behavior, mask), bounds=bounds), logprob


CASES = [  # ratio, advantage, loss, gradient in the log-prob
    (0.5, 2.0, -1.0, -1.0),
    (1.1, 2.0, -2.2, -2.2),
    (1.5, 2.0, -2.4, 0.0),
    (0.5, -2.0, 1.6, 0.0),
    (0.9, -2.0, 1.8, 1.8),
    (1.5, -2.0, 3.0, 3.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), CASES)
def test_golden_loss_and_gradient_of_ppo_clip(ratio, advantage, loss, gradient):
    out, logprob = ppo(doubles([ratio]), doubles([advantage]))
    out.loss.sum().backward()
    assert out.loss.item() == pytest.approx(loss, rel=1e-12)
    assert logprob.grad.item() == pytest.approx(gradient, rel=1e-12)


def test_golden_metrics_of_ppo_clip():
    ratio, advantage = doubles([0.5, 0.7, 0.5, 1.5, 1.8, 9.0]), doubles([-1, -1, 1, 1, -1, 1])
    mask = torch.tensor([[True] * 5 + [False]])
    metrics = ppo(ratio, advantage, mask)[0].metrics
    assert metrics["clip_fraction/low"] == WeightedMean(2.0, 5.0)
    assert metrics["clip_fraction/high"] == WeightedMean(1.0, 5.0)
    assert metrics["ratio"].total == pytest.approx(5.0, rel=1e-12)
    assert metrics["ratio"].weight == 5.0


def test_metrics_of_micro_batches_add_to_those_of_the_whole():
    ratio, advantage, mask = random_tokens(6, 9)
    whole = ppo(ratio, advantage, mask)[0].metrics
    parts = [ppo(ratio[rows], advantage[rows], mask[rows])[0].metrics for rows in (slice(0, 2), slice(2, 6))]
    for name, metric in whole.items():
        total = parts[0][name] + parts[1][name]
        assert (total.mean, total.weight) == (pytest.approx(metric.mean, rel=1e-12), metric.weight)


def test_weighted_mean():
    assert WeightedMean(3.0, 4.0).mean == 0.75
    assert WeightedMean(1.0, 1.0) + WeightedMean(2.0, 4.0) == WeightedMean(3.0, 5.0)
    assert math.isnan(WeightedMean(0.0, 0.0).mean)


def test_advantage_is_detached():
    advantage = doubles([1.0, -1.0]).requires_grad_()
    ppo(doubles([1.1, 0.9]), advantage)[0].loss.sum().backward()
    assert advantage.grad is None


def test_no_upper_bound_clips_nothing_above():
    out, logprob = ppo(doubles([50.0]), doubles([1.0]), bounds=ClipBounds(0.8, math.inf))
    out.loss.sum().backward()
    assert (out.loss.item(), logprob.grad.item()) == (pytest.approx(-50.0), pytest.approx(-50.0))


def test_golden_clip_decisions():
    ratio = doubles(0.7, 0.8, 1.0, 1.2, 1.3)
    up, down = torch.ones(5).double(), -torch.ones(5).double()
    nothing = [False] * 5
    # A token exactly on the bound counts as clipped (arXiv 2510.18927, Eq. 6-7: X = 1 for r < high and r > low).
    assert clipped_high(ratio, up, BOUNDS).tolist() == [False, False, False, True, True]
    assert clipped_low(ratio, down, BOUNDS).tolist() == [True, True, False, False, False]
    assert clipped_high(ratio, down, BOUNDS).tolist() == clipped_low(ratio, up, BOUNDS).tolist() == nothing
    assert unclipped(ratio, up, BOUNDS).tolist() == [True, True, True, False, False]
    assert unclipped(ratio, down, BOUNDS).tolist() == [False, False, True, True, True]
    assert unclipped(ratio, 0 * up, BOUNDS).all()


@given(ratio=st.floats(0.05, 5.0), advantage=st.floats(-3, 3))
def test_unclipped_is_where_the_surrogate_has_a_gradient(ratio, advantage):
    leaf = doubles(ratio).requires_grad_()
    clipped_surrogate(leaf, doubles(advantage), BOUNDS).sum().backward()
    expected = advantage if bool(unclipped(leaf.detach(), doubles(advantage), BOUNDS)) else 0.0
    if ratio not in (BOUNDS.low, BOUNDS.high):
        assert leaf.grad.item() == expected


def random_tokens(batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ratio = torch.randn(batch, time, generator=generator, dtype=torch.float64).mul(0.4).exp()
    advantage = torch.randn(batch, time, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, time, generator=generator) < 0.7
    mask[0] = False  # a sequence without any action token
    mask[1] = True
    return ratio, advantage, mask


@pytest.mark.parametrize("where", ["logprob", "behavior_logprob", "advantage"])
@pytest.mark.parametrize("poison", POISON)
def test_poison_outside_the_mask_reaches_neither_loss_nor_gradient_of_ppo_clip(poison, where):
    ratio, advantage, mask = random_tokens(4, 7)
    clean, clean_leaf = ppo(ratio, advantage, mask)
    clean.loss.sum().backward()
    values = {"logprob": clean_leaf.detach(), "behavior_logprob": torch.full_like(ratio, -2.0), "advantage": advantage}
    values[where] = values[where].masked_fill(~mask, poison)
    leaf = values["logprob"].requires_grad_()
    batch = PolicyBatch(values["advantage"], values["behavior_logprob"], mask)
    out = ppo_clip(statistics_with(leaf), batch, bounds=BOUNDS)
    out.loss.sum().backward()
    torch.testing.assert_close(out.loss, clean.loss, rtol=0, atol=0)
    torch.testing.assert_close(leaf.grad, clean_leaf.grad, rtol=0, atol=0)
    assert (out.loss[~mask] == 0).all()
    assert (leaf.grad[~mask] == 0).all()
    assert out.metrics == clean.metrics


def test_ppo_clip_does_not_depend_on_the_order_of_tokens_or_the_micro_batch():
    ratio, advantage, mask = random_tokens(5, 8)
    whole = ppo(ratio, advantage, mask)[0].loss
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([7, 1, 0, 2, 5, 4, 3, 6])
    permuted = ppo(*(x[rows][:, columns] for x in (ratio, advantage, mask)))[0].loss
    torch.testing.assert_close(permuted, whole[rows][:, columns], rtol=1e-12, atol=0)
    parts = [ppo(*(x[part] for x in (ratio, advantage, mask)))[0].loss for part in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)


LOSS = doubles([1.0, 2.0, 3.0, 99.0], [4.0, 99.0, 99.0, 99.0], [99.0, 99.0, 99.0, 99.0])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("token", (6 + 4) / 4), ("sequence", (2 + 4 + 0) / 3), ("length", (6 + 4) / (3 * 8))],
)
def test_golden_aggregate(normalization, expected):
    max_length = 8 if normalization == "length" else None
    total = aggregate(LOSS, MASK, UpdateSize.of(MASK), normalization=normalization, max_length=max_length)
    assert total.item() == pytest.approx(expected, rel=1e-14)


def test_update_size_counts_action_tokens_and_all_sequences():
    assert UpdateSize.of(MASK) == UpdateSize(num_tokens=4, num_sequences=3)
    assert UpdateSize(4, 3) + UpdateSize(10, 1) == UpdateSize(14, 4)


NORMALIZATIONS = [("token", None), ("sequence", None), ("length", 16)]


@pytest.mark.parametrize(("normalization", "max_length"), NORMALIZATIONS)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 9))
def test_shares_of_micro_batches_add_to_the_whole(normalization, max_length, cuts, seed):
    ratio, advantage, mask = random_tokens(12, 5, seed)
    loss = ratio * advantage
    size = UpdateSize.of(mask)
    settings = {"normalization": normalization, "max_length": max_length}
    parts = [slice(a, b) for a, b in pairwise([0, *sorted(cuts), 12])]
    shares = [aggregate(loss[part], mask[part], size, **settings) for part in parts]
    whole = aggregate(loss, mask, size, **settings)
    torch.testing.assert_close(sum(shares), whole, rtol=1e-12, atol=1e-13)
    assert sum((UpdateSize.of(mask[part]) for part in parts), UpdateSize(0, 0)) == size


@pytest.mark.parametrize(("normalization", "max_length"), NORMALIZATIONS)
def test_padding_and_permutation_change_no_aggregate(normalization, max_length):
    ratio, advantage, mask = random_tokens(6, 5)
    loss = ratio * advantage
    size = UpdateSize.of(mask)
    settings = {"normalization": normalization, "max_length": max_length}
    expected = aggregate(loss, mask, size, **settings)
    padded = [torch.nn.functional.pad(x, (2, 3), value=value) for x, value in ((loss, math.nan), (mask, False))]
    torch.testing.assert_close(aggregate(*padded, size, **settings), expected, rtol=1e-12, atol=0)
    rows, columns = torch.tensor([5, 2, 0, 1, 4, 3]), torch.tensor([4, 0, 3, 1, 2])
    permuted = aggregate(loss[rows][:, columns], mask[rows][:, columns], size, **settings)
    torch.testing.assert_close(permuted, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(("normalization", "max_length"), NORMALIZATIONS)
def test_poison_outside_the_mask_reaches_neither_aggregate_nor_gradient(normalization, max_length, poison):
    ratio, advantage, mask = random_tokens(4, 5)
    clean = ratio * advantage
    leaf = clean.masked_fill(~mask, poison).requires_grad_()
    settings = {"normalization": normalization, "max_length": max_length}
    value = aggregate(leaf, mask, UpdateSize.of(mask), **settings)
    value.backward()
    torch.testing.assert_close(value, aggregate(clean, mask, UpdateSize.of(mask), **settings), rtol=0, atol=0)
    assert (leaf.grad[~mask] == 0).all()
    assert (leaf.grad[mask] > 0).all()


@pytest.mark.parametrize(("normalization", "max_length"), NORMALIZATIONS)
def test_aggregate_of_nothing_is_zero(normalization, max_length):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    size = UpdateSize.of(mask)
    assert aggregate(torch.ones(2, 3), mask, size, normalization=normalization, max_length=max_length).item() == 0
    none = aggregate(torch.ones(0, 3), mask[:0], UpdateSize(0, 0), normalization=normalization, max_length=max_length)
    assert none.item() == 0


def test_golden_importance_ratio():
    ratio = importance_ratio(doubles(-1.0, -2.0), doubles(-2.0, -1.0))
    assert ratio.tolist() == pytest.approx([math.e, 1 / math.e], rel=1e-14)


def test_golden_sequence_importance_ratio():
    log_ratio = doubles([0.3, -0.1, 0.4, 7.0], [0.5, 7.0, 7.0, 7.0], [7.0, 7.0, 7.0, 7.0])
    ratio = sequence_importance_ratio(log_ratio - 2, torch.full_like(log_ratio, -2.0), MASK)
    assert ratio.shape == (3, 1)
    assert ratio.flatten().tolist() == pytest.approx([math.exp(0.2), math.exp(0.5), 1.0], rel=1e-12)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("poison", POISON)
def test_poison_outside_the_mask_reaches_neither_sequence_ratio_nor_gradient(poison, where):
    clean = [doubles(*[[-1.0, -0.5, -2.0, -0.1]] * 3), doubles(*[[-0.7, -0.9, -2.0, -0.3]] * 3)]
    values = list(clean)
    values[where] = clean[where].masked_fill(~MASK, poison)
    leaf = values[0].requires_grad_()
    ratio = sequence_importance_ratio(leaf, values[1], MASK)
    ratio.sum().backward()
    torch.testing.assert_close(ratio, sequence_importance_ratio(*clean, MASK), rtol=0, atol=0)
    assert (leaf.grad[~MASK] == 0).all()
    assert leaf.grad[0, 0].item() == pytest.approx(ratio[0].item() / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.2), (-0.1, 1.2), (1.1, 1.2), (0.8, 0.9), (math.nan, 1.2), (0.8, math.nan)]
)
def test_refuses_clip_bounds(low, high):
    message = rf"clip bounds must satisfy 0 < low <= 1 <= high, got ClipBounds\(low={low}, high={high}\)"
    with pytest.raises(ValueError, match=message):
        ClipBounds(low, high)


def test_accepts_clip_bounds_at_their_ends():
    assert ClipBounds(1.0, 1.0) != ClipBounds(1e-9, math.inf)


@pytest.mark.parametrize("max_length", [None, 0, -1])
def test_refuses_length_without_a_length(max_length):
    with pytest.raises(ValueError, match=f"normalization 'length' needs max_length > 0, got {max_length}"):
        aggregate(LOSS, MASK, UpdateSize(4, 3), normalization="length", max_length=max_length)


def test_refuses_an_unknown_normalization():
    # Unwrapped: under the import hook of these tests the type annotations would refuse it first.
    with pytest.raises(ValueError, match="normalization must be 'token', 'sequence' or 'length', got 'mean'"):
        inspect.unwrap(aggregate)(LOSS, MASK, UpdateSize(4, 3), normalization="mean")


def test_normalization_has_no_default():
    with pytest.raises(TypeError, match="normalization"):
        aggregate(LOSS, MASK, UpdateSize(4, 3))
