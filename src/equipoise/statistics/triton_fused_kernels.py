# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false
# Triton compiles these functions from their source: the types a checker sees in them are not the types they run with.
"""Product and row operation in one Triton kernel for Hopper GPUs: logits that never leave the registers.

What `triton_kernels` do to a tile of logits in memory, at the end of the product that forms it. Launched from
`triton_fused`. A block of logits is [rows, columns] of a program; each of its numbers stays with the thread that the
tensor cores give it to. Programs write to places of their own: no atomics, and results do not depend on the schedule.

Fusion of products and sums is allowed here: the logit of a target and the maximum are compared as the one number that
both come from. Counts that change from batch to batch get no kernels of their own (`do_not_specialize`).
"""

from typing import no_type_check

import triton
import triton.language as tl

from equipoise.statistics.triton_kernels import _exp, _floored, _merged, _one_minus_exp, _sums

LANES = tl.constexpr(4)
"""Threads that share a row of a product on Hopper: each has 2 adjacent columns of every 8."""

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _block_of(step, row_blocks, column_blocks, group: tl.constexpr):
    """Row block and column block of a step, in an order that keeps `group` row blocks of hidden states in cache."""
    first = step // (group * column_blocks) * group
    size = tl.minimum(row_blocks - first, group)
    place = step % (group * column_blocks)
    return first + place % size, place // size


@triton.jit
@no_type_check
def _column(target, width):
    """Targets as narrow integers, since all columns are compared with them; -1 for one that is not among them."""
    return tl.where((target >= 0) & (target < width), target, -1).to(tl.int32)


@triton.jit
@no_type_check
def _product(hidden, weight, row, column, width, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr):
    """Logits [rows, columns] from descriptors of the hidden states and the head, which are 0 beyond their ends."""
    total = tl.zeros((rows, columns), tl.float32)
    for k in tl.range(0, width, depth):
        total = tl.dot(hidden.load([row, k]), weight.load([column, k]).T, total)
    return total


@triton.jit
@no_type_check
def _halves(x, rows: tl.constexpr, columns: tl.constexpr):
    """Left and right half of a block: an epilogue of fewer numbers at a time needs fewer registers."""
    return tl.split(tl.permute(tl.reshape(x, (rows, 2, columns // 2)), (0, 2, 1)))


@triton.jit
@no_type_check
def _by_lanes(x, rows: tl.constexpr, columns: tl.constexpr):
    """[rows, columns] as [rows, LANES, columns / LANES], each lane in one thread: sums over it move no data."""
    pairs = tl.reshape(x, (rows, columns // (2 * LANES), LANES, 2))
    return tl.reshape(tl.permute(pairs, (0, 2, 1, 3)), (rows, LANES, columns // LANES))


@triton.jit
@no_type_check
def _folded(z, moments, rows: tl.constexpr, columns: tl.constexpr):
    """Moments [rows, LANES] merged with those of a block."""
    maximum, t0, s1, u0, q1 = moments
    b_maximum, b_t0, b_s1, b_u0, b_q1 = _sums(_by_lanes(z, rows, columns), 2)
    return _merged(maximum, t0, s1, u0, q1, b_maximum, b_t0, b_s1, b_u0, b_q1)


@triton.jit(do_not_specialize=["num_rows", "vocabulary", "strip", "num_strips"])
@no_type_check
def fold_strips(
    hidden,
    weight,
    parts,
    target_of,
    target_logit_of,
    num_rows,
    vocabulary,
    width,
    inverse_temperature,
    strip,
    num_strips,
    heated: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    """Moments of `strip` adjacent blocks of the vocabulary for a block of rows, and the logits of targets in them.

    `parts` is [strips, 5, rows of all]; targets elsewhere are left alone.
    """
    row_block, strip_block = _block_of(tl.program_id(0), tl.cdiv(num_rows, rows), num_strips, group)
    row = row_block * rows + tl.arange(0, rows)
    inside = row < num_rows
    target = _column(tl.load(target_of + row, mask=inside, other=-1), vocabulary)
    target_logit = tl.zeros((rows,), tl.float32)
    zero = tl.zeros((rows, LANES), tl.float32)
    moments = (zero - float("inf"), zero, zero, zero, zero)
    start = strip_block * strip * columns
    stop = tl.minimum(start + strip * columns, vocabulary)
    for first in range(start, stop, columns):
        z = _product(hidden, weight, row_block * rows, first, width, rows, columns, depth)
        if heated:
            z *= inverse_temperature
        column = first + tl.arange(0, columns)
        # Both in every block, though few need it: branches cost more than they spare.
        z = tl.where((column < vocabulary)[None, :], z, -float("inf"))
        target_logit += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
        left, right = _halves(z, rows, columns)
        moments = _folded(left, moments, rows, columns // 2)
        moments = _folded(right, moments, rows, columns // 2)
    maximum, t0, s1, u0, q1 = tl.reduce(moments, 1, _merged)
    part = parts + strip_block.to(tl.int64) * (5 * num_rows) + row
    tl.store(part, maximum, mask=inside)
    tl.store(part + num_rows, t0, mask=inside)
    tl.store(part + 2 * num_rows, s1, mask=inside)
    tl.store(part + 3 * num_rows, u0, mask=inside)
    tl.store(part + 4 * num_rows, q1, mask=inside)
    tl.store(target_logit_of + row, target_logit, mask=inside & (target >= start) & (target < stop))


@triton.jit(do_not_specialize=["num_rows", "num_strips"])
@no_type_check
def merge_strips(parts, maximum_of, t0_of, s1_of, u0_of, q1_of, num_rows, num_strips, rows: tl.constexpr):
    """Merge the moments of strips into those of their rows, in the order of the vocabulary."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    inside = row < num_rows
    maximum = tl.load(maximum_of + row, mask=inside, other=0.0)
    t0 = tl.load(t0_of + row, mask=inside, other=0.0)
    s1 = tl.load(s1_of + row, mask=inside, other=0.0)
    u0 = tl.load(u0_of + row, mask=inside, other=0.0)
    q1 = tl.load(q1_of + row, mask=inside, other=0.0)
    part = parts + row
    for _ in range(num_strips):
        b_maximum = tl.load(part, mask=inside, other=0.0)
        b_t0 = tl.load(part + num_rows, mask=inside, other=0.0)
        b_s1 = tl.load(part + 2 * num_rows, mask=inside, other=0.0)
        b_u0 = tl.load(part + 3 * num_rows, mask=inside, other=0.0)
        b_q1 = tl.load(part + 4 * num_rows, mask=inside, other=0.0)
        part += 5 * num_rows
        maximum, t0, s1, u0, q1 = _merged(maximum, t0, s1, u0, q1, b_maximum, b_t0, b_s1, b_u0, b_q1)
    tl.store(maximum_of + row, maximum, mask=inside)
    tl.store(t0_of + row, t0, mask=inside)
    tl.store(s1_of + row, s1, mask=inside)
    tl.store(u0_of + row, u0, mask=inside)
    tl.store(q1_of + row, q1, mask=inside)


@triton.jit
@no_type_check
def _gradient_part(
    z, column, target, maximum, log_s0, entropy, g, g_entropy, one_minus_p, scale, of_logprob: tl.constexpr,
    of_entropy: tl.constexpr,
):  # fmt: skip
    """Gradient in a part [rows, columns] of raw logits; the upstream gradients come multiplied by `scale`."""
    hit = column[None, :] == target[:, None]
    if of_entropy:
        # One after the other: their sum would round away the digits of log p, which log p + H needs.
        log_p = _floored((z * scale - maximum[:, None]) - log_s0[:, None])
        p = _exp(log_p)
        part = -g_entropy[:, None] * (p * (log_p + entropy[:, None]))
        if of_logprob:
            part += g[:, None] * tl.where(hit, one_minus_p[:, None], -p)
        return part
    # Here log p needs no more digits than p, which is rounded to half precision at once.
    log2_p = z * (scale * LOG2_E) - ((maximum + log_s0) * LOG2_E)[:, None]
    return tl.where(hit, (g * one_minus_p)[:, None], tl.exp2(log2_p) * -g[:, None])


@triton.jit(do_not_specialize=["num_rows", "row_blocks", "column_blocks"])
@no_type_check
def gradient(
    hidden,
    weight,
    out,
    target_of,
    maximum_of,
    log_s0_of,
    entropy_of,
    target_logit_of,
    logprob_gradient_of,
    entropy_gradient_of,
    num_rows,
    width,
    row_blocks,
    column_blocks,
    inverse_temperature,
    of_logprob: tl.constexpr,
    of_entropy: tl.constexpr,
    programs: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    """Gradient of g log p_a + g_H H in raw logits that are formed here; `out` is a descriptor of half-precision memory.

    Each of `programs` takes every so many-th block, so that the loads of the next one begin before this one's end.
    """
    half: tl.constexpr = columns // 2
    for step in tl.range(tl.program_id(0), row_blocks * column_blocks, programs, flatten=True):
        row_block, column_block = _block_of(step, row_blocks, column_blocks, group)
        first_row, first = row_block * rows, column_block * columns
        z = _product(hidden, weight, first_row, first, width, rows, columns, depth)
        row = first_row + tl.arange(0, rows)
        inside = row < num_rows
        target = _column(tl.load(target_of + row, mask=inside, other=-1), column_blocks * columns)
        maximum = tl.load(maximum_of + row, mask=inside, other=0.0)
        log_s0 = tl.load(log_s0_of + row, mask=inside, other=0.0)
        g, g_entropy, entropy, one_minus_p = log_s0, log_s0, log_s0, log_s0  # what is not wanted is not read
        if of_logprob:
            g = tl.load(logprob_gradient_of + row, mask=inside, other=0.0) * inverse_temperature
            log_p = (tl.load(target_logit_of + row, mask=inside, other=0.0) - maximum) - log_s0
            one_minus_p = _one_minus_exp(log_p, _exp(_floored(log_p)))
        if of_entropy:
            g_entropy = tl.load(entropy_gradient_of + row, mask=inside, other=0.0) * inverse_temperature
            entropy = tl.load(entropy_of + row, mask=inside, other=0.0)
        left, right = _halves(z, rows, columns)
        column = first + tl.arange(0, half)
        part = _gradient_part(
            left, column, target, maximum, log_s0, entropy, g, g_entropy, one_minus_p, inverse_temperature,
            of_logprob, of_entropy,
        )  # fmt: skip
        out.store([first_row, first], part.to(out.dtype))
        part = _gradient_part(
            right, column + half, target, maximum, log_s0, entropy, g, g_entropy, one_minus_p, inverse_temperature,
            of_logprob, of_entropy,
        )  # fmt: skip
        out.store([first_row, first + half], part.to(out.dtype))
