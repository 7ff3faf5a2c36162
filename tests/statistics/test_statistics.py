"""Token statistics from logits: against float64 and 50-digit references, at the edges, and their gradients."""

import inspect
import math

import pytest
import torch
from core_reference import every_target, exact_statistics, largest_error, near_certain_logits, textbook_statistics
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from equipoise import token_statistics
from equipoise.statistics.moments import Moments, merged, moments_of

FIELDS = ("logprob", "entropy", "tendency", "correction")


def random_logits(*shape, scale=3.0, seed=0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_targets(*shape, vocabulary, seed=1):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("vocabulary", [1, 2, 37])
def test_float64_equals_textbook(vocabulary, scale, temperature):
    logits = random_logits(4, 6, vocabulary, scale=scale)
    targets = random_targets(4, 6, vocabulary=vocabulary)
    actual = token_statistics(logits, targets, temperature=temperature)
    expected = textbook_statistics(logits, targets, temperature)
    for name in FIELDS:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3, 4)])
def test_shape_is_that_of_targets(shape):
    actual = token_statistics(random_logits(*shape, 7), random_targets(*shape, vocabulary=7))
    assert all(value.shape == shape for value in actual)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_float32_error_at_most_twice_that_of_plain_torch(scale):
    logits = random_logits(256, 999, scale=scale, dtype=torch.float32)
    targets = random_targets(256, vocabulary=999)
    actual, plain = token_statistics(logits, targets), textbook_statistics(logits, targets)
    exact = textbook_statistics(logits.double(), targets)
    for name in FIELDS:
        error = largest_error(getattr(actual, name), getattr(exact, name))
        assert error <= 2 * largest_error(getattr(plain, name), getattr(exact, name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits = random_logits(64, 301, dtype=torch.float32).to(dtype)
    targets = random_targets(64, vocabulary=301)
    actual, plain = token_statistics(logits, targets), textbook_statistics(logits.float(), targets)
    exact = textbook_statistics(logits.double(), targets)
    for name in FIELDS:
        value = getattr(actual, name)
        assert value.dtype == torch.float32
        assert largest_error(value, getattr(exact, name)) <= 2 * largest_error(
            getattr(plain, name), getattr(exact, name)
        )


def gradient_of(statistics, logits, targets, logprob_gradient, entropy_gradient):
    logits = logits.clone().requires_grad_()
    out = statistics(logits, targets)
    torch.autograd.backward((out.logprob, out.entropy), (logprob_gradient, entropy_gradient))
    return logits.grad


@pytest.mark.parametrize("shift", [0.0, 64.0])
def test_float32_gradient_error_at_most_twice_that_of_plain_torch(shift):
    logits = random_logits(64, 301, dtype=torch.float32) + shift
    targets = random_targets(64, vocabulary=301)
    upstream = random_logits(2, 64, scale=1.0, seed=2, dtype=torch.float32)
    exact = gradient_of(textbook_statistics, logits.double(), targets, *upstream.double())
    plain_error = largest_error(gradient_of(textbook_statistics, logits, targets, *upstream), exact)
    assert largest_error(gradient_of(token_statistics, logits, targets, *upstream), exact) <= 2 * plain_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradient_is_the_exact_one_rounded_once(dtype):
    logits = random_logits(16, 101, dtype=torch.float32).to(dtype)
    targets = random_targets(16, vocabulary=101)
    upstream = random_logits(2, 16, scale=1.0, seed=2, dtype=torch.float32)
    actual = gradient_of(token_statistics, logits, targets, *upstream)
    exact = gradient_of(textbook_statistics, logits.double(), targets, *upstream.double())
    assert actual.dtype == dtype
    # Half a unit in the last place, and 1e-5 for float32 sums and the smallest subnormals of float16.
    torch.testing.assert_close(actual.double(), exact, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-5)


@pytest.mark.parametrize("p_top", [0.5, 0.9, 0.99, 0.999997, 1 - 1e-6, 1 - 1e-7, 1 - 1e-8, 1 - 1e-9])
@pytest.mark.parametrize("seed", range(3))
def test_float32_signs_of_the_tendency_are_right_near_certainty(p_top, seed):
    row = near_certain_logits(p_top, vocabulary=50, seed=seed)
    actual = token_statistics(*every_target(row)).tendency
    _, _, exact = exact_statistics(row.tolist())
    assert [math.copysign(1, x) for x in actual.tolist()] == [math.copysign(1, x) for x in exact]
    torch.testing.assert_close(actual.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("p_top", [0.5, 0.999, 1 - 1e-6, 1 - 1e-8, 1 - 1e-12])
def test_float32_logprob_and_entropy_keep_their_digits_near_certainty(p_top):
    row = near_certain_logits(p_top, vocabulary=50, seed=4)
    logprob, entropy, _ = exact_statistics(row.tolist())
    actual = token_statistics(*every_target(row))
    expected = torch.tensor(logprob, dtype=torch.float64)
    torch.testing.assert_close(actual.logprob.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(actual.entropy.double(), torch.full_like(expected, entropy), rtol=2e-6, atol=0)


@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=8),
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_sampled_argmax_never_expands(logits, temperature):
    row = torch.tensor(logits)
    actual = token_statistics(row, row.argmax(), temperature=temperature)
    assert actual.tendency <= 0
    assert actual.entropy >= 0
    assert actual.logprob <= 0


def test_golden_binary_tendency():
    logits = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    top, low = token_statistics(*every_target(logits)).tendency.tolist()
    # By hand: T = -2 p (1-p)^2 log(p / (1-p)) for the top token, 2 p^2 (1-p) log(p / (1-p)) for the low one.
    assert top == pytest.approx(-0.018 * math.log(9), rel=1e-12)
    assert low == pytest.approx(0.162 * math.log(9), rel=1e-12)
    assert (top, low) == (pytest.approx(-0.0395, abs=1e-4), pytest.approx(0.3560, abs=1e-4))


def test_single_token_vocabulary_is_certain():
    actual = token_statistics(torch.tensor([[3.0]]), torch.tensor([0]))
    assert [float(value) for value in actual] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("shift", [-1e3, 1e3, 1e6])
def test_constant_shift_of_the_logits_changes_nothing(shift):
    logits, targets = random_logits(8, 12).round(decimals=2), random_targets(8, vocabulary=12)
    shifted = token_statistics(logits + shift, targets)
    for actual, expected in zip(shifted, token_statistics(logits, targets), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-15 * abs(shift) + 1e-12)


def test_permutation_of_the_vocabulary_changes_nothing():
    logits, targets = random_logits(8, 12), random_targets(8, vocabulary=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    permuted = token_statistics(logits[:, order], order.argsort()[targets])
    for actual, expected in zip(permuted, token_statistics(logits, targets), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-14)


def masked_logits():
    logits = random_logits(4, 9)
    logits[:, 2:5] = -math.inf
    logits[3, :8] = -math.inf  # one token left
    return logits, torch.tensor([0, 6, 1, 8])


def test_masked_logits_count_as_absent():
    logits, targets = masked_logits()
    actual = token_statistics(logits, targets)
    kept = [0, 1, 5, 6, 7, 8]
    expected = textbook_statistics(logits[:3, kept], torch.tensor([0, 3, 1]))
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value[:3], reference, rtol=1e-13, atol=1e-14)
        assert float(value[3]) == 0.0


def test_masked_logits_have_gradient_zero_and_no_nan():
    logits, targets = masked_logits()
    logits.requires_grad_()
    out = token_statistics(logits, targets)
    (out.logprob.sum() + 2 * out.entropy.sum()).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits.isneginf()] == 0).all()
    assert (logits.grad[:3, 0] != 0).all()


def test_target_of_probability_zero():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    out = token_statistics(logits, torch.tensor([2]))
    assert out.logprob.item() == -math.inf
    torch.testing.assert_close(out.tendency, out.correction, rtol=0, atol=0)
    (out.logprob.sum() + out.entropy.sum()).backward()
    assert logits.grad.isfinite().all()


def test_nan_stays_in_its_row():
    logits, targets = random_logits(3, 6), torch.tensor([1, 2, 3])
    expected = token_statistics(logits, targets)
    logits[1, 4] = math.nan
    logits.requires_grad_()
    out = token_statistics(logits, targets)
    (out.logprob + out.entropy)[[0, 2]].sum().backward()
    for value, reference in zip(out, expected, strict=True):
        assert value[1].isnan()
        torch.testing.assert_close(value[[0, 2]], reference[[0, 2]], rtol=0, atol=0)
    assert logits.grad[[0, 2]].isfinite().all()
    assert (logits.grad[[0, 2]] != 0).any(-1).all()


def test_tendency_and_correction_are_detached():
    out = token_statistics(random_logits(2, 5).requires_grad_(), torch.tensor([0, 1]))
    assert [value.requires_grad for value in out] == [True, True, False, False]


@pytest.mark.parametrize("outputs", [("logprob",), ("entropy",), ("logprob", "entropy")])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(outputs, temperature):
    targets = random_targets(2, 3, vocabulary=7)

    def chosen(logits):
        statistics = token_statistics(logits, targets, temperature=temperature)
        return tuple(getattr(statistics, name) for name in outputs)

    assert gradcheck(chosen, (random_logits(2, 3, 7, scale=1.5).requires_grad_(),))


def test_gradient_with_both_upstream_gradients_is_the_sum_of_each_alone():
    logits, targets = random_logits(3, 5), random_targets(3, vocabulary=5)
    a, b = random_logits(2, 3, seed=5)
    none = torch.zeros_like(a)
    both = gradient_of(token_statistics, logits, targets, a, b)
    separate = [gradient_of(token_statistics, logits, targets, *pair) for pair in ((a, none), (none, b))]
    torch.testing.assert_close(both, sum(separate), rtol=1e-13, atol=1e-14)


@given(
    logits=st.lists(st.one_of(st.floats(-40, 40), st.just(-math.inf)), min_size=2, max_size=9),
    cut=st.integers(0, 9),
)
def test_merged_parts_are_the_whole(logits, cut):
    row = torch.tensor(logits, dtype=torch.float64)
    cut = min(max(cut, 1), len(logits) - 1)
    whole = moments_of(row)
    for parts in (row[:cut], row[cut:]), (row[cut:], row[:cut]):
        for actual, expected in zip(merged(*map(moments_of, parts)), whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-30)


def test_moments_of_nothing_are_neutral():
    nothing = moments_of(torch.full((3,), -math.inf))
    assert nothing == Moments(*(torch.tensor(x) for x in (-math.inf, 0.0, 0.0, 0.0, 0.0)))
    some = moments_of(torch.tensor([1.0, 2.0, 0.5]))
    assert merged(some, nothing) == some
    assert merged(nothing, some) == some


def test_refuses_shapes_that_do_not_fit():
    # Unwrapped: under the import hook of these tests the shape annotations would refuse it first.
    with pytest.raises(ValueError, match=r"got logits \(2, 5\) and targets \(3,\)"):
        inspect.unwrap(token_statistics)(torch.zeros(2, 5), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("target", [-1, 5])
def test_refuses_targets_outside_the_vocabulary(target):
    with pytest.raises(
        ValueError, match=rf"targets must be in \[0, 5\), got values from {min(target, 2)} to {max(target, 2)}"
    ):
        token_statistics(torch.zeros(2, 5), torch.tensor([2, target]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_temperature(temperature):
    with pytest.raises(ValueError, match=f"temperature must be > 0 and finite, got temperature={temperature}"):
        token_statistics(torch.zeros(1, 5), torch.tensor([0]), temperature=temperature)


def test_refuses_a_row_without_any_token():
    logits = torch.zeros(2, 3, 5)
    logits[1, 2] = -math.inf
    with pytest.raises(ValueError, match=r"every row of logits needs an entry above -inf, row \[1, 2\] has none"):
        token_statistics(logits, torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("vocabulary", [1, 4])
def test_an_undefined_logit_makes_no_plausible_number(value, vocabulary):
    logits = torch.zeros(1, vocabulary)
    logits[0, 0] = value
    assert all(bool(x.isnan().all()) for x in token_statistics(logits, torch.zeros(1, dtype=torch.long)))
