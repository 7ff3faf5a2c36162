"""The Triton row operations against their definitions: on a GPU where there is one, else in triton's interpreter."""

import inspect
import math
import os
import subprocess
import sys

import pytest
import torch
from core_reference import exact_statistics, largest_error, near_certain_logits, row_state, textbook_statistics

from equipoise import linear_token_statistics
from equipoise.statistics import torch_rows, triton_rows, walk
from equipoise.statistics.moments import Moments, absent_part, merged, moments_of, row_statistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton_rows.available(), reason="needs a GPU or TRITON_INTERPRET=1"),
]

HEADS = [
    {"temperature": 1.0, "softcap": None},
    {"temperature": 0.6, "softcap": None},
    {"temperature": 1.0, "softcap": 2.5},
    {"temperature": 1.7, "softcap": 30.0},
]
HEAD_IDS = ["plain", "temperature", "softcap", "both"]


@pytest.fixture(autouse=True)
def _block(monkeypatch):
    """Blocks small enough that tiles of a few dozen entries take several."""
    monkeypatch.setattr(triton_rows, "BLOCK", 16)


def logits_like(rows, width, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, width, generator=generator)).to(DEVICE)


def poisoned(logits):
    """The same numbers as a view with strided rows, in memory that is NaN around it."""
    rows, width = logits.shape
    memory = torch.full((rows, width + 37), math.nan, device=logits.device)
    view = memory[:, 5 : 5 + width]
    view.copy_(logits)
    return view


def tempered(raw, temperature, softcap):
    return (raw if softcap is None else softcap * torch.tanh(raw / softcap)) / temperature


def nothing(rows):
    """Moments to fold into, and targets' logits that are recognisable when left alone."""
    absent = absent_part(torch.Size([rows]), torch.float32, torch.device(DEVICE))
    return Moments(*(x.clone() for x in absent)), torch.full((rows,), 77.0, device=DEVICE)


def folded(tiles, targets, rows=triton_rows, **head):
    """Moments and targets' logits after some tiles, from left to right; `targets` index their concatenation."""
    moments, target_logit = nothing(len(targets))
    start = 0
    for tile in tiles:
        rows.fold_tile(tile, moments, targets.to(tile.device) - start, target_logit, **head)
        start += tile.shape[1]
    return moments, target_logit


def assert_moments_equal(actual, expected, tolerance=2e-6):
    for name, a, e in zip(Moments._fields, actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), rtol=tolerance, atol=1e-35, equal_nan=True, msg=name)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 37, 64])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_sums_of_a_tile_are_those_of_the_definition(head, width):
    raw = logits_like(3, width)
    targets = torch.tensor([0, width - 1, width // 2])
    moments, target_logit = folded([poisoned(raw)], targets, **head)
    exact = tempered(raw.double(), **head)
    assert_moments_equal(moments, moments_of(exact))
    torch.testing.assert_close(target_logit.double(), exact[range(3), targets], rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_tiles_merge_to_the_statistics_of_the_whole_row(head):
    raw = logits_like(4, 61)
    targets = torch.tensor([0, 20, 60, 33])
    moments, target_logit = folded([poisoned(tile) for tile in raw.split([20, 1, 33, 7], dim=1)], targets, **head)
    exact = tempered(raw.double(), **head)
    assert_moments_equal(moments, moments_of(exact))
    expected = textbook_statistics(exact, targets.to(DEVICE))
    for value, reference in zip(row_statistics(moments, target_logit)[:4], expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=2e-6)


def test_a_tile_merges_as_the_definition_merges():
    left, right = logits_like(3, 20), logits_like(3, 23, seed=1)
    right[1] -= 50  # a part that hardly counts
    moments, _ = folded([left, right], torch.zeros(3, dtype=torch.long), temperature=1.0, softcap=None)
    assert_moments_equal(moments, merged(moments_of(left.double()), moments_of(right.double())))


@pytest.mark.parametrize("target", [-3, -1, 19, 20, 31, 32, 2**40])
def test_a_target_outside_the_tile_leaves_its_logit_alone(target):
    # 19 lanes in blocks of 16: columns 19 to 31 are padding.
    moments, target_logit = nothing(2)
    targets = torch.tensor([target, 18], device=DEVICE)
    raw = logits_like(2, 19)
    triton_rows.fold_tile(raw, moments, targets, target_logit, temperature=1.0, softcap=None)
    assert target_logit.tolist() == [77.0, float(raw[1, 18])]
    before = raw.clone()
    state = row_state(moments, target_logit, targets, (torch.ones(2, device=DEVICE), None))
    triton_rows.gradient_tile_(raw, state, temperature=1.0, softcap=None)
    torch.testing.assert_close(raw[0], -before[0].softmax(0), rtol=1e-5, atol=1e-7)


def test_ties_keep_one_maximum_out():
    raw = torch.tensor([[1.0, 4.0, 4.0, 0.0, 4.0], [2.0] * 5, [-math.inf, 3.0, -math.inf, 3.0, 1.0]], device=DEVICE)
    tiles = [raw[:, :2], raw[:, 2:]]
    for parts in ([raw], tiles, tiles[::-1]):
        moments, _ = folded(parts, torch.zeros(3, dtype=torch.long), temperature=1.0, softcap=None)
        assert_moments_equal(moments, moments_of(raw.double()))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_masked_entries_and_tiles_without_any_token_count_as_absent(softcap):
    raw = logits_like(3, 48)
    raw[0, :20] = -math.inf  # the first tile and a block of it
    raw[1, 20:] = -math.inf  # every tile but the first
    raw[2, ::3] = -math.inf
    tiles = [poisoned(tile) for tile in raw.split(20, dim=1)]
    head = {"temperature": 0.7, "softcap": softcap}
    targets = torch.tensor([20, 0, 3])
    moments, target_logit = folded(tiles, targets, **head)
    exact = tempered(raw.double(), **head)
    assert_moments_equal(moments, moments_of(exact))
    assert float(target_logit[2]) == pytest.approx(float(exact[2, 3]), rel=1e-6)  # -inf, unless capped
    assert_gradients(raw, targets, head, widths=(20, 20, 8))


def test_a_row_without_any_token_stays_at_minus_infinity():
    raw = torch.full((1, 40), -math.inf, device=DEVICE)
    moments, _ = folded(raw.split(17, dim=1), torch.tensor([3]), temperature=1.0, softcap=None)
    assert [float(x) for x in moments] == [-math.inf, 0, 0, 0, 0]


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("column", [0, 18, 39])
def test_nan_reaches_every_number_of_its_row_and_no_other(column, softcap):
    raw = logits_like(3, 40)
    raw[0, column] = math.nan
    raw[1, :20] = -math.inf
    head = {"temperature": 1.0, "softcap": softcap}
    moments, target_logit = folded(raw.split(20, dim=1), torch.tensor([5, 25, 5]), **head)
    statistics = row_statistics(moments, target_logit)
    assert all(math.isnan(x[0]) for x in (*moments, *statistics))
    assert all(x[1:].isfinite().all() for x in (*moments, *statistics))
    ones, targets = torch.ones(3, device=DEVICE), torch.zeros(3, dtype=torch.long, device=DEVICE)
    gradient = raw.clone()
    triton_rows.gradient_tile_(gradient, row_state(moments, target_logit, targets, (ones, ones)), **head)
    assert gradient[0].isnan().all()
    assert gradient[1:].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf is NaN on purpose
def test_an_infinite_logit_gives_no_plausible_number():
    raw = logits_like(2, 20)
    raw[0, 4] = math.inf
    raw[1, [3, 18]] = math.inf
    moments, target_logit = folded([raw], torch.tensor([5, 5]), temperature=1.0, softcap=None)
    logprob, entropy, *_ = row_statistics(moments, target_logit)
    assert not logprob.isfinite().any()
    assert entropy.isnan().all()


def gradients(raw, targets, head, upstream, rows, widths, **options):
    """The gradient in the raw logits tile by tile, from statistics of the whole row by the same operations."""
    tiles = [poisoned(tile) for tile in raw.split(list(widths), dim=1)]
    moments, target_logit = folded(tiles, targets, rows, **head)
    state = row_state(moments, target_logit, targets, upstream)
    start = 0
    for part in tiles:
        rows.gradient_tile_(part, state.from_column(start), **head, **options)
        start += part.shape[1]
    return torch.cat(tiles, dim=1)


def exact_gradient(raw, targets, head, upstream):
    """By autograd through the textbook sums in float64; 0 where a logit is -inf."""
    leaf = raw.double().requires_grad_()
    statistics = textbook_statistics(tempered(leaf, **head), targets)
    terms = (statistics.logprob, statistics.entropy)
    total = sum((g.double() * x).sum() for g, x in zip(upstream, terms, strict=True) if g is not None)
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient.nan_to_num(0.0)


def upstream_of(rows, logprob=True, entropy=True):
    g = torch.randn(2, rows, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    return (g[0] if logprob else None, g[1] if entropy else None)


def assert_gradients(raw, targets, head, widths, **given):
    upstream, targets = upstream_of(len(raw), **given), targets.to(raw.device)
    actual = gradients(raw, targets, head, upstream, triton_rows, widths)
    expected = exact_gradient(raw, targets, head, upstream)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("widths", [(41,), (16, 25), (1, 33, 7)])
@pytest.mark.parametrize("given", [{}, {"entropy": False}, {"logprob": False}], ids=["both", "logprob", "entropy"])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_gradients_are_those_of_the_textbook_sums(head, given, widths):
    assert_gradients(logits_like(4, 41), torch.tensor([0, 40, 16, 17]), head, widths, **given)


@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_error_at_most_twice_that_of_plain_torch(head, monkeypatch):
    monkeypatch.setattr(triton_rows, "BLOCK", 256)
    raw, targets = logits_like(16, 700), torch.arange(16, device=DEVICE) * 40
    upstream = upstream_of(16)
    exact = exact_gradient(raw, targets, head, upstream)
    leaf = raw.clone().requires_grad_()
    plain = textbook_statistics(tempered(leaf, **head), targets)
    torch.autograd.backward((plain.logprob, plain.entropy), upstream)
    actual = gradients(raw, targets, head, upstream, triton_rows, (350, 350))
    assert largest_error(actual, exact) <= 2 * largest_error(leaf.grad, exact)
    moments, target_logit = folded(raw.split(350, dim=1), targets, **head)
    reference = textbook_statistics(tempered(raw.double(), **head), targets)
    for a, p, e in zip(row_statistics(moments, target_logit)[:4], plain, reference, strict=True):
        assert largest_error(a, e) <= 2 * largest_error(p.detach(), e)


@pytest.mark.parametrize("p_top", [0.5, 0.99, 0.999997, 1 - 1e-7, 1 - 1e-9])
def test_signs_of_the_tendency_are_right_near_certainty(p_top):
    row = near_certain_logits(p_top, vocabulary=50, seed=7)
    row = row[torch.randperm(50, generator=torch.Generator().manual_seed(8))]
    raw = row.expand(50, -1).contiguous().to(DEVICE)
    moments, target_logit = folded(raw.split(23, dim=1), torch.arange(50), temperature=1.0, softcap=None)
    tendency = row_statistics(moments, target_logit).tendency
    _, _, exact = exact_statistics(row.tolist())
    assert [math.copysign(1, x) for x in tendency.tolist()] == [math.copysign(1, x) for x in exact]
    assert float(tendency[row.argmax()]) <= 0


@pytest.mark.parametrize("p_top", [0.5, 0.99, 0.999997, 1 - 1e-7, 1 - 1e-9])
@pytest.mark.parametrize("head", [HEADS[0], {"temperature": 1.0, "softcap": 60.0}], ids=["plain", "softcap"])
def test_gradient_of_a_near_certain_target_keeps_its_digits(p_top, head):
    raw = near_certain_logits(p_top, vocabulary=50, seed=7)[None].to(DEVICE)
    targets, upstream = torch.zeros(1, dtype=torch.long, device=DEVICE), (torch.ones(1, device=DEVICE), None)
    actual = gradients(raw, targets, head, upstream, triton_rows, (30, 20))[0, 0].double()
    z = tempered(raw.double(), **head)[0]
    slope = 1.0 if head["softcap"] is None else 1 - float(torch.tanh(raw.double()[0, 0] / head["softcap"])) ** 2
    one_minus_p = (z[1:].logsumexp(0) - z.logsumexp(0)).exp()
    torch.testing.assert_close(actual, one_minus_p * slope, rtol=2e-5 if head["softcap"] else 2e-6, atol=0)


def test_softcapped_logits_keep_their_digits_from_tiny_to_huge():
    magnitude = torch.logspace(-30, 30, 121, base=10)
    raw = torch.cat([magnitude, -magnitude, torch.tensor([0.0, 0.249999, 0.25, 0.2500001])])[:, None].to(DEVICE)
    _, target_logit = folded([raw], torch.zeros(len(raw), dtype=torch.long), temperature=1.0, softcap=1.0)
    torch.testing.assert_close(target_logit.double(), torch.tanh(raw.double())[:, 0], rtol=5e-7, atol=0)


def test_agrees_with_the_torch_row_operations():
    raw, targets = logits_like(5, 90), torch.tensor([0, 89, 44, 45, 7], device=DEVICE)
    head = {"temperature": 0.8, "softcap": 20.0}
    for a, b in zip(
        folded(raw.split(45, dim=1), targets, **head),
        folded(raw.split(45, dim=1), targets, rows=torch_rows, **head),
        strict=True,
    ):
        assert_moments_equal(*((x if isinstance(x, tuple) else (x,) * 5) for x in (a, b)), tolerance=5e-6)
    pair = [gradients(raw, targets, head, upstream_of(5), rows, (45, 45)) for rows in (triton_rows, torch_rows)]
    torch.testing.assert_close(*pair, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_into_a_half_precision_buffer_is_rounded_once(dtype):
    raw, targets = logits_like(3, 41), torch.tensor([0, 40, 16], device=DEVICE)
    upstream, head = upstream_of(3), HEADS[0]
    expected = gradients(raw, targets, head, upstream, triton_rows, (41,))
    memory = torch.full((3, 50), math.nan, dtype=dtype, device=DEVICE)
    before = poisoned(raw)
    state = row_state(moments_of(raw), raw[range(3), targets], targets, upstream)
    triton_rows.gradient_tile_(before, state, **head, out=memory[:, :41])
    # Half a digit; a whole one in the interpreter, which rounds towards zero.
    rounding = torch.finfo(dtype).eps / (2 if DEVICE == "cuda" else 1)
    torch.testing.assert_close(memory[:, :41].float(), expected, rtol=rounding, atol=torch.finfo(dtype).tiny)
    assert memory[:, 41:].isnan().all()
    torch.testing.assert_close(before, raw, rtol=0, atol=0)


def test_memory_beyond_the_row_is_neither_read_nor_written():
    raw = logits_like(3, 19)
    view = poisoned(raw)
    targets = torch.tensor([-1, 19, 31], device=DEVICE)
    triton_rows.gradient_tile_(view, row_state(moments_of(raw), raw[:, 0], targets, upstream_of(3)), **HEADS[2])
    assert view.isfinite().all()
    assert view._base[:, :5].isnan().all()
    assert view._base[:, 24:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [triton_rows, torch_rows], ids=["triton", "torch"])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_weights_are_those_of_the_merged_maximum_and_leave_a_new_one_out(head, rows, dtype):
    raw = logits_like(6, 61)
    raw[1, [5, 17, 20, 40]] = 12.0  # ties within a block, over blocks and over tiles
    raw[2, :20] = -math.inf
    raw[3, 40:] = -math.inf
    moments, target_logit = nothing(6)
    running, start = torch.full((6,), -math.inf, device=DEVICE).double(), 0
    for tile in raw.split([20, 1, 33, 7], dim=1):
        tile, width = poisoned(tile), tile.shape[1]
        memory = torch.full((6, width + 3), math.nan, dtype=dtype, device=DEVICE)
        column = torch.full((6,), -1, device=DEVICE)
        targets = torch.zeros(6, dtype=torch.long, device=DEVICE) - start
        rows.fold_tile(tile, moments, targets, target_logit, weights=memory[:, :width], maximum_column=column, **head)
        exact = tempered(tile.double(), **head)
        own, at = exact.max(1)
        grown = own > running
        running = torch.maximum(own, running)
        assert ((column >= 0) == grown).all()
        assert (exact.gather(1, column.clamp(min=0)[:, None])[:, 0] == own)[grown].all()
        assert rows is not triton_rows or (column == torch.where(grown, at, -1)).all()  # the first of several
        expected = (exact - running[:, None].masked_fill(running.isneginf()[:, None], 0)).exp()
        expected[grown] = expected[grown].scatter(1, column[grown, None], 0.0)
        # An exponent of 40 is itself rounded by 4e-6.
        rounding = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(memory[:, :width].double(), expected, rtol=rounding, atol=1e-35)
        assert memory[:, width:].isnan().all()
        start += width
    assert_moments_equal(moments, moments_of(tempered(raw.double(), **head)))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_weights_of_an_undefined_row_are_undefined_and_no_others(softcap):
    raw = logits_like(3, 40)
    raw[0, 18] = math.nan
    moments, target_logit = nothing(3)
    weights, column = torch.empty_like(raw), torch.full((3,), -1, device=DEVICE)
    targets = torch.zeros(3, dtype=torch.long, device=DEVICE)
    settings = {"weights": weights, "maximum_column": column, "temperature": 1.0, "softcap": softcap}
    triton_rows.fold_tile(raw, moments, targets, target_logit, **settings)
    assert weights[0].isnan().all()
    assert weights[1:].isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sum_moves_to_the_frame_of_a_new_maximum(transposed):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(9, 37, generator=generator).to(DEVICE)
    weight = weight.t().contiguous().t() if transposed else weight
    sums = poisoned(torch.randn(4, 37, generator=generator).to(DEVICE))
    sums[2] = 0  # before the first maximum there is nothing
    before = torch.tensor([0.5, 1.0, -math.inf, 2.0], device=DEVICE)
    after = torch.tensor([1.5, 1.0, 3.0, 2.25], device=DEVICE)
    entry = torch.tensor([3, 4, 0, 8], device=DEVICE)
    new_entry = torch.tensor([7, -1, 1, 6], device=DEVICE)
    expected = sums.double()
    for row in (0, 2, 3):
        expected[row] = (expected[row] + weight[entry[row]].double()) * (before[row] - after[row]).double().exp()
    outcomes = []
    for rows in (triton_rows, torch_rows):
        moved, entries = poisoned(sums.clone()), entry.clone()
        rows.move_maximum_(moved, weight, entries, new_entry, before, after)
        torch.testing.assert_close(moved.double(), expected, rtol=1e-6, atol=1e-7)
        assert entries.tolist() == [7, 4, 1, 6]
        outcomes.append(moved)
    assert outcomes[0]._base[:, :5].isnan().all()
    assert outcomes[0]._base[:, 42:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_an_empty_tile_changes_nothing(shape):
    moments, target_logit = nothing(shape[0])
    raw, targets = torch.empty(shape, device=DEVICE), torch.zeros(shape[0], dtype=torch.long, device=DEVICE)
    triton_rows.fold_tile(raw, moments, targets, target_logit, **HEADS[0])
    assert (target_logit == 77).all()
    triton_rows.gradient_tile_(raw, row_state(moments, target_logit, targets, (moments.t0, None)), **HEADS[0])


@pytest.mark.parametrize("trained", ["all", "hidden"])
@pytest.mark.parametrize("outputs", [("logprob",), ("entropy",), ("logprob", "entropy")], ids="+".join)
@pytest.mark.parametrize(
    "head",
    [{}, {"bias": True, "softcap": 2.5, "temperature": 0.7}, {"masked": True}, {"dtype": torch.bfloat16}],
    ids=["plain", "all", "masked", "bfloat16"],
)
def test_linear_statistics_are_those_of_the_torch_backend(head, outputs, trained, monkeypatch):
    monkeypatch.setattr(walk, "TILE", 24)
    monkeypatch.setattr(walk, "CUDA_TILES", (24, 24))
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator) for shape in ((6, 5), (61, 5), (61,))]
    tensors[2][30:55] += -math.inf if head.get("masked") else 0  # a whole tile and parts of its neighbours
    targets = torch.tensor([0, 23, 24, 60, 55, 7], device=DEVICE)
    settings = {key: head[key] for key in ("softcap", "temperature") if key in head}
    results = []
    for backend in ("triton", "torch"):
        leaves = [x.to(DEVICE, head.get("dtype"), copy=True) for x in tensors]
        for leaf in leaves if trained == "all" else leaves[:1]:
            leaf.requires_grad_()
        bias = leaves[2] if head.get("bias") or head.get("masked") else None
        out = linear_token_statistics(*leaves[:2], targets, bias=bias, backend=backend, **settings)
        sum(getattr(out, name).square().sum() for name in outputs).backward()
        results.append([*(x.detach() for x in out), *(x.grad for x in leaves if x.grad is not None)])
    for a, b in zip(*results, strict=True):
        # Sums agree to their own digits; a half-precision gradient may be rounded to the other neighbour.
        rounding = torch.finfo(a.dtype).eps if a.dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(a, b, rtol=rounding, atol=2e-6)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from equipoise.statistics import triton_kernels, triton_rows

CONSTANTS = "capped heated block of_logprob of_entropy weighs"
KINDS = {name: kind for names, kind in (
    ("temperature softcap", "fp32"),
    ("row_stride out_stride width sums_stride weights_stride weight_row_stride weight_column_stride", "i32"),
    ("target_of entry_of new_entry_of maximum_column_of", "*i64"),
    (CONSTANTS, "constexpr"),
) for name in names.split()}
for kernel in (triton_kernels.fold, triton_kernels.gradient, triton_kernels.move_maximum):
    for written in ("*fp32", "*bf16"):
        for flag, num_rows in ((True, 1), (False, 1 << 20)):
            kinds = {name: KINDS.get(name, "*fp32") for name in kernel.arg_names}
            kinds |= {name: written for name in ("out", "weights", "weight") if name in kinds}
            constants = {name: True for name, kind in kinds.items() if kind == "constexpr"}
            constants |= {"block": triton_rows.BLOCK, "weighs": flag, "capped": flag, "heated": flag}
            constants = {name: value for name, value in constants.items() if name in kinds}
            source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
            options = triton_rows._launch(num_rows, triton_rows.BLOCK)
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert "atom." not in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 0
"""


def test_kernels_compile_for_a_gpu_that_need_not_be_there(tmp_path):
    # The interpreter runs what the compiler may refuse.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("num_rows", "block", "warps"),
    [(1, 1024, 8), (2048, 1024, 4), (8191, 1024, 2), (8192, 1024, 1), (10**6, 1024, 1), (1, 256, 2), (1, 16, 1)],
)
def test_few_wide_rows_get_more_warps_each(num_rows, block, warps):
    assert triton_rows._launch(num_rows, block)["num_warps"] == warps


def refused(match, operation, *arguments, **settings):
    with pytest.raises(ValueError, match=match):
        # Unwrapped: under the import hook of these tests the shape annotations would refuse some of these first.
        inspect.unwrap(operation)(*arguments, **HEADS[0], **settings)


def test_refuses_what_the_kernels_would_misread():
    raw, targets = logits_like(2, 5), torch.zeros(2, dtype=torch.long, device=DEVICE)
    moments, target_logit = nothing(2)
    fold, gradient = triton_rows.fold_tile, triton_rows.gradient_tile_
    refused(r"float32 .* got torch.float64", fold, raw.double(), moments, targets, target_logit)
    refused(r"adjacent entries .* strides \(1, 2\)", fold, raw.t().contiguous().t(), moments, targets, target_logit)
    refused(r"target_logit must be contiguous float32 \[2\]", fold, raw, moments, targets, target_logit.double())
    shared = Moments(moments.maximum, *[moments.t0] * 4)
    refused("must be separate tensors", fold, raw, shared, targets, target_logit)
    state = row_state(moments, target_logit, targets, (target_logit, None))
    refused("got None for both", gradient, raw, state._replace(logprob_gradient=None))
    refused(r"log_s0 must be contiguous float32 \[2\]", gradient, raw, state._replace(log_s0=torch.zeros(3)))
    wide = torch.empty(2, 6, device=DEVICE)
    refused("go together", fold, raw, moments, targets, target_logit, weights=raw)
    refused(r"out must be shaped like logits \(2, 5\)", gradient, raw, state, out=wide)
