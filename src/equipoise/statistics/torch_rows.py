"""The two row operations of `linear` in plain torch: one tile of raw logits in, its sums or its gradient out.

Row operations run over blocks of rows that stay in cache: a pass over a block costs a tenth of the exponential then, a
pass over the whole tile as much as the exponential itself.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.statistics.moments import Moments
from equipoise.statistics.row_state import RowState

BLOCK = 2**19
"""Logits per block on a CPU: three buffers of 2 MiB, which a third-level cache holds. Smaller blocks, for the second
level, take more time in calls than they save."""

BITS = 1 / math.log(2)
"""In a nat: 2^x takes half the time of e^x on a CPU with AVX2."""


def fold_tile(
    logits: Float[Tensor, "rows tile"],
    moments: Moments,
    targets: Int[Tensor, " rows"],
    target_logit: Float[Tensor, " rows"],
    *,
    temperature: float,
    softcap: float | None,
    weights: Float[Tensor, "rows tile"] | None = None,
    maximum_column: Int[Tensor, " rows"] | None = None,
) -> None:
    """Merge one tile into `moments` and pick the target's tempered logit, both in place.

    The result is `merged(moments, moments_of(tempered tile))`. `logits` are left as they are.

    Args:
        logits: raw logits of the tile, in the type of the sums.
        moments: running sums, tensors of shape [rows].
        targets: column of the target within this tile; a value outside of it means: not in this tile.
        target_logit: overwritten where the target is in the tile.
        temperature: > 0.
        softcap: > 0 or None.
        weights: overwritten with e^(z - maximum), 0 at a new maximum itself, in any floating type; may be `logits`.
            None: not wanted.
        maximum_column: overwritten in the rows whose maximum is new and in this tile; given with `weights`.
    """
    inside, column = _inside(targets, logits.shape[1])
    picked = _tempered(logits.gather(1, column[:, None])[:, 0], temperature, softcap)
    torch.where(inside, picked, target_logit, out=target_logit)
    own = Moments(*(torch.empty_like(x) for x in moments))
    grown = torch.empty_like(moments.maximum, dtype=torch.bool)
    shifted, spare = (_scratch(logits) for _ in range(2))
    formed = weights if weights is not None and weights.dtype == logits.dtype else None
    floor = _exp_floor(logits.dtype)
    for rows in _blocks(logits):
        num_rows = rows.stop - rows.start
        z = _tempered_into(shifted[:num_rows], logits[rows], temperature, softcap)
        weight = spare[:num_rows] if formed is None else formed[rows]
        sums = Moments(*(x[rows] for x in own))
        maximum = sums.maximum
        torch.amax(z, 1, out=maximum)
        torch.gt(maximum, moments.maximum[rows], out=grown[rows])
        torch.maximum(maximum, moments.maximum[rows], out=maximum)
        # Rows that are -inf so far have no maximum to subtract: -inf - -inf would be NaN where "absent" is meant.
        z = torch.sub(z, maximum.masked_fill(maximum.isneginf(), 0.0)[:, None], out=shifted[:num_rows])
        z.clamp_min_(floor)  # e^z is 0 there, and 0 * -inf would be NaN
        new = grown[rows].nonzero()[:, 0]
        # Where all rows have a new one, as in the first tile, it can be left out of the sums without being looked for.
        sought = len(new) > 0 and (len(new) < num_rows or maximum_column is not None)
        if sought:
            at = _argmax(z if len(new) == num_rows else z[new])
            z[new, at] = floor
            if maximum_column is not None:
                maximum_column[rows][new] = at
        _sum_into(sums, z, weight, has_maximum=len(new) > 0 and not sought)
        if weights is not None and formed is None:
            weights[rows] = weight
    _merge_(moments, own, grown)


def _sum_into(sums: Moments, z: Tensor, weight: Tensor, *, has_maximum: bool) -> None:
    """The sums of a block over e^z, which is left in `weight`; z is overwritten.

    Args:
        sums: all but their maximum are overwritten.
        z: logits less the maximum; at the maximum itself 0, or so low that e^z is 0.
        weight: overwritten.
        has_maximum: every row holds its maximum, which is to be left out.
    """
    _, t0, s1, u0, q1 = sums
    torch.exp(z, out=weight)
    torch.sum(weight, 1, out=t0)
    torch.sum(z.mul_(weight), 1, out=s1)  # a maximum adds its z = 0
    torch.sum(z.mul_(weight), 1, out=q1)
    ties = _leave_maximum_out_(weight, t0) if has_maximum else None
    torch.sum(torch.mul(weight, weight, out=z), 1, out=u0)
    if ties is not None:
        u0.add_(ties)


def _leave_maximum_out_(weight: Tensor, t0: Tensor) -> Tensor:
    """Leave one maximum out of the sum t0 of weights e^z, and all weights of 1 out of the weights.

    Returns how many more of them there are. The sum loses a whole number with them, up to the width of a tile, which
    rounding finds.
    """
    with_maximum = t0.clone()
    torch.sum(weight.frac_(), 1, out=t0)
    ties = (with_maximum - t0).round_().sub_(1)
    t0.add_(ties)
    return ties


def move_maximum_(
    sums: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    entry: Int[Tensor, " rows"],
    new_entry: Int[Tensor, " rows"],
    maximum_before: Float[Tensor, " rows"],
    maximum: Float[Tensor, " rows"],
) -> None:
    """Bring sums that leave the maximum out into the frame of a new maximum, in place: `carried.Carried`.

    Args:
        sums: sum of e^(z_k - max) weight_k over all k but the maximum; rows whose maximum stays are left alone.
        weight: the LM head.
        entry: the maximum's entry of the vocabulary; `new_entry` takes its place.
        new_entry: the new maximum's; -1 where the maximum stays.
        maximum_before: -inf where there was none.
        maximum: in whose frame the sums are to be.
    """
    grown = (new_entry >= 0).nonzero()[:, 0]
    scale = (maximum_before[grown] - maximum[grown]).exp()  # 0 at first, when the maximum was -inf
    former = weight[entry[grown]].to(sums.dtype)
    sums[grown] = former.add_(sums[grown]).mul_(scale[:, None])
    entry[grown] = new_entry[grown]


def _merge_(moments: Moments, own: Moments, grown: Tensor) -> None:
    """`moments` rescaled to the maximum of `own`, plus `own`, which leaves the maximum out only where it has grown."""
    absent = moments.maximum.isneginf()
    distance = (moments.maximum - own.maximum).masked_fill_(absent, 0.0)
    scale = distance.exp().masked_fill_(absent, 0.0)
    # An old maximum that is no longer one (e^0 = 1 in its frame) is an ordinary entry now.
    full0, full_square0 = moments.t0 + grown, moments.u0 + grown
    moments.s1.addcmul_(distance, full0).mul_(scale).add_(own.s1)
    moments.t0.copy_(full0.mul_(scale).add_(own.t0))
    scale.square_()
    moments.q1.addcmul_(distance, full_square0).mul_(scale).add_(own.q1)
    moments.u0.copy_(full_square0.mul_(scale).add_(own.u0))
    moments.maximum.copy_(own.maximum)


def gradient_tile_(
    logits: Float[Tensor, "rows tile"],
    state: RowState,
    *,
    temperature: float,
    softcap: float | None,
    out: Float[Tensor, "rows tile"] | None = None,
) -> None:
    """Overwrite raw logits with g (1[k = a] - p_k) - g_H p_k (log p_k + H), times dz/dlogit of temperature and softcap.

    Args:
        logits: raw logits of the tile.
        state: of each row, targets as columns of this tile.
        temperature: > 0.
        softcap: > 0 or None.
        out: where to write the result as well, in any floating type; None for `logits` alone.
    """
    targets, maximum, log_s0, entropy, target_logit, g, g_entropy = state
    here = ((targets >= 0) & (targets < logits.shape[1])).nonzero()[:, 0]
    raw_of_target = logits[here, targets[here]]
    spare = _scratch(logits) if g_entropy is not None else logits
    slope = _scratch(logits) if softcap is not None else logits
    g, g_entropy = (None if x is None else x / temperature for x in (g, g_entropy))
    for rows in _blocks(logits):
        raw = logits[rows]
        num_rows = len(raw)
        if softcap is not None:
            _slope_into(slope[:num_rows], raw, softcap)
        z = _tempered_into(raw, raw, temperature, softcap)
        shifted = z.sub_(maximum[rows, None])
        if g_entropy is None:
            assert g is not None
            # The rounded product costs p |log p| / 2^24, which is nothing beside 1; sums of small terms would feel it.
            shifted.mul_(BITS).exp2_().mul_(-(g[rows] / log_s0[rows].exp())[:, None])
        else:
            log_p = shifted.sub_(log_s0[rows, None])
            log_p.clamp_min_(_exp_floor(z.dtype))  # 0 * -inf would be NaN
            p = torch.mul(log_p, BITS, out=spare[:num_rows]).exp2_()
            factor = log_p.add_(entropy[rows, None]).mul_(-g_entropy[rows, None])
            if g is not None:
                factor.sub_(g[rows, None])
            factor.mul_(p)
        if softcap is not None:
            logits[rows].mul_(slope[:num_rows])
    if g is not None:
        log_p = target_logit[here] - maximum[here] - log_s0[here]
        of_target = -g[here] * log_p.expm1()  # 1 - p with all its digits on a near-certain token
        if g_entropy is not None:
            log_p.clamp_min_(_exp_floor(log_p.dtype))
            of_target -= g_entropy[here] * log_p.exp() * (log_p + entropy[here])
        if softcap is not None:
            of_target *= _slope_into(raw_of_target, raw_of_target, softcap)
        logits[here, targets[here]] = of_target
    if out is not None and out is not logits:
        out.copy_(logits)


def _tempered(raw: Tensor, temperature: float, softcap: float | None) -> Tensor:
    return _tempered_into(torch.empty_like(raw), raw, temperature, softcap)


def _tempered_into(out: Tensor, raw: Tensor, temperature: float, softcap: float | None) -> Tensor:
    """The capped raw logits / temperature, in `out`; `raw` itself where that changes nothing."""
    if softcap is not None:
        return torch.div(raw, softcap, out=out).tanh_().mul_(softcap / temperature)
    if temperature == 1:
        return raw
    return torch.div(raw, temperature, out=out)


def _slope_into(out: Tensor, raw: Tensor, softcap: float) -> Tensor:
    """`out`, holding the derivative of the capped logits in the raw ones, 1 - tanh^2."""
    return torch.div(raw, softcap, out=out).tanh_().square_().neg_().add_(1)


def _inside(targets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in a tile, and the column of each (any valid column for the others)."""
    return (targets >= 0) & (targets < width), targets.clamp(0, width - 1)


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Rows a few at a time on a CPU; all of them elsewhere."""
    num_rows, step = len(logits), _block_rows(logits)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _block_rows(logits: Tensor) -> int:
    return max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))


def _scratch(logits: Tensor) -> Tensor:
    """An uninitialised block."""
    return logits.new_empty(min(_block_rows(logits), len(logits)), logits.shape[1])


def _exp_floor(dtype: torch.dtype) -> float:
    """A finite number whose exponential is 0."""
    info = torch.finfo(dtype)
    return math.log(info.smallest_normal * info.eps) - 1


def _argmax(z: Tensor) -> Tensor:
    """Column of the maximum of each row, narrowed down first: torch finds it at a tenth of the speed of the maximum."""
    num_rows, width = z.shape
    if width % 16 or width < 512:
        return z.argmax(1)
    folded = z.view(num_rows, 16, width // 16)
    column = folded.amax(1).argmax(1)
    part = folded.gather(2, column[:, None, None].expand(-1, 16, 1))[:, :, 0].argmax(1)
    return part * (width // 16) + column
