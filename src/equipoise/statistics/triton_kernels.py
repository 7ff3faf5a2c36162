# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false
# Triton compiles these functions from their source: the types a checker sees in them are not the types they run with.
"""The row operations of a tile of raw logits as Triton kernels: one program per row, launched from `triton_rows`.

Definitions: `moments.moments_of`, `moments.merged` and `dense.logit_gradient`. One program owns one row from its first
load to its last store, so there is nothing to race for and no atomic, and results do not depend on the schedule.

Launched without fusion of products and sums: a logit then has the same last digit in both kernels, which equality with
the maximum and the digits of log p rest on. Where fusion does no harm it is written out.
"""

from typing import no_type_check

import triton
import triton.language as tl

# `no_type_check`: arguments are pointers and compile-time constants, which no annotation of the package describes.


@triton.jit
@no_type_check
def _floored(x):
    """x where e^x is a float32 number above 0, else a finite exponent with e^x = 0, so that 0 * -inf cannot arise."""
    return tl.maximum(x, -150.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _exp(x):
    """e^x for finite x <= 0 as 2^(x log2 e), with what rounding takes from the exponent put back: about 2 ulp."""
    exponent = x * 1.4426950216293335
    rest = tl.fma(x, 1.4426950216293335, -exponent)
    rest = tl.fma(x, 1.9259629911266175e-08, rest)  # log2 e - its own rounding
    power = tl.exp2(exponent)
    return tl.fma(power, rest * 0.6931471805599453, power)


@triton.jit
@no_type_check
def _one_minus_exp(x, exp_x):
    """1 - e^x for x <= 0 with all its digits near 0, by Taylor up to x^7; the first term left out is 2e-9 of it."""
    series = tl.fma(x, 1 / 5040, 1 / 720)
    series = tl.fma(x, series, 1 / 120)
    series = tl.fma(x, series, 1 / 24)
    series = tl.fma(x, series, 1 / 6)
    series = tl.fma(x, series, 1 / 2)
    series = tl.fma(x, series, 1.0)
    return tl.where(x > -0.25, -x * series, 1.0 - exp_x)


@triton.jit
@no_type_check
def _tanh_and_slope(x):
    """tanh x and 1 - tanh^2 x, both with small relative error: no difference of nearly equal numbers is formed."""
    magnitude = tl.abs(x)
    decay = _exp(_floored(-2.0 * magnitude))
    # (1 - decay) cancels near 0. Taylor up to x^11: the first term left out is 2e-10 of tanh x at x = 0.25.
    near = tl.minimum(magnitude, 0.25)
    q = near * near
    series = tl.fma(q, -1382 / 155925, 62 / 2835)
    series = tl.fma(q, series, -17 / 315)
    series = tl.fma(q, series, 2 / 15)
    series = tl.fma(q, series, -1 / 3)
    series = tl.fma(near * q, series, near)
    # NaN is not < 0.25 and stays NaN by the other branch.
    tanh = tl.where(magnitude < 0.25, series, tl.div_rn(1.0 - decay, 1.0 + decay))
    slope = tl.div_rn(4.0 * decay, (1.0 + decay) * (1.0 + decay))
    return tl.where(x < 0, -tanh, tanh), slope


@triton.jit
@no_type_check
def _tempered(raw, temperature, softcap, capped: tl.constexpr, heated: tl.constexpr):
    """Tempered logits and the derivative of the capped ones in the raw ones."""
    slope = 1.0
    if capped:
        tanh, slope = _tanh_and_slope(tl.div_rn(raw, softcap))
        raw = softcap * tanh
    if heated:
        raw = tl.div_rn(raw, temperature)
    return raw, slope


@triton.jit
@no_type_check
def _sums(z, axis: tl.constexpr):
    """`moments_of` one block, or of one in each row of it."""
    maximum = tl.max(z, axis=axis)  # passes NaN over
    # A block without any token: -inf - -inf would be NaN where "absent" is meant.
    reference = tl.where(tl.abs(maximum) == float("inf"), 0.0, maximum)
    shifted = _floored(z - tl.expand_dims(reference, axis))
    # Entries as large as the maximum all weigh 1: all but one of them are counted instead of looked for, so that ties
    # need no choice. NaN equals nothing and reaches the sums.
    at_maximum = z == tl.expand_dims(maximum, axis)
    weight = tl.where(at_maximum, 0.0, _exp(shifted))
    weighted = shifted * weight
    count = tl.sum(at_maximum.to(tl.float32), axis=axis)
    ties = tl.maximum(count - 1.0, 0.0)  # a block without any token is left out by `_merged`, whatever its sums
    t0 = tl.sum(weight, axis=axis) + ties
    s1 = tl.sum(weighted, axis=axis)
    u0 = tl.sum(weight * weight, axis=axis) + ties
    q1 = tl.sum(weighted * weight, axis=axis)
    return tl.where(t0 == t0, maximum, t0), t0, s1, u0, q1


@triton.jit
@no_type_check
def _merged(a_maximum, a_t0, a_s1, a_u0, a_q1, b_maximum, b_t0, b_s1, b_u0, b_q1):
    """`moments.merged`."""
    a_wins = a_maximum >= b_maximum
    maximum = tl.where(a_wins, a_maximum, b_maximum)
    loser = tl.where(a_wins, b_maximum, a_maximum)
    absent = loser == -float("inf")
    distance = tl.where(absent, 0.0, loser - tl.where(absent, 0.0, maximum))
    scale = tl.where(absent, 0.0, _exp(_floored(distance)))
    square = scale * scale
    # The loser's own maximum (e^0 = 1 in its frame) is an ordinary entry of the union.
    full0 = 1.0 + tl.where(a_wins, b_t0, a_t0)
    full_square0 = 1.0 + tl.where(a_wins, b_u0, a_u0)
    t0 = tl.where(a_wins, a_t0, b_t0) + scale * full0
    s1 = tl.where(a_wins, a_s1, b_s1) + scale * (tl.where(a_wins, b_s1, a_s1) + distance * full0)
    u0 = tl.where(a_wins, a_u0, b_u0) + square * full_square0
    q1 = tl.where(a_wins, a_q1, b_q1) + square * (tl.where(a_wins, b_q1, a_q1) + distance * full_square0)
    return tl.where(loser == loser, maximum, loser), t0, s1, u0, q1


@triton.jit
@no_type_check
def _weigh(
    logits, weights, width, maximum, grown, temperature, softcap, capped: tl.constexpr, heated: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Write e^(z - maximum) of a row, 0 at a maximum that has grown, whose column is returned (else `width`)."""
    # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN where 0 is meant.
    reference = tl.where(tl.abs(maximum) == float("inf"), 0.0, maximum)
    new_maximum = tl.where(grown, maximum, float("nan"))  # equals nothing where the maximum has stayed
    maximum_column = tl.zeros((), tl.int32) + width  # a tensor, also where a width of 1 is a constant
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        inside = column < width
        raw = tl.load(logits + column, mask=inside, other=-float("inf"))
        tempered, _slope = _tempered(raw, temperature, softcap, capped, heated)
        weight = _exp(_floored(tempered - reference))
        # Of several entries at the maximum the first one is left out, in this block or an earlier one.
        first = tl.min(tl.where(inside & (tempered == new_maximum), column, width), axis=0)
        first = tl.where(maximum_column == width, first, width)
        maximum_column = tl.minimum(maximum_column, first)
        weight = tl.where(column == first, 0.0, weight)
        tl.store(weights + column, weight.to(weights.dtype.element_ty), mask=inside)
    return maximum_column


@triton.jit
@no_type_check
def fold(
    logits,
    row_stride,
    width,
    maximum_of,
    t0_of,
    s1_of,
    u0_of,
    q1_of,
    target_of,
    target_logit_of,
    weights,
    weights_stride,
    maximum_column_of,
    temperature,
    softcap,
    capped: tl.constexpr,
    heated: tl.constexpr,
    weighs: tl.constexpr,
    block: tl.constexpr,
):
    """Merge a row of the tile into the moments of that row, and take the target's logit where it is in the tile.

    `weighs`: then also write e^(z - maximum) of the merged maximum, 0 at a new one itself, and where a new one is.
    """
    row = tl.program_id(0).to(tl.int64)
    before, t0, s1 = tl.load(maximum_of + row), tl.load(t0_of + row), tl.load(s1_of + row)
    u0, q1 = tl.load(u0_of + row), tl.load(q1_of + row)
    maximum = before
    target = tl.load(target_of + row)
    in_tile = (target >= 0) & (target < width)
    raw_of_target = tl.load(logits + row * row_stride + target, mask=in_tile, other=0.0)
    # In every lane below the arithmetic is the same, so that a target that is the maximum equals it.
    target_logit, _slope_of_target = _tempered(raw_of_target, temperature, softcap, capped, heated)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        inside = column < width
        raw = tl.load(logits + row * row_stride + column, mask=inside, other=-float("inf"))
        tempered, _slope = _tempered(raw, temperature, softcap, capped, heated)
        if capped:  # which has made -inf a finite number
            tempered = tl.where(inside, tempered, -float("inf"))
        b_maximum, b_t0, b_s1, b_u0, b_q1 = _sums(tempered, 0)
        maximum, t0, s1, u0, q1 = _merged(maximum, t0, s1, u0, q1, b_maximum, b_t0, b_s1, b_u0, b_q1)
    tl.store(maximum_of + row, maximum)
    tl.store(t0_of + row, t0)
    tl.store(s1_of + row, s1)
    tl.store(u0_of + row, u0)
    tl.store(q1_of + row, q1)
    tl.store(target_logit_of + row, target_logit, mask=in_tile)
    if weighs:
        grown = maximum > before
        maximum_column = _weigh(
            logits + row * row_stride, weights + row * weights_stride, width, maximum, grown,
            temperature, softcap, capped, heated, block,
        )  # fmt: skip
        tl.store(maximum_column_of + row, maximum_column.to(tl.int64), mask=grown)


@triton.jit
@no_type_check
def move_maximum(
    sums,
    sums_stride,
    weight,
    weight_row_stride,
    weight_column_stride,
    width,
    entry_of,
    new_entry_of,
    maximum_before_of,
    maximum_of,
    block: tl.constexpr,
):
    """Where a row has a new maximum: its sum of e^(z - max) weight, without the maximum, in the frame of the new one.

    The old maximum's row of the LM head joins the sum, and the new entry takes the place of the old.
    """
    row = tl.program_id(0).to(tl.int64)
    new_entry = tl.load(new_entry_of + row)
    if new_entry >= 0:
        former_row = weight + tl.load(entry_of + row) * weight_row_stride
        # 0 for the first maximum, before which there was -inf.
        scale = _exp(_floored(tl.load(maximum_before_of + row) - tl.load(maximum_of + row)))
        for start in range(0, width, block):
            column = start + tl.arange(0, block)
            inside = column < width
            place = column.to(tl.int64) * weight_column_stride  # a head may be stored by columns
            sum_ = tl.load(sums + row * sums_stride + column, mask=inside, other=0.0)
            former = tl.load(former_row + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(sums + row * sums_stride + column, (sum_ + former) * scale, mask=inside)
        tl.store(entry_of + row, new_entry)


@triton.jit
@no_type_check
def gradient(
    logits,
    row_stride,
    out,
    out_stride,
    width,
    maximum_of,
    log_s0_of,
    entropy_of,
    target_of,
    logprob_gradient_of,
    entropy_gradient_of,
    temperature,
    softcap,
    capped: tl.constexpr,
    heated: tl.constexpr,
    of_logprob: tl.constexpr,
    of_entropy: tl.constexpr,
    block: tl.constexpr,
):
    """Gradient of g log p_a + g_H H in a row of raw logits: (g (1[k = a] - p_k) - g_H p_k (log p_k + H)) dz_k/draw."""
    row = tl.program_id(0).to(tl.int64)
    maximum, log_s0 = tl.load(maximum_of + row), tl.load(log_s0_of + row)
    target = tl.load(target_of + row)
    target = tl.where((target >= 0) & (target < width), target, -1).to(tl.int32)  # narrow: compared with every column
    if of_logprob:
        g = tl.load(logprob_gradient_of + row)
        if heated:
            g = tl.div_rn(g, temperature)
    if of_entropy:
        entropy, g_entropy = tl.load(entropy_of + row), tl.load(entropy_gradient_of + row)
        if heated:
            g_entropy = tl.div_rn(g_entropy, temperature)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        inside = column < width
        raw = tl.load(logits + row * row_stride + column, mask=inside, other=0.0)
        tempered, slope = _tempered(raw, temperature, softcap, capped, heated)
        # One after the other: their sum would round away the digits of log p.
        log_p = _floored((tempered - maximum) - log_s0)
        p = _exp(log_p)
        if of_logprob:
            in_raw = g * tl.where(column == target, _one_minus_exp(log_p, p), -p)
            if of_entropy:
                in_raw -= g_entropy * (p * (log_p + entropy))
        else:
            in_raw = -g_entropy * (p * (log_p + entropy))
        if capped:
            in_raw *= slope
        tl.store(out + row * out_stride + column, in_raw.to(out.dtype.element_ty), mask=inside)
