"""Row operations on one vocabulary tile of raw logits, as Triton kernels: what `torch_rows` does, in one pass each.

A tile is a float32 workspace [rows, width] that a matrix product has just filled. Importing this module does not load
triton; the first call does.
"""

import importlib.util
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.statistics.moments import Moments
from equipoise.statistics.row_state import RowState

BLOCK = 1024
"""Vocabulary entries one program holds in registers at a time, a power of two: 32 per thread."""

MOST_WARPS = 8
"""Warps to a row where rows are few, a power of two."""

FULL = 8192
"""Warps that keep a large GPU busy."""

# A program of several would need a barrier before it overwrites what all of them have read.
ONE_WARP = {"num_warps": 1, "enable_fp_fusion": False}


def available() -> bool:
    """Whether the kernels can run here: triton is installed, and there is a CUDA device or triton's interpreter is on.

    The interpreter (TRITON_INTERPRET=1 before triton is first imported) is for tests: it is slower than plain torch.
    """
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
    return importlib.util.find_spec("triton") is not None and (interpreted or torch.cuda.is_available())


def fold_tile(
    logits: Float[Tensor, "rows width"],
    moments: Moments,
    targets: Int[Tensor, " rows"],
    target_logit: Float[Tensor, " rows"],
    *,
    temperature: float,
    softcap: float | None,
    weights: Float[Tensor, "rows width"] | None = None,
    maximum_column: Int[Tensor, " rows"] | None = None,
) -> None:
    """Merge the tempered, capped logits of a tile into `moments`, and fetch the targets' logits, both in place.

    Args:
        logits: float32 raw logits; rows may be strided, entries of a row are adjacent.
        moments: float32, contiguous, five separate tensors; over what was folded before (`absent_part` at first).
        targets: int64 column of each row's target within this tile; any other value means "not in this tile".
        target_logit: float32; the tempered, capped logit of the target, written only where it is in this tile.
        temperature: > 0.
        softcap: > 0 or None.
        weights: overwritten with e^(z - maximum), 0 at a new maximum itself, in any floating type; may be `logits`.
            None: not wanted.
        maximum_column: int64, overwritten in the rows whose maximum is new and in this tile; given with `weights`.

    Raises:
        ValueError: a type or layout the kernel cannot work with.
    """
    from equipoise.statistics import triton_kernels

    _check_tile(logits)
    _check_vectors(logits, **moments._asdict(), target_logit=target_logit)
    if weights is not None:
        _check_like(logits, weights=weights)
    if (weights is None) != (maximum_column is None):
        raise ValueError("weights and maximum_column go together, got one of them")
    if 0 in logits.shape:
        return
    block = _block(logits.shape[1])
    with torch.cuda.device_of(logits):
        triton_kernels.fold[(logits.shape[0],)](
            logits,
            logits.stride(0),
            logits.shape[1],
            *moments,
            targets.contiguous(),
            target_logit,
            # Any pointers will do for what is not wanted: the kernel is compiled without it.
            logits if weights is None else weights,
            logits.stride(0) if weights is None else weights.stride(0),
            targets if maximum_column is None else maximum_column,
            temperature,
            softcap or 1.0,
            capped=softcap is not None,
            heated=temperature != 1,
            weighs=weights is not None,
            block=block,
            **_launch(len(logits), block),
        )


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
        sums: float32, sum of e^(z_k - max) weight_k over all k but the maximum; rows of other tokens are left alone.
        weight: the LM head.
        entry: int64, the maximum's entry of the vocabulary; `new_entry` takes its place.
        new_entry: int64, the new maximum's; -1 where the maximum stays.
        maximum_before: float32, -inf where there was none.
        maximum: float32.

    Raises:
        ValueError: a type or layout the kernel cannot work with.
    """
    from equipoise.statistics import triton_kernels

    _check_tile(sums, "sums")
    _check_vectors(sums, maximum_before=maximum_before, maximum=maximum)
    if 0 in sums.shape:
        return
    with torch.cuda.device_of(sums):
        triton_kernels.move_maximum[(sums.shape[0],)](
            sums,
            sums.stride(0),
            weight,
            weight.stride(0),
            weight.stride(1),
            sums.shape[1],
            entry,
            new_entry,
            maximum_before,
            maximum,
            block=_block(sums.shape[1]),
            **ONE_WARP,
        )


def gradient_tile_(
    logits: Float[Tensor, "rows width"],
    state: RowState,
    *,
    temperature: float,
    softcap: float | None,
    out: Float[Tensor, "rows width"] | None = None,
) -> None:
    """Replace raw logits by the gradient of sum(g logprob + g_H entropy) in them.

    Args:
        logits: float32 raw logits as `fold_tile` saw them; overwritten, unless `out` is given.
        state: of each row, targets as columns of this tile.
        temperature: > 0.
        softcap: > 0 or None.
        out: where to write instead, of any floating type: a half-precision buffer feeds the matrix products directly.

    Raises:
        ValueError: a type or layout the kernel cannot work with, or neither gradient.
    """
    from equipoise.statistics import triton_kernels

    targets, maximum, log_s0, entropy, _, g, g_entropy = state
    if g is None and g_entropy is None:
        raise ValueError("gradient_tile_ needs logprob_gradient or entropy_gradient, got None for both")
    _check_tile(logits)
    _check_vectors(logits, maximum=maximum, log_s0=log_s0, entropy=entropy)
    out = logits if out is None else out
    _check_like(logits, out=out)
    if 0 in logits.shape:
        return
    block = _block(logits.shape[1])
    with torch.cuda.device_of(logits):
        triton_kernels.gradient[(logits.shape[0],)](
            logits,
            logits.stride(0),
            out,
            out.stride(0),
            logits.shape[1],
            maximum,
            log_s0,
            entropy,
            targets.contiguous(),
            # Any pointer will do for a gradient that is not there: the kernel is compiled without it.
            entropy if g is None else g.float().contiguous(),
            entropy if g_entropy is None else g_entropy.float().contiguous(),
            temperature,
            softcap or 1.0,
            capped=softcap is not None,
            heated=temperature != 1,
            of_logprob=g is not None,
            of_entropy=g_entropy is not None,
            block=block,
            **_launch(len(logits), block),
        )


def _launch(num_rows: int, block: int) -> dict:
    """How to launch a program per row, with blocks of that many entries in registers.

    One warp to a row, if there are rows enough: the five sums of each block then need no barrier. On an H200 that takes
    48 us for a tile of 8192 tokens and 4096 entries, eight warps 69 us.
    """
    warps = 1
    while warps < MOST_WARPS and warps * num_rows < FULL and 2 * warps * 32 * 4 <= block:  # 4 entries to a thread
        warps *= 2
    return {"num_warps": warps, "enable_fp_fusion": False}


def _block(width: int) -> int:
    """The smallest power of two that holds a row, up to BLOCK."""
    return min(BLOCK, 1 << (width - 1).bit_length())


def _check_like(logits: Tensor, **tiles: Tensor) -> None:
    """Refuse a tile to be written that is not shaped like the one that is read."""
    for name, tile in tiles.items():
        if tile.shape != logits.shape or (tile.shape[1] > 1 and tile.stride(1) != 1):
            raise ValueError(
                f"{name} must be shaped like logits {tuple(logits.shape)} with adjacent entries in a row, "
                f"got {tuple(tile.shape)} with strides {tile.stride()}"
            )


def _check_tile(logits: Tensor, name: str = "logits") -> None:
    if logits.dtype != torch.float32 or (logits.shape[1] > 1 and logits.stride(1) != 1):
        raise ValueError(
            f"{name} must be float32 with adjacent entries in a row, got {logits.dtype} with strides {logits.stride()}"
        )


def _check_vectors(logits: Tensor, **vectors: Tensor) -> None:
    """Refuse what the kernel would read or write at the wrong place."""
    for name, vector in vectors.items():
        if vector.dtype != torch.float32 or vector.shape != logits.shape[:1] or not vector.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous float32 [{logits.shape[0]}], "
                f"got {vector.dtype} {tuple(vector.shape)} with strides {vector.stride()}"
            )
    if len({vector.data_ptr() for vector in vectors.values()}) < len(vectors) and logits.shape[0] > 0:
        raise ValueError(f"{', '.join(vectors)} must be separate tensors, got some that share memory")
