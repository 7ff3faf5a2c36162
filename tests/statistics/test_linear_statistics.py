"""Token statistics from hidden states and an LM head: tiles, heads, types, gradients, refusals."""

import inspect
import math

import pytest
import torch
from core_reference import (
    exact_statistics,
    head_logits,
    largest_error,
    near_certain_logits,
    textbook_statistics,
)
from torch.autograd import gradcheck

from equipoise import linear_token_statistics, token_statistics
from equipoise.statistics import walk

FIELDS = ("logprob", "entropy", "tendency", "correction")
HEADS = [
    {},
    {"temperature": 0.6},
    {"softcap": 2.5},
    {"bias": True},
    {"bias": True, "softcap": 2.5, "temperature": 1.7},
]


def problem(*shape, width=5, vocabulary=11, dtype=torch.float64, scale=1.0, seed=0):
    """Hidden states, LM head, bias and targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, shape, generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def settings_of(head, bias):
    """Keyword arguments of `linear_token_statistics`, with the bias where the head has one."""
    return {**head, "bias": bias if head.get("bias") else None}


def textbook(hidden, weight, targets, bias=None, temperature=1.0, softcap=None):
    return textbook_statistics(head_logits(hidden, weight, bias, softcap), targets, temperature)


@pytest.fixture(params=[1, 4, 5, 11, 2048])
def tile(request, monkeypatch):
    monkeypatch.setattr(walk, "TILE", request.param)
    return request.param


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("head", HEADS)
def test_float64_equals_textbook(head):
    hidden, weight, bias, targets = problem(3, 4)
    settings = settings_of(head, bias)
    actual = linear_token_statistics(hidden, weight, targets, **settings)
    expected = textbook(hidden, weight, targets, **settings)
    for name in FIELDS:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("vocabulary", [1, 2, 9])
@pytest.mark.parametrize("shape", [(), (6,), (0,), (2, 3, 2)])
def test_any_vocabulary_and_shape(vocabulary, shape):
    hidden, weight, _, targets = problem(*shape, vocabulary=vocabulary, scale=3.0)
    actual = linear_token_statistics(hidden, weight, targets)
    for value, expected in zip(actual, textbook(hidden, weight, targets), strict=True):
        assert value.shape == shape
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("position", range(11))
def test_maximum_and_target_in_any_tile(position):
    hidden, weight, bias, _ = problem(1)
    bias[position] += 20
    targets = torch.arange(11)
    hidden = hidden.expand(11, -1)
    actual = linear_token_statistics(hidden, weight, targets, bias=bias)
    # Not the textbook: its sums lose digits here, even in float64.
    for value, expected in zip(actual, token_statistics(head_logits(hidden, weight, bias), targets), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("tile")
def test_dense_and_linear_agree_to_the_last_digits_on_the_same_logits():
    logits = torch.stack([near_certain_logits(p, 11, seed=3) for p in (0.5, 0.99, 0.999997)])
    targets = torch.tensor([0, 4, 0])
    # An identity as LM head makes the logits exact.
    actual = linear_token_statistics(logits, torch.eye(11), targets)
    for value, expected in zip(actual, token_statistics(logits, targets), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("tile_size", [1, 16, 50])
@pytest.mark.parametrize("p_top", [0.5, 0.99, 0.999997, 1 - 1e-7, 1 - 1e-9])
def test_float32_signs_of_the_tendency_are_right_near_certainty(p_top, tile_size, monkeypatch):
    monkeypatch.setattr(walk, "TILE", tile_size)
    row = near_certain_logits(p_top, vocabulary=50, seed=7)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(8))
    row = row[order]
    actual = linear_token_statistics(row.expand(50, -1), torch.eye(50), torch.arange(50)).tendency
    _, _, exact = exact_statistics(row.tolist())
    assert [math.copysign(1, x) for x in actual.tolist()] == [math.copysign(1, x) for x in exact]
    assert float(actual[row.argmax()]) <= 0


def test_float32_error_at_most_twice_that_of_plain_torch():
    hidden, weight, _, targets = problem(128, width=64, vocabulary=5000, dtype=torch.float32, scale=0.5)
    actual, plain = linear_token_statistics(hidden, weight, targets), textbook(hidden, weight, targets)
    exact = textbook(hidden.double(), weight.double(), targets)
    for name in FIELDS:
        error = largest_error(getattr(actual, name), getattr(exact, name))
        assert error <= 2 * largest_error(getattr(plain, name), getattr(exact, name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_multiplied_and_summed_in_float32(dtype):
    hidden, weight, bias, targets = problem(64, width=32, vocabulary=301, dtype=dtype)
    actual = linear_token_statistics(hidden, weight, targets, bias=bias)
    plain = textbook(hidden.float(), weight.float(), targets, bias.float())
    exact = textbook(hidden.double(), weight.double(), targets, bias.double())
    for name in FIELDS:
        value = getattr(actual, name)
        assert value.dtype == torch.float32
        assert largest_error(value, getattr(exact, name)) <= 2 * largest_error(
            getattr(plain, name), getattr(exact, name)
        )


def gradients_of(statistics, hidden, weight, bias, targets, upstream, **head):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    out = statistics(*leaves[:2], targets, bias=leaves[2], **head)
    torch.autograd.backward((out.logprob, out.entropy), tuple(upstream.to(out.entropy.dtype)))
    return [x.grad for x in leaves]


@pytest.mark.parametrize("head", [{}, {"softcap": 3.0, "temperature": 0.7}])
def test_float32_gradient_error_at_most_twice_that_of_plain_torch(head):
    hidden, weight, bias, targets = problem(96, width=32, vocabulary=700, dtype=torch.float32)
    upstream = torch.randn(2, 96, generator=torch.Generator().manual_seed(2))
    actual = gradients_of(linear_token_statistics, hidden, weight, bias, targets, upstream, **head)
    plain = gradients_of(textbook, hidden, weight, bias, targets, upstream, **head)
    exact = gradients_of(textbook, hidden.double(), weight.double(), bias.double(), targets, upstream, **head)
    for a, p, e in zip(actual, plain, exact, strict=True):
        assert largest_error(a, e) <= 2 * largest_error(p, e)


@pytest.mark.parametrize("tile_size", [4, 2048])
@pytest.mark.parametrize("outputs", [("logprob",), ("entropy",), ("logprob", "entropy")])
@pytest.mark.parametrize("head", HEADS)
def test_gradcheck(head, outputs, tile_size, monkeypatch):
    monkeypatch.setattr(walk, "TILE", tile_size)
    hidden, weight, bias, targets = problem(2, 2, width=3, vocabulary=7)
    leaves = [x.requires_grad_() for x in ((hidden, weight, bias) if head.get("bias") else (hidden, weight))]

    def chosen(hidden, weight, bias=None):
        statistics = linear_token_statistics(hidden, weight, targets, **{**head, "bias": bias})
        return tuple(getattr(statistics, name) for name in outputs)

    assert gradcheck(chosen, leaves)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient_and_change_no_other(trained):
    inputs = dict(zip(("hidden", "weight", "bias", "targets"), problem(6), strict=True))
    inputs[trained].requires_grad_()

    def value(tensor):
        out = linear_token_statistics(**{**inputs, trained: tensor}, softcap=4.0)
        return out.logprob.sum() + 3 * out.entropy.sum()

    assert gradcheck(value, (inputs[trained],))
    value(inputs[trained]).backward()
    assert [name for name, x in inputs.items() if x.grad is not None] == [trained]


def test_tendency_and_correction_are_detached():
    hidden, weight, _, targets = problem(3)
    out = linear_token_statistics(hidden.requires_grad_(), weight, targets)
    assert [value.requires_grad for value in out] == [True, True, False, False]


@pytest.mark.usefixtures("tile")
def test_masked_vocabulary_counts_as_absent_forward_and_backward():
    hidden, weight, bias, _ = problem(4)
    targets = torch.tensor([0, 1, 9, 10])
    kept = [0, 1, 2, 8, 9, 10]
    bias[3:8] = -math.inf  # whole tiles of them, for small tiles
    upstream = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    actual = gradients_of(linear_token_statistics, hidden, weight, bias, targets, upstream)
    reduced = torch.tensor([kept.index(t) for t in targets])
    expected = gradients_of(textbook, hidden, weight[kept], bias[kept], reduced, upstream)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual[1][kept], expected[1], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual[2][kept], expected[2], rtol=1e-11, atol=1e-13)
    assert (actual[1][3:8] == 0).all()
    assert (actual[2][3:8] == 0).all()


@pytest.mark.usefixtures("tile")
def test_nan_stays_in_its_row():
    hidden, weight, _, targets = problem(3)
    expected = linear_token_statistics(hidden, weight, targets)
    hidden[1, 2] = math.nan
    for value, reference in zip(linear_token_statistics(hidden, weight, targets), expected, strict=True):
        assert value[1].isnan()
        torch.testing.assert_close(value[[0, 2]], reference[[0, 2]], rtol=0, atol=0)


def refused(match, **changes):
    hidden, weight, bias, targets = problem(2, 3)
    inputs = {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets, **changes}
    # Unwrapped: under the import hook of these tests the shape annotations would refuse some of these first.
    with pytest.raises(ValueError, match=match):
        inspect.unwrap(linear_token_statistics)(**inputs)


def test_refuses_shapes_that_do_not_fit():
    refused(r"got hidden \(2, 3, 5\), targets \(2,\), weight \(11, 5\)", targets=torch.tensor([0, 1]))
    refused(r"hidden must be .* weight \(11, 4\)", weight=torch.zeros(11, 4))
    refused("hidden must have a width above 0", hidden=torch.zeros(2, 3, 0), weight=torch.zeros(11, 0))
    refused(r"bias must be \[11\] like the vocabulary, got \(10,\)", bias=torch.zeros(10))


def test_refuses_two_devices():
    refused(r"must be on one device, got \['cpu', 'meta'\]", weight=torch.zeros(11, 5, device="meta"))


@pytest.mark.parametrize("softcap", [0.0, -1.0, math.nan])
def test_refuses_softcap(softcap):
    refused(f"softcap must be > 0 and finite, or None, got softcap={softcap}", softcap=softcap)


def test_refuses_an_unknown_backend():
    refused("backend must be one of auto, torch, triton, got backend='cuda'", backend="cuda")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_temperature(temperature):
    refused(f"temperature must be > 0 and finite, got temperature={temperature}", temperature=temperature)


def test_refuses_targets_outside_the_vocabulary():
    refused(r"targets must be in \[0, 11\), got values from 0 to 11", targets=torch.tensor([[0, 1, 2], [3, 4, 11]]))
    refused(r"targets must be in \[0, 11\), got values from -1 to 4", targets=torch.tensor([[0, 1, 2], [3, 4, -1]]))


def test_refuses_a_row_without_any_token():
    refused("every row of logits needs an entry above -inf, row .* has none", bias=torch.full((11,), -math.inf))
