"""The walk over an LM head on a Hopper GPU with product and row operation in one kernel: `triton_fused_kernels`.

What does not fit goes through a workspace of logits (`walk`, `triton_rows`): other GPUs, a bias, a softcap, float32. So
do the sum that is carried before a frozen head and a vocabulary of one tile, whose logits are kept. Importing this
module does not load triton; the first call does.
"""

import functools
import importlib.metadata

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.statistics.moments import Moments
from equipoise.statistics.row_state import RowState

BLOCK = {"rows": 128, "columns": 256, "depth": 64}
"""Logits that a program forms at a time, and how much of the width it loads at a time."""

GROUP = {"group": 16}
"""Row blocks that run side by side: their hidden states stay in the second-level cache while the head streams by."""

# Measured on an H200: of 4 stages, blocks of 256 x 128 or 128 x 128 and 8 or 32 row blocks none is faster.
LAUNCH = {"num_warps": 8, "num_stages": 3}

MERGE = {"rows": 32, "num_warps": 1, "enable_fp_fusion": False}
"""How strips are merged: rows of a program, and without fusion, as `triton_kernels` are launched."""

STRIP = 32
"""Blocks of the vocabulary that one program folds, at most."""

TILE_ELEMENTS = 2**23 * 9
"""Logits per tile of a backward pass: 151 MB of gradients in half precision."""

MOST_WAVES, LEAST_WIDTH = 4, 2048
"""Limits of the width of a tile: as many entries as keep all multiprocessors busy, and few enough to bound memory."""


def fits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> bool:
    """Whether these kernels do the work: what they do not compute, and what Hopper's copy engine cannot address."""
    return (
        bias is None
        and softcap is None
        and hidden.dtype in (torch.bfloat16, torch.float16)
        and weight.dtype in (hidden.dtype, torch.float32)  # which is cast a tile at a time
        and 0 not in hidden.shape + weight.shape
        and hidden.shape[1] % 8 == 0
        and all(_addressable(x) for x in (hidden, weight))
        and _on_hopper(hidden)
    )


def _addressable(x: Tensor) -> bool:
    rows_apart = x.stride(0) >= x.shape[1] and x.stride(0) * x.element_size() % 16 == 0
    return rows_apart and x.stride(1) == 1 and x.data_ptr() % 16 == 0


def _on_hopper(x: Tensor) -> bool:
    return (
        x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device)[0] == 9 and _compiles()
    )


@functools.cache
def _compiles() -> bool:
    """Whether this triton is one that the kernels have run with: how they overlap loads and products is up to it."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 6)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 3 for triton's interpreter, so that programs have several blocks."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def tile_width(num_rows: int, vocabulary: int, device: torch.device) -> int:
    """Vocabulary entries per tile of a backward pass.

    Where there is room for it, multiples of 64 per multiprocessor: the blocks of both gradients that a tile leads to,
    in logits and in the head, then come in whole rounds of all multiprocessors.
    """
    wave = 64 * processors(device)
    width = min(TILE_ELEMENTS // num_rows, MOST_WAVES * wave)
    width = width // wave * wave or max(LEAST_WIDTH, width // 256 * 256)
    return min(width, vocabulary)


def fold_into(
    moments: Moments,
    target_logit: Float[Tensor, " rows"],
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "part width"],
    targets: Int[Tensor, " rows"],
    *,
    temperature: float,
) -> None:
    """Merge hidden @ weight.T / temperature into `moments`, and fetch the targets' logits, both in place.

    Args:
        moments: float32, contiguous, five separate tensors; over what was folded before (`absent_part` at first).
        target_logit: float32; written only where the target is in this part of the vocabulary.
        hidden: half precision, as `fits` wants it.
        weight: rows of the LM head in the type of `hidden`, any number of them.
        targets: int64 place of each row's target in this part; any other value means "not here".
        temperature: > 0.
    """
    from equipoise.statistics import triton_fused_kernels as kernels

    num_rows, vocabulary = len(hidden), len(weight)
    row_blocks = _blocks(num_rows, BLOCK["rows"])
    strip = strip_length(row_blocks, _blocks(vocabulary, BLOCK["columns"]), processors(hidden.device))
    num_strips = _blocks(vocabulary, strip * BLOCK["columns"])
    parts = torch.empty(num_strips, 5, num_rows, dtype=torch.float32, device=hidden.device)
    with torch.cuda.device_of(hidden):
        kernels.fold_strips[(row_blocks * num_strips,)](
            _descriptor(hidden, BLOCK["rows"], BLOCK["depth"]),
            _descriptor(weight, BLOCK["columns"], BLOCK["depth"]),
            parts,
            targets.contiguous(),
            target_logit,
            num_rows,
            vocabulary,
            hidden.shape[1],
            1 / temperature,
            strip,
            num_strips,
            heated=temperature != 1,
            **GROUP,
            **BLOCK,
            **LAUNCH,
        )
        kernels.merge_strips[(_blocks(num_rows, MERGE["rows"]),)](parts, *moments, num_rows, num_strips, **MERGE)


def strip_length(row_blocks: int, column_blocks: int, processors: int) -> int:
    """Blocks per program, such that programs of that length fill the processors with the least idle time."""

    def rounds(length: int) -> int:
        return -(-row_blocks * -(-column_blocks // length) // processors) * length

    return min(range(1, STRIP + 1), key=lambda length: (rounds(length), -length))


def gradient_into(
    out: Float[Tensor, "rows tile"],
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "tile width"],
    state: RowState,
    *,
    temperature: float,
) -> None:
    """Write the gradient of sum(g logprob + g_H entropy) in the raw logits hidden @ weight.T of a tile.

    Args:
        out: in the type of `hidden`; rows begin at multiples of 16 bytes.
        hidden: half precision, as `fits` wants it.
        weight: the tile's rows of the LM head.
        state: of each row, in float32, targets as columns of this tile.
        temperature: > 0.
    """
    from equipoise.statistics import triton_fused_kernels as kernels

    targets, maximum, log_s0, entropy, target_logit, g, g_entropy = state
    row_blocks, column_blocks = _blocks(len(hidden), BLOCK["rows"]), _blocks(len(weight), BLOCK["columns"])
    programs = processors(hidden.device)
    with torch.cuda.device_of(hidden):
        kernels.gradient[(min(programs, row_blocks * column_blocks),)](
            _descriptor(hidden, BLOCK["rows"], BLOCK["depth"]),
            _descriptor(weight, BLOCK["columns"], BLOCK["depth"]),
            _descriptor(out, BLOCK["rows"], BLOCK["columns"] // 2),
            targets.contiguous(),
            maximum,
            log_s0,
            entropy,
            target_logit,
            # Any pointer will do for a gradient that is not there: the kernel is compiled without it.
            entropy if g is None else g.float().contiguous(),
            entropy if g_entropy is None else g_entropy.float().contiguous(),
            len(hidden),
            hidden.shape[1],
            row_blocks,
            column_blocks,
            1 / temperature,
            of_logprob=g is not None,
            of_entropy=g_entropy is not None,
            programs=programs,
            **GROUP,
            **BLOCK,
            **LAUNCH,
        )


def _blocks(size: int, of: int) -> int:
    return -(-size // of)


def _descriptor(x: Tensor, rows: int, columns: int):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, [rows, columns])
