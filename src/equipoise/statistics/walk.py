"""The walk over an LM head in tiles of its vocabulary, all tokens in each: the matrix products of `linear`."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.statistics import triton_fused
from equipoise.statistics.checks import accumulation_dtype

TILE = 2048
"""Vocabulary entries per tile on a CPU, at most."""

TILE_ELEMENTS = 2**22
"""Logits per tile on a CPU: with many tokens a tile takes fewer vocabulary entries, which bounds scratch memory."""

CUDA_TILES = (2048, 32768)
"""Least and most vocabulary entries per tile on a GPU: each product needs enough work to fill it."""

CUDA_TILE_ELEMENTS = 2**25
"""Logits per tile on a GPU, within those: 134 MB in float32."""


def tile_width(num_rows: int, vocabulary: int, device: torch.device) -> int:
    """Vocabulary entries per tile."""
    if device.type == "cuda":
        least, most = CUDA_TILES
        width = min(max(CUDA_TILE_ELEMENTS // max(1, num_rows), least), most)
    else:
        width = min(TILE, max(256, TILE_ELEMENTS // max(1, num_rows)))
    return max(1, min(width, vocabulary))


class Tile(NamedTuple):
    """Entries start to stop of the vocabulary and their rows of the LM head, in the type that products take."""

    start: int
    stop: int
    weight: Tensor


class HeadWalk:
    """Tiles of scale * (hidden @ weight.T + bias), each in the same workspace, and products with them.

    Args:
        hidden: [tokens, width].
        weight: [vocabulary, width].
        bias: [vocabulary] or None.
        scale: factor of the logits, left out where it would have to round half-precision operands.
        workspace: flat, of tokens * tile width, or None for a new one once logits are formed.
        fused: logits never are: `triton_fused` forms the gradient in them at once.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float = 1.0,
        workspace: Tensor | None = None,
        *,
        fused: bool = False,
    ):
        self.dtype = accumulation_dtype(hidden.dtype)
        # CUDA multiplies half precision into float32; on a CPU a cast to float32 pays off tenfold. The head may be in
        # float32 all the same, as autocast leaves it: it is cast a tile at a time.
        half = fused or (hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16))
        self.operand = hidden.dtype if half else self.dtype
        self.scale = 1.0 if half else scale
        self.hidden = self._times_scale(hidden.to(self.operand))
        self.weight, self.raw_bias = weight, bias
        self.bias = None if bias is None else self._times_scale(bias.to(self.dtype))
        self.fused = fused
        width = triton_fused.tile_width if fused else tile_width
        self.tile_width = width(len(hidden), len(weight), hidden.device)
        self._given_workspace = workspace
        cast = weight.dtype != self.operand
        self.cast_weight = weight.new_empty(self.tile_width, weight.shape[1], dtype=self.operand) if cast else None

    def _times_scale(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def tiles(self) -> Iterator[Tile]:
        """Each tile; a head of another type is cast tile by tile, each into the memory of the one before."""
        for start in range(0, len(self.weight), self.tile_width):
            stop = min(start + self.tile_width, len(self.weight))
            weight = self.weight[start:stop]
            if self.cast_weight is not None:
                weight = self.cast_weight[: stop - start].copy_(weight)
            yield Tile(start, stop, weight)

    def parts(self) -> Iterator[Tile]:
        """The whole vocabulary at once, or its tiles where they have to be cast: for what forms no logits."""
        if self.cast_weight is not None:
            return self.tiles()
        return iter([Tile(0, len(self.weight), self.weight)])

    def logits(self, tile: Tile) -> Tensor:
        """Those of the tile [tokens, stop - start], in memory that the next tile overwrites."""
        out = self.held(tile)
        bias = None if self.bias is None else self.bias[tile.start : tile.stop]
        if self.operand != self.dtype:
            torch.mm(self.hidden, tile.weight.t(), out_dtype=self.dtype, out=out)
            if bias is not None:
                out.add_(bias)
        elif bias is None:
            torch.mm(self.hidden, tile.weight.t(), out=out)
        else:
            torch.addmm(bias, self.hidden, tile.weight.t(), out=out)
        return out

    def held(self, tile: Tile) -> Tensor:
        """What the memory of the logits holds of the tile."""
        return self._view(self.workspace, tile)

    def operand_tile(self, tile: Tile) -> Tensor:
        """Memory shaped like the logits of a tile, in the type that products take: the logits' own where it is theirs.

        The next tile overwrites it.
        """
        return self.held(tile) if self.operand == self.dtype else self._view(self._operand_workspace, tile)

    @functools.cached_property
    def workspace(self) -> Tensor:
        """Memory of the logits, flat."""
        return self._new_workspace(self.dtype) if self._given_workspace is None else self._given_workspace

    @functools.cached_property
    def _operand_workspace(self) -> Tensor:
        return self._new_workspace(self.operand)

    def _new_workspace(self, dtype: torch.dtype) -> Tensor:
        num_rows, width = len(self.hidden), self._row_stride(self.tile_width)
        return torch.empty(num_rows * width, dtype=dtype, device=self.hidden.device)

    def _row_stride(self, width: int) -> int:
        """Entries from one row of a tile to the next; the copy engine of a GPU wants a multiple of 16 bytes."""
        return -(-width // 8) * 8 if self.fused else width

    def _view(self, workspace: Tensor, tile: Tile) -> Tensor:
        num_rows, width = len(self.hidden), tile.stop - tile.start
        stride = self._row_stride(width)
        return workspace[: num_rows * stride].view(num_rows, stride)[:, :width]

    def zero_hidden(self) -> Tensor:
        """A zero shaped like the hidden states, in the type of the sums; contiguous, whatever they are."""
        return torch.zeros(self.hidden.shape, dtype=self.dtype, device=self.hidden.device)

    def add_hidden_product_(self, out: Tensor, x: Tensor, tile: Tile) -> None:
        """Add x @ (the tile's rows of the LM head) to `out` [tokens, width] in the type of the sums."""
        if self.operand == self.dtype:
            out.addmm_(x, tile.weight)
        elif _adds_half_products(out.device):
            torch.addmm(out, x, tile.weight, out_dtype=self.dtype, out=out)
        else:
            out.add_(torch.mm(x, tile.weight, out_dtype=self.dtype))

    def weight_gradient_into(self, out: Tensor, gradient: Tensor) -> None:
        """Write the gradient in the tile's rows of the LM head, from that in its logits."""
        if out.dtype == self.operand:
            torch.mm(gradient.t(), self.hidden, out=out)
        elif out.dtype == self.dtype and out.is_cuda:
            torch.mm(gradient.t(), self.hidden, out_dtype=self.dtype, out=out)
        else:
            out.copy_(gradient.t() @ self.hidden)


@functools.cache
def _adds_half_products(device: torch.device) -> bool:
    """Whether this torch adds a half-precision product to a float32 matrix; older ones want both in one type."""
    total, factor = torch.zeros(8, 8, device=device), torch.zeros(8, 8, device=device, dtype=torch.bfloat16)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True
