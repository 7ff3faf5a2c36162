"""`linear_token_statistics` at sizes that only a GPU can do in a test: precision, signs, addresses, memory."""

import math

import pytest
import torch
from core_reference import (
    every_target,
    exact_statistics,
    head_logits,
    largest_error,
    near_certain_logits,
    textbook_statistics,
)

from equipoise import linear_token_statistics
from equipoise.statistics import triton_fused, walk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["one tile", "several tiles"])
def tiles(request, monkeypatch):
    """Logits that are kept, or formed again: on a Hopper GPU two different sets of kernels."""
    if request.param == "several tiles":
        monkeypatch.setattr(walk, "CUDA_TILES", (4096, 4096))
        monkeypatch.setattr(triton_fused, "MOST_WAVES", 1)


def problem(dtype, rows=512, width=1024, vocabulary=20_001):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * (3 / width**0.5)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    upstream = torch.randn(2, rows, generator=generator)
    return *(x.to("cuda", dtype) for x in (hidden, weight)), targets.cuda(), upstream.cuda()


def plain(hidden, weight, targets, temperature=1.0):
    return textbook_statistics(hidden @ weight.t(), targets, temperature)


def values_and_gradients(statistics, hidden, weight, targets, upstream, *, frozen, **head):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_(not frozen)
    out = statistics(hidden, weight, targets, **head)
    chosen = [out.logprob] if frozen else [out.logprob, out.entropy]
    weights = [g.to(x.dtype) for g, x in zip(upstream, chosen, strict=False)]
    leaves = [hidden] if frozen else [hidden, weight]
    return [*(x.detach() for x in out), *torch.autograd.grad(chosen, leaves, weights)]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen head"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_at_most_twice_those_of_plain_torch(dtype, backend, frozen, temperature):
    hidden, weight, targets, upstream = problem(dtype)
    settings = {"frozen": frozen, "temperature": temperature}
    double = (hidden.double(), weight.double(), targets, upstream)
    exact = values_and_gradients(plain, *double, **settings)
    reference = values_and_gradients(plain, hidden, weight, targets, upstream, **settings)
    actual = values_and_gradients(
        linear_token_statistics, hidden, weight, targets, upstream, backend=backend, **settings
    )
    for a, p, e in zip(actual, reference, exact, strict=True):
        assert largest_error(a, e) <= 2 * largest_error(p, e)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("moving", [0, 512], ids=["no row moves", "all rows move"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_bias_and_softcap(dtype, softcap, moving):
    hidden, weight, targets, upstream = problem(dtype)
    bias = torch.randn(len(weight), generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    upstream = upstream[0] * (torch.arange(512, device="cuda") < moving)

    def gradients(statistics, *tensors, **head):
        leaves = [x.detach().requires_grad_() for x in tensors]
        logprob = statistics(*leaves[:2], targets, bias=leaves[2], softcap=softcap, **head).logprob
        return torch.autograd.grad(logprob, leaves, upstream.to(logprob.dtype))

    def textbook(hidden, weight, targets, bias, softcap):
        return textbook_statistics(head_logits(hidden, weight, bias, softcap), targets)

    exact = gradients(textbook, hidden.double(), weight.double(), bias.double())
    reference = gradients(textbook, hidden, weight, bias)
    for a, p, e in zip(gradients(linear_token_statistics, hidden, weight, bias), reference, exact, strict=True):
        assert a.dtype == dtype
        assert largest_error(a, e) <= 2 * largest_error(p, e)


def test_a_float32_head_under_half_precision_hidden_states():
    hidden, weight, targets, upstream = problem(torch.bfloat16)
    settings = {"frozen": False}
    exact = values_and_gradients(plain, hidden.double(), weight.double(), targets, upstream, **settings)
    actual = values_and_gradients(
        linear_token_statistics, hidden, weight.float(), targets, upstream, **settings
    )  # the weights are bf16 numbers, so that only the products of their gradient may round
    assert actual[-1].dtype == torch.float32
    for a, e in zip(actual, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-2, atol=1e-2 * float(e.abs().max()))


def test_no_tokens_at_all():
    hidden, weight, targets, _ = problem(torch.bfloat16, rows=0)
    hidden.requires_grad_(), weight.requires_grad_()
    out = linear_token_statistics(hidden, weight, targets)
    for gradient in torch.autograd.grad(out.logprob.sum(), (hidden, weight)):
        assert not gradient.any()


def test_half_precision_values_are_those_of_float32_sums():
    hidden, weight, targets, _ = problem(torch.bfloat16)
    exact = plain(hidden.double(), weight.double(), targets)
    for value, reference in zip(linear_token_statistics(hidden, weight, targets), exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), reference, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p_top", [0.5, 0.99, 0.999997, 1 - 1e-7, 1 - 1e-9])
def test_signs_of_the_tendency_are_right_near_certainty(p_top, dtype):
    row = near_certain_logits(p_top, vocabulary=300, seed=7).to(dtype)
    logits, targets = every_target(row)
    # Rows of an identity pick the logits, which products of half precision then sum exactly.
    weight = torch.eye(300, dtype=dtype, device="cuda")
    tendency = linear_token_statistics(logits.cuda().contiguous(), weight, targets.cuda()).tendency
    _, _, exact = exact_statistics(row.float().tolist())
    assert [math.copysign(1, x) for x in tendency.tolist()] == [math.copysign(1, x) for x in exact]


def test_addresses_beyond_two_to_the_31():
    rows, vocabulary = 1_100_000, 4100
    generator = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 16, generator=generator, device="cuda").bfloat16().requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator, device="cuda")
    statistics = linear_token_statistics(hidden, weight, targets, backend="triton")
    # Every row has a gradient: those without would be dropped, and the tile would be small.
    (actual,) = torch.autograd.grad(statistics.logprob.sum(), hidden)
    tail = slice(rows - 64, rows)
    few = hidden[tail].detach().requires_grad_()
    expected = linear_token_statistics(few, weight, targets[tail], backend="torch")
    for value, reference in zip(statistics, expected, strict=True):
        torch.testing.assert_close(value[tail], reference, rtol=2e-5, atol=2e-6)
    (gradient,) = torch.autograd.grad(expected.logprob.sum(), few)
    torch.testing.assert_close(actual[tail], gradient, rtol=1e-2, atol=1e-5)
    frozen = linear_token_statistics(hidden, weight.detach(), targets, backend="triton")
    (actual,) = torch.autograd.grad(frozen.logprob.sum(), hidden)
    torch.testing.assert_close(actual[tail], gradient, rtol=1e-2, atol=1e-2)  # weights of the sum are rounded to bf16


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen head"])
def test_scratch_memory_does_not_grow_with_the_vocabulary(frozen):
    def scratch(vocabulary):
        hidden, weight, targets, _ = problem(torch.bfloat16, rows=4096, width=512, vocabulary=vocabulary)
        hidden.requires_grad_(), weight.requires_grad_(not frozen)
        leaves = [hidden] if frozen else [hidden, weight]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = torch.autograd.grad(linear_token_statistics(hidden, weight, targets).logprob.sum(), leaves)
        return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in out)

    small, large = scratch(40_000), scratch(160_000)
    assert large <= small * 1.01
    if not frozen:  # what `equipoise plan` calculates, less the hidden states, which are an input here
        device = torch.device("cuda")
        tile = walk.tile_width(4096, 160_000, device)
        planned = 4096 * (4 * 512 + 32 + 6 * tile)
        if torch.cuda.get_device_capability()[0] == 9:  # no logits, and wider tiles of their gradient
            tile = triton_fused.tile_width(4096, 160_000, device)
            assert 4096 * (4 * 512 + 32 + 2 * tile) < planned
            planned = 4096 * (4 * 512 + 32 + 2 * tile)
        assert large == pytest.approx(planned, rel=0.05)
    assert large < 4096 * 160_000 * 2 / 4  # a quarter of the logits in bf16
