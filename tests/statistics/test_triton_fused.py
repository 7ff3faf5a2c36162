"""The fused Triton kernels against the definitions, on a Hopper GPU where there is one, else in the interpreter."""

import math
import os
import subprocess
import sys

import pytest
import torch
from core_reference import every_target, exact_statistics, largest_error, near_certain_logits, row_state
from hypothesis import given
from hypothesis import strategies as st

from equipoise import linear_token_statistics
from equipoise.statistics import triton_fused, triton_rows, walk
from equipoise.statistics.moments import Moments, absent_part, moments_of, row_statistics

pytestmark = pytest.mark.slow

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter multiplies the bits of bfloat16 numbers as integers.
DTYPES = [torch.float16, torch.bfloat16] if ON_GPU else [torch.float16]
needs_kernels = pytest.mark.skipif(
    not triton_rows.available() or (ON_GPU and torch.cuda.get_device_capability()[0] != 9),
    reason="needs a Hopper GPU, or TRITON_INTERPRET=1 and none",
)


@pytest.fixture(autouse=True)
def _blocks(monkeypatch):
    """Blocks small enough that a few dozen tokens and entries take several; on a GPU those it is made for."""
    if not ON_GPU:
        monkeypatch.setattr(triton_fused, "BLOCK", {"rows": 16, "columns": 32, "depth": 32})
        monkeypatch.setattr(triton_fused, "GROUP", {"group": 2})
        monkeypatch.setattr(triton_fused, "LAUNCH", {})


SHAPES = [(300, 264, 1100), (129, 64, 257), (1, 8, 3)] if ON_GPU else [(37, 40, 201), (17, 64, 33), (1, 8, 3)]


def head(shape, dtype):
    """Hidden states and weights with NaN beyond the ends of their rows, and targets.

    Their products are exact in float32: a nearly tied maximum turns a last digit of a logit into several of a sum.
    """
    num_rows, width, vocabulary = shape
    generator = torch.Generator().manual_seed(0)

    def poisoned(values):
        memory = torch.full((len(values) + 1, width + 8), math.nan, dtype=dtype, device=DEVICE)
        memory[:-1, :width] = values.to(dtype)
        return memory[:-1, :width]

    hidden = torch.randint(-2, 3, (num_rows, width), generator=generator) / 2
    weight = torch.randn(vocabulary, width, generator=generator) * (4 / width**0.5)
    targets = torch.randint(vocabulary, (num_rows,), generator=generator).to(DEVICE)
    return poisoned(hidden), poisoned((weight * 64).round().clamp(-128, 128) / 64), targets


def logits_of(hidden, weight, temperature=1.0):
    return hidden.double() @ weight.double().t() / temperature


def folded(hidden, weight, targets, temperature=1.0):
    """Moments and targets' logits, which are 77 where nothing was written."""
    moments = Moments(*(x.clone() for x in absent_part(targets.shape, torch.float32, targets.device)))
    target_logit = torch.full_like(moments.maximum, 77.0)
    triton_fused.fold_into(moments, target_logit, hidden, weight, targets, temperature=temperature)
    return moments, target_logit


@needs_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_targets_are_those_of_the_definition(shape, dtype, temperature):
    hidden, weight, targets = head(shape, dtype)
    moments, target_logit = folded(hidden, weight, targets, temperature)
    exact = logits_of(hidden, weight, temperature)
    for name, a, e in zip(Moments._fields, moments, moments_of(exact), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=5e-6 if temperature == 1 else 5e-5, atol=1e-30, msg=name)
    torch.testing.assert_close(target_logit.double(), exact.gather(1, targets[:, None])[:, 0], rtol=3e-7, atol=0)


@needs_kernels
@pytest.mark.parametrize("length", [1, 2, 5])
def test_strips_of_any_length_merge_to_the_same(length, monkeypatch):
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    expected, _ = folded(hidden, weight, targets)
    monkeypatch.setattr(triton_fused, "strip_length", lambda *_: length)
    for a, e in zip(folded(hidden, weight, targets)[0], expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-6, atol=1e-30)


@needs_kernels
def test_parts_of_a_vocabulary_merge_to_the_whole():
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    expected = folded(hidden, weight, targets)
    moments, target_logit = folded(hidden, weight[:70], targets)
    triton_fused.fold_into(moments, target_logit, hidden, weight[70:], targets - 70, temperature=1.0)
    for a, e in zip((*moments, target_logit), (*expected[0], expected[1]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-30)


@needs_kernels
def test_ties_keep_one_maximum_out():
    # One-hot hidden states pick a column of the head, here with its maximum in several blocks, lanes and strips.
    vocabulary = 2000 if ON_GPU else 200
    hidden = torch.eye(8, dtype=torch.float16, device=DEVICE)
    weight = -torch.rand(vocabulary, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16) - 1
    for column, places in enumerate(([0, 1], [3, 7, 8], [5, vocabulary - 1], [31, 32, 130])):
        weight[places, column] = 0.5
    weight[:, 4] = 0.25  # nothing but ties
    targets = torch.tensor([0, 8, 6, 32, 9, 1, 1, 1], device=DEVICE)
    moments, target_logit = folded(hidden, weight, targets)
    for a, e in zip(moments, moments_of(weight.double().t()), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2e-6, atol=0)
    assert (target_logit == weight.t().float().gather(1, targets[:, None])[:, 0]).all()


@needs_kernels
def test_a_target_that_is_not_here_has_no_logit():
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    targets[:3] = torch.tensor([-1, SHAPES[0][2], 2**40], device=DEVICE)
    _, target_logit = folded(hidden, weight, targets)
    assert target_logit[:3].tolist() == [77, 77, 77]
    assert (target_logit[3:] != 77).all()


@needs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_undefined_logit_makes_its_row_undefined_and_no_other(value):
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    hidden = hidden.clone()
    hidden[5, 3] = value
    moments, target_logit = folded(hidden, weight, targets)
    for numbers in row_statistics(moments, target_logit)[:4]:
        assert numbers.isnan().nonzero().tolist() == [[5]]


@needs_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p_top", [0.5, 0.99, 0.999997, 1 - 1e-7, 1 - 1e-9])
def test_signs_of_the_tendency_are_right_near_certainty(p_top, dtype, temperature):
    row = (near_certain_logits(p_top, vocabulary=64, seed=7) * temperature).to(dtype)
    logits, targets = every_target(row)
    # Rows of an identity pick the logits, which products of half precision then sum exactly.
    weight = torch.eye(64, dtype=dtype, device=DEVICE)
    sums = folded(logits.to(DEVICE).contiguous(), weight, targets.to(DEVICE), temperature)
    _, _, exact = exact_statistics((row.double() / temperature).tolist())
    assert [math.copysign(1, x) for x in row_statistics(*sums).tendency.tolist()] == [
        math.copysign(1, x) for x in exact
    ]


@needs_kernels
def test_sums_stay_in_float32_under_another_default():
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    expected = folded(hidden, weight, targets)
    torch.set_default_dtype(torch.bfloat16)
    try:
        moments, target_logit = folded(hidden, weight, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, e in zip((*moments, target_logit), (*expected[0], expected[1]), strict=True):
        assert torch.equal(a, e)


def gradient(hidden, weight, targets, upstream, temperature, start=0, stop=None):
    """Gradient in the logits of a tile, from memory that is NaN before."""
    moments, target_logit = folded(hidden, weight, targets, temperature)
    state = row_state(moments, target_logit, targets - start, upstream)
    tile = weight[start:stop]
    out = torch.full((len(hidden), -(-len(tile) // 8) * 8), math.nan, dtype=hidden.dtype, device=DEVICE)[:, : len(tile)]
    triton_fused.gradient_into(out, hidden, tile, state, temperature=temperature)
    return out


def exact_gradient(hidden, weight, targets, upstream, temperature):
    logits = logits_of(hidden, weight).requires_grad_()
    log_p = (logits / temperature).log_softmax(1)
    outputs = log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    pairs = [(x, g.double()) for x, g in zip(outputs, upstream, strict=True) if g is not None]
    return torch.autograd.grad([x for x, _ in pairs], logits, [g for _, g in pairs])[0]


@needs_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("given", [(True, False), (False, True), (True, True)], ids=["logprob", "entropy", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_the_exact_ones_rounded_once(shape, dtype, given, temperature):
    hidden, weight, targets = head(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(len(hidden), generator=generator).to(DEVICE) if there else None for there in given]
    exact = exact_gradient(hidden, weight, targets, upstream, temperature)
    actual = gradient(hidden, weight, targets, upstream, temperature)
    # What rounding once leaves, with room for a last digit of float32 that falls on the other side.
    rounding = 0.5 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
    assert ((actual.double() - exact).abs() <= 1.01 * rounding + 2e-5 * exact.abs().amax(1, keepdim=True)).all()


@needs_kernels
def test_a_tile_gets_its_part_of_the_gradient():
    hidden, weight, targets = head(SHAPES[0], torch.float16)
    upstream = torch.linspace(-1, 1, len(hidden), device=DEVICE), None
    whole = gradient(hidden, weight, targets, upstream, 1.0)
    for start, stop in ((0, 8), (8, 71), (71, SHAPES[0][2])):
        part = gradient(hidden, weight, targets, upstream, 1.0, start, stop)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=1e-3, atol=1e-7)


@needs_kernels
@pytest.mark.parametrize("p_top", [0.99, 1 - 1e-4, 1 - 1e-6])
def test_gradient_of_a_near_certain_target_keeps_its_digits(p_top):
    row = near_certain_logits(p_top, vocabulary=64, seed=7).half()
    weight = torch.eye(64, dtype=torch.float16, device=DEVICE)
    hidden, targets = row[None].to(DEVICE), row.argmax()[None].to(DEVICE)
    upstream = torch.tensor([64.0], device=DEVICE), None  # above the smallest numbers of float16
    actual = gradient(hidden, weight, targets, upstream, 1.0)[0, int(targets)]
    exact = exact_gradient(hidden, weight, targets, upstream, 1.0)[0, int(targets)]
    assert float(actual) == pytest.approx(float(exact), rel=1e-3)


@needs_kernels
@pytest.mark.parametrize("half", [True, False], ids=["", "float32 head"])
@pytest.mark.parametrize(
    ("outputs", "frozen"),
    [  # before a frozen head the log-prob alone needs no second pass, and its only one carries a sum over logits
        (("logprob",), False),
        (("entropy",), False),
        (("logprob", "entropy"), False),
        (("logprob", "entropy"), True),
    ],
)
def test_linear_statistics_are_those_of_tiles_of_logits(outputs, frozen, half, monkeypatch):
    if not ON_GPU and not (half or outputs == ("logprob",)):
        pytest.skip("one case of a float32 head is enough for the slow interpreter")
    shape = (600, 264, 5003) if ON_GPU else (37, 40, 201)
    monkeypatch.setattr(walk, "CUDA_TILES", (2048, 2048))
    monkeypatch.setattr(walk, "TILE", 48)
    monkeypatch.setattr(triton_fused, "TILE_ELEMENTS", 600 * 2048 if ON_GPU else 37 * 48)
    monkeypatch.setattr(triton_fused, "LEAST_WIDTH", 2048 if ON_GPU else 48)
    monkeypatch.setattr(triton_fused, "MOST_WAVES", 0)
    if not ON_GPU:  # where torch multiplies half precision into nothing else
        monkeypatch.setattr(walk.HeadWalk, "add_hidden_product_", add_hidden_product_in_float32)
    hidden, weight, targets = head(shape, torch.float16)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(len(hidden), generator=generator).to(DEVICE) for _ in outputs]
    upstream[0][::3] = 0.0  # tokens that are dropped
    results, head_type = [], torch.float16 if half else torch.float32
    weight = weight.detach()
    for fused in (True, False):
        monkeypatch.setattr(triton_fused, "fits", lambda *_, fused=fused: fused)
        leaves = hidden.detach().requires_grad_(), weight.to(head_type).requires_grad_(not frozen)
        out = linear_token_statistics(*leaves, targets, backend="triton", temperature=0.8)
        chosen = [getattr(out, name) for name in outputs]
        found = torch.autograd.grad(chosen, leaves[: 1 if frozen else 2], upstream)
        results.append([x.detach().double() for x in (*out, *found)])
    for a, b in zip(*results, strict=True):
        assert largest_error(a, b) <= 2e-3 * float(b.abs().max()) + 1e-6


def add_hidden_product_in_float32(self, out, x, tile):
    out.addmm_(x.float(), tile.weight.float())


@given(st.integers(1, 300), st.integers(1, 2000), st.sampled_from([1, 3, 78, 132]))
def test_strips_keep_the_processors_busy(row_blocks, column_blocks, processors):
    length = triton_fused.strip_length(row_blocks, column_blocks, processors)
    assert 1 <= length <= triton_fused.STRIP
    rounds = math.ceil(row_blocks * math.ceil(column_blocks / length) / processors) * length
    assert rounds <= math.ceil(row_blocks * column_blocks / processors) * 1.5 + 1


@pytest.mark.parametrize("rows", [1, 100, 8192, 65_536, 1_000_000])
def test_tiles_bound_the_memory_of_their_gradient(rows, monkeypatch):
    monkeypatch.setattr(triton_fused, "processors", lambda _: 132)
    width = triton_fused.tile_width(rows, 151_936, torch.device("cuda"))
    assert width * rows <= max(triton_fused.TILE_ELEMENTS, triton_fused.LEAST_WIDTH * rows)
    assert width % 256 == 0
    assert width <= 4 * 8448
    assert triton_fused.tile_width(rows, 7, torch.device("cuda")) == 7
    assert rows != 8192 or width == 8448


def test_fits_only_what_the_kernels_compute(monkeypatch):
    hidden, weight = (torch.zeros(n, 16, dtype=torch.bfloat16, device=DEVICE) for n in (3, 50))
    monkeypatch.setattr(triton_fused, "_on_hopper", lambda _: True)
    assert triton_fused.fits(hidden, weight, None, None)
    assert triton_fused.fits(hidden, weight.float(), None, None)
    assert triton_fused.fits(hidden[:, :8], weight[:, :8], None, None)
    for other in (
        (hidden, weight, weight[:, 0], None),
        (hidden, weight, None, 5.0),
        (hidden.float(), weight.float(), None, None),
        (hidden, weight.double(), None, None),
        (hidden[:0], weight, None, None),
        (hidden, weight[:0], None, None),
        (hidden[:, 1:9], weight[:, :8], None, None),
        (hidden[0].expand(3, 16), weight, None, None),
        (hidden, weight.t().contiguous().t(), None, None),
        (hidden[:, :12].contiguous(), weight[:, :12].contiguous(), None, None),
        (hidden[:, :12], weight[:, :12], None, None),
    ):
        assert not triton_fused.fits(*other)
    monkeypatch.setattr(triton_fused, "_on_hopper", lambda _: False)
    assert not triton_fused.fits(hidden, weight, None, None)


@pytest.mark.parametrize(
    ("version", "compiles"), [("3.5.1", False), ("3.6.0", True), ("3.10.0", True), ("4.0.0", True)]
)
def test_versions_of_triton_that_have_not_run_the_kernels_do_without(version, compiles, monkeypatch):
    monkeypatch.setattr(triton_fused.importlib.metadata, "version", lambda _: version)
    assert triton_fused._compiles.__wrapped__() == compiles


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from equipoise.statistics import triton_fused, triton_fused_kernels as kernels

rows, columns, depth = triton_fused.BLOCK.values()
BLOCKS = {
    "hidden": f"tensordesc<bf16[{rows},{depth}]>",
    "weight": f"tensordesc<bf16[{columns},{depth}]>",
    "out": f"tensordesc<bf16[{rows},{columns // 2}]>",
    "inverse_temperature": "fp32",
    "target_of": "*i64",
}
COUNTS = "num_rows vocabulary width strip num_strips row_blocks column_blocks".split()
CONSTANTS = {"programs": 132, **triton_fused.GROUP, **triton_fused.BLOCK}
CASES = [
    (kernels.fold_strips, {"heated": True}, triton_fused.LAUNCH),
    (kernels.fold_strips, {"heated": False}, triton_fused.LAUNCH),
    (kernels.merge_strips, {"rows": triton_fused.MERGE["rows"]}, {"num_warps": 1, "enable_fp_fusion": False}),
    (kernels.gradient, {"of_logprob": True, "of_entropy": False}, triton_fused.LAUNCH),
    (kernels.gradient, {"of_logprob": False, "of_entropy": True}, triton_fused.LAUNCH),
    (kernels.gradient, {"of_logprob": True, "of_entropy": True}, triton_fused.LAUNCH),
]
for kernel, flags, options in CASES:
    constants = {name: value for name, value in {**CONSTANTS, **flags}.items() if name in kernel.arg_names}
    kinds = {name: BLOCKS.get(name, "i32" if name in COUNTS else "*fp32") for name in kernel.arg_names}
    kinds |= {name: "constexpr" for name in constants}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "atom." not in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 0
    if kernel is not kernels.merge_strips:
        assert "wgmma" in compiled.asm["ptx"] and "cp.async.bulk.tensor" in compiled.asm["ptx"]
"""


def test_kernels_compile_for_a_gpu_that_need_not_be_there(tmp_path):
    if not triton_rows.available():
        pytest.skip("needs triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
