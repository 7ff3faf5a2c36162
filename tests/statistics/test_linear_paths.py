"""Every path of `linear_token_statistics` against float64: what is trained, what is frozen, kept, carried, dropped."""

import inspect
import math

import pytest
import torch
from core_reference import head_logits, largest_error, near_certain_logits, textbook_statistics
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise import linear_token_statistics, token_statistics
from equipoise.statistics import carried, torch_rows, triton_rows, walk
from equipoise.statistics.moments import Moments, absent_part, merged, moments_of

NAMES = ("hidden", "weight", "bias")
TRAINED = [("hidden",), ("weight",), ("bias",), ("hidden", "weight"), ("weight", "bias"), NAMES]
HEADS = [{}, {"temperature": 0.6}, {"softcap": 2.5, "temperature": 1.3}]
ROWS, WIDTH, VOCABULARY = 24, 8, 150


@pytest.fixture(params=[16, 37, 2048], autouse=True)
def tile(request, monkeypatch):
    """Tile widths that divide the vocabulary and do not; the last is wider, so that one tile is all there is."""
    monkeypatch.setattr(walk, "TILE", request.param)
    monkeypatch.setattr(torch_rows, "BLOCK", 5 * request.param)  # several blocks of rows, the last one shorter
    return request.param


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that was not written is NaN, as it may well be outside of a test."""

    def poison(original):
        def nan_filled(*args, **kwargs):
            out = original(*args, **kwargs)
            return out.fill_(math.nan) if out.is_floating_point() else out

        return nan_filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


def problem(dtype=torch.float32, *, seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"hidden": (rows, WIDTH), "weight": (VOCABULARY, WIDTH), "bias": (VOCABULARY,)}
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    upstream = {name: torch.randn(rows, generator=generator) for name in ("logprob", "entropy")}
    return {name: x.to(dtype) for name, x in values.items()}, targets, upstream


def textbook(hidden, weight, targets, bias=None, temperature=1.0, softcap=None):
    return textbook_statistics(head_logits(hidden, weight, bias, softcap), targets, temperature)


def gradients(statistics, values, targets, upstream, trained, **head):
    """Gradients of sum(upstream * statistics) in what is trained."""
    leaves = {name: x.detach().clone().requires_grad_(name in trained) for name, x in values.items()}
    out = statistics(leaves["hidden"], leaves["weight"], targets, bias=leaves["bias"], **head)
    chosen = [getattr(out, name) for name in upstream]
    weights = [g.to(x.dtype) for x, g in zip(chosen, upstream.values(), strict=True)]
    return torch.autograd.grad(chosen, [leaves[name] for name in trained], weights)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("outputs", [("logprob",), ("entropy",), ("logprob", "entropy")])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_as_exact_as_those_of_plain_torch(head, trained, outputs):
    values, targets, upstream = problem()
    upstream = {name: upstream[name] for name in outputs}
    double = {name: x.double() for name, x in values.items()}
    exact = gradients(textbook, double, targets, upstream, trained, **head)
    plain = gradients(textbook, values, targets, upstream, trained, **head)
    for a, p, e in zip(
        gradients(linear_token_statistics, values, targets, upstream, trained, **head), plain, exact, strict=True
    ):
        assert largest_error(a, e) <= 2 * largest_error(p, e)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("head", HEADS)
def test_values_do_not_depend_on_what_is_trained(head, trained):
    values, targets, _ = problem()
    leaves = {name: x.clone().requires_grad_(name in trained) for name, x in values.items()}
    actual = linear_token_statistics(leaves["hidden"], leaves["weight"], targets, bias=leaves["bias"], **head)
    with torch.no_grad():
        expected = linear_token_statistics(values["hidden"], values["weight"], targets, bias=values["bias"], **head)
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=0, atol=0)


@pytest.mark.parametrize("trained", [("hidden",), NAMES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_the_exact_ones_rounded_once(dtype, trained):
    values, targets, upstream = problem(dtype)
    double = {name: x.double() for name, x in values.items()}
    for chosen in ({"logprob": upstream["logprob"]}, upstream):
        exact = gradients(textbook, double, targets, chosen, trained)
        actual = gradients(linear_token_statistics, values, targets, chosen, trained)
        for a, e in zip(actual, exact, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), e, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_gradcheck_of_hidden_states_before_a_frozen_head(head):
    values, targets, _ = problem(torch.float64, rows=3)

    def logprob(hidden):
        return linear_token_statistics(hidden, values["weight"], targets, bias=values["bias"], **head).logprob

    # Repeated backward passes drop other rows each time, and the matrix products then differ in the last digit.
    assert gradcheck(logprob, (values["hidden"].requires_grad_(),), nondet_tol=1e-12)


def walks(monkeypatch, *, entropy=False, trained=("hidden",), recorded=True, **head):
    """How often the logits of the whole vocabulary were formed, and whether a sum for the gradient was carried."""
    formed, sums = [], []
    form, nothing = walk.HeadWalk.logits, carried.Carried.nothing
    monkeypatch.setattr(walk.HeadWalk, "logits", lambda self, tile: (formed.append(tile.stop), form(self, tile))[1])
    monkeypatch.setattr(carried.Carried, "nothing", lambda made: (sums.append(1), nothing(made))[1])
    values, targets, upstream = problem()
    if not recorded:
        with torch.no_grad():
            linear_token_statistics(**{k: x.requires_grad_() for k, x in values.items()}, targets=targets, **head)
    else:
        chosen = upstream if entropy else {"logprob": upstream["logprob"]}
        gradients(linear_token_statistics, values, targets, chosen, trained, **head)
    return sum(stop == VOCABULARY for stop in formed), len(sums)


def test_a_frozen_head_is_walked_once(tile, monkeypatch):
    kept = tile >= VOCABULARY
    assert walks(monkeypatch) == (1, 0 if kept else 1)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"entropy": True}, (2, 1)),
        ({"softcap": 2.0}, (2, 0)),
        ({"trained": NAMES}, (2, 0)),
        ({"recorded": False}, (1, 0)),
    ],
)
def test_other_cases_form_their_logits_again(case, expected, tile, monkeypatch):
    kept = tile >= VOCABULARY
    assert walks(monkeypatch, **case) == ((1, 0) if kept else expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("trained", [("hidden",), NAMES])
def test_hidden_states_may_be_laid_out_in_any_way(trained, backend, tile):
    if backend == "triton" and (tile != 37 or torch.cuda.is_available() or not triton_rows.available()):
        pytest.skip("needs triton's interpreter, for which one width of tiles is enough")
    values, targets, upstream = problem()
    upstream = {"logprob": upstream["logprob"]}
    transposed = values | {
        "hidden": values["hidden"].t().contiguous().t(),
        "weight": values["weight"].t().contiguous().t(),
    }
    plain, other = (
        gradients(linear_token_statistics, x, targets, upstream, trained, backend=backend) for x in (values, transposed)
    )
    for a, b in zip(other, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", [("hidden",), NAMES])
def test_a_second_backward_pass_gives_the_same(trained):
    values, targets, upstream = problem()
    leaves = {name: x.requires_grad_(name in trained) for name, x in values.items()}
    out = linear_token_statistics(**leaves, targets=targets)
    chosen = [leaves[name] for name in trained]
    first, second = (torch.autograd.grad(out.logprob, chosen, upstream["logprob"], retain_graph=True) for _ in "12")
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("trained", [("hidden",), NAMES])
@pytest.mark.parametrize("outputs", [("logprob",), ("logprob", "entropy")])
@pytest.mark.parametrize("moving", [[], [3], range(0, ROWS, 2)])
def test_rows_without_upstream_gradient_are_dropped(moving, outputs, trained):
    values, targets, upstream = problem(torch.float64)
    mask = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, torch.tensor(list(moving), dtype=torch.long), True)
    # Some rows have one of the two gradients only.
    masks = {"logprob": mask, "entropy": mask.roll(1) & (torch.arange(ROWS) % 3 > 0)}
    upstream = {name: upstream[name].double() * masks[name] for name in outputs}
    mask = torch.stack([masks[name] for name in outputs]).any(0)
    expected = gradients(textbook, values, targets, upstream, trained)
    # Padding: whatever is in it must not reach a gradient.
    padded = {**values, "hidden": values["hidden"].masked_fill(~mask[:, None], math.nan)}
    actual = gradients(linear_token_statistics, padded, targets, upstream, trained)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("p_top", [0.9, 0.999, 1 - 1e-6, 1 - 1e-9])
def test_gradients_of_near_certain_tokens_keep_their_digits(p_top, frozen):
    row = near_certain_logits(p_top, vocabulary=150, seed=5)[torch.randperm(150)]
    hidden, targets = row.expand(150, -1).contiguous().requires_grad_(), torch.arange(150)
    weight = torch.eye(150).requires_grad_(not frozen)  # logits are exact then, and dh their gradient
    (actual,) = torch.autograd.grad(linear_token_statistics(hidden, weight, targets).logprob.sum(), hidden)
    p = row.double().softmax(0)
    certain = int(p.argmax())
    exact = torch.eye(150, dtype=torch.float64) - p
    exact[certain, certain] = p[torch.arange(150) != certain].sum()
    torch.testing.assert_close(actual.double(), exact, rtol=3e-6, atol=0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("trained", [("hidden",), NAMES])
def test_masked_vocabulary_has_no_gradient(trained):
    values, _, upstream = problem(torch.float64)
    values["bias"][10:90] = -math.inf
    kept = [*range(10), *range(90, VOCABULARY)]
    reduced = torch.randint(len(kept), (ROWS,), generator=torch.Generator().manual_seed(4))
    targets = torch.tensor(kept)[reduced]
    for chosen in ({"logprob": upstream["logprob"]}, upstream):
        actual = gradients(linear_token_statistics, values, targets, chosen, trained)
        less = {"hidden": values["hidden"], "weight": values["weight"][kept], "bias": values["bias"][kept]}
        expected = gradients(textbook, less, reduced, chosen, trained)
        for name, a, e in zip(trained, actual, expected, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a if name == "hidden" else a[kept], e, rtol=1e-11, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation returns, by its storage."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.num_bytes = max(self.num_bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_never_forms_all_logits(frozen, tile):
    rows, width, vocabulary = 64, 8, max(6400, 8 * tile)
    hidden, weight = (
        torch.randn(rows, width).requires_grad_(),
        torch.randn(vocabulary, width).requires_grad_(not frozen),
    )
    with LargestTensor() as largest:
        out = linear_token_statistics(hidden, weight, torch.zeros(rows, dtype=torch.long))
        (out.logprob + out.entropy).sum().backward()
    assert largest.num_bytes <= weight.numel() * 4 == rows * vocabulary * 4 / 8


@pytest.mark.parametrize("rows", [1, 100, 5000, 100_000])
def test_scratch_memory_is_bounded(rows, monkeypatch):
    monkeypatch.setattr(walk, "TILE", 2048)
    width = walk.tile_width(rows, 151_936, torch.device("cpu"))
    assert rows * width <= max(walk.TILE_ELEMENTS, 256 * rows)
    assert walk.tile_width(rows, 7, torch.device("cpu")) == 7


logit = st.one_of(st.floats(-40, 40, width=32), st.integers(-2, 2).map(float), st.just(-math.inf))


@given(
    rows=st.lists(st.lists(logit, min_size=6, max_size=6), min_size=1, max_size=4),
    cut=st.integers(1, 5),
    temperature=st.sampled_from([1.0, 0.5]),
)
def test_folded_tiles_are_the_merged_parts(rows, cut, temperature):
    raw = torch.tensor(rows, dtype=torch.float64)
    moments = Moments(*(x.clone() for x in absent_part(raw.shape[:1], raw.dtype, raw.device)))
    target_logit = torch.zeros(len(raw), dtype=raw.dtype)
    targets = torch.arange(len(raw)) % 6
    expected = absent_part(raw.shape[:1], raw.dtype, raw.device)
    for start, stop in ((0, cut), (cut, 6)):
        part = raw[:, start:stop].contiguous()
        torch_rows.fold_tile(part, moments, targets - start, target_logit, temperature=temperature, softcap=None)
        expected = merged(expected, moments_of(raw[:, start:stop] / temperature))
    torch.testing.assert_close(target_logit, raw[torch.arange(len(raw)), targets] / temperature, rtol=0, atol=0)
    for actual, reference in zip(moments, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("gap", [20, 60, 85, 100, 300, math.inf])
def test_sums_reach_down_to_the_smallest_number(gap):
    raw, moments = torch.tensor([[0.0, -gap]]), Moments(*(x.clone() for x in moments_of(torch.full((1, 1), -math.inf))))
    torch_rows.fold_tile(raw, moments, torch.zeros(1, dtype=torch.long), torch.zeros(1), temperature=1.0, softcap=None)
    assert float(moments.t0) == pytest.approx(math.exp(-gap), rel=1e-6, abs=1.5e-45)
    assert float(moments.s1) == pytest.approx(0.0 if gap == math.inf else -gap * math.exp(-gap), rel=1e-6, abs=2e-43)


@pytest.mark.parametrize("width", [511, 512, 2048])
def test_argmax_of_any_width(width):
    z = torch.randn(9, width, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch_rows._argmax(z), z.argmax(1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, 70, 149])
def test_an_undefined_logit_makes_its_row_nan_and_no_other(value, position):
    values, targets, _ = problem()
    logits = head_logits(**values)
    expected = token_statistics(logits, targets)
    hidden = torch.cat([logits, torch.zeros(ROWS, 1)], dim=1)
    hidden[2, position] = value
    weight = torch.eye(VOCABULARY + 1)[:VOCABULARY]
    # The zeros of an identity would spread an infinite logit over the row; a row operation sees it alone.
    moments = Moments(*(x.clone() for x in absent_part(torch.Size([ROWS]), torch.float32, logits.device)))
    torch_rows.fold_tile(
        hidden[:, :-1].contiguous(), moments, targets, torch.zeros(ROWS), temperature=1.0, softcap=None
    )
    assert moments.t0[2].isnan() or moments.maximum[2] == value
    assert moments.t0[:2].isfinite().all()
    actual = linear_token_statistics(hidden, weight, targets)
    others = torch.arange(ROWS) != 2
    for x, reference in zip(actual, expected, strict=True):
        assert x[2].isnan()
        torch.testing.assert_close(x[others], reference[others], rtol=2e-5, atol=1e-6)


def test_refuses_triton_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(triton_rows, "available", lambda: False)
    values, targets, _ = problem()
    with pytest.raises(ValueError, match=r"'triton' needs triton and CUDA tensors .*, got torch.float32 on cpu"):
        inspect.unwrap(linear_token_statistics)(**values, targets=targets, backend="triton")
    automatic, torch_alone = (linear_token_statistics(**values, targets=targets, backend=b) for b in ("auto", "torch"))
    torch.testing.assert_close(automatic.logprob, torch_alone.logprob, rtol=0, atol=0)
