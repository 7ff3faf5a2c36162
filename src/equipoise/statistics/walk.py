"""The walk over an LM head in tiles of its vocabulary, all tokens in each: the matrix products of `linear`."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

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
    """Entries start to stop of the vocabulary: their rows of the LM head and the logits [tokens, stop - start]."""

    start: int
    stop: int
    weight: Tensor
    logits: Tensor


class HeadWalk:
    """Tiles of scale * (hidden @ weight.T + bias), each formed in the same workspace, and products with them.

    Args:
        hidden: [tokens, width].
        weight: [vocabulary, width].
        bias: [vocabulary] or None.
        scale: factor of the logits, left out where it would have to round half-precision operands.
        workspace: flat, of tokens * tile width, or None for a new one.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float = 1.0, workspace: Tensor | None = None
    ):
        self.dtype = accumulation_dtype(hidden.dtype)
        # CUDA multiplies half precision into float32; on a CPU a cast to float32 pays off tenfold. The head may be in
        # float32 all the same, as autocast leaves it: it is cast a tile at a time.
        half = hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16)
        self.operand = hidden.dtype if half else self.dtype
        self.scale = 1.0 if half else scale
        self.hidden = self._times_scale(hidden.to(self.operand))
        self.weight, self.raw_bias = weight, bias
        self.bias = None if bias is None else self._times_scale(bias.to(self.dtype))
        self.tile_width = tile_width(len(hidden), len(weight), hidden.device)
        if workspace is None:
            workspace = torch.empty(len(hidden) * self.tile_width, dtype=self.dtype, device=hidden.device)
        self.workspace = workspace
        cast = weight.dtype != self.operand
        self.cast_weight = weight.new_empty(self.tile_width, weight.shape[1], dtype=self.operand) if cast else None

    def _times_scale(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    @property
    def num_tiles(self) -> int:
        """Tiles in the vocabulary."""
        return -(-len(self.weight) // self.tile_width)

    def tiles(self, *, formed: bool = False) -> Iterator[Tile]:
        """Each tile, whose logits the next one overwrites. `formed`: the workspace holds those of the only one."""
        for start in range(0, len(self.weight), self.tile_width):
            stop = min(start + self.tile_width, len(self.weight))
            weight = self.weight[start:stop]
            if self.cast_weight is not None:
                weight = self.cast_weight[: stop - start].copy_(weight)
            tile = Tile(start, stop, weight, self._view(self.workspace, stop - start))
            if not formed:
                self._form(tile)
            yield tile

    def operand_tile(self, tile: Tile) -> Tensor:
        """Memory shaped like the logits of a tile, in the type that products take: the logits' own where it is theirs.

        The next tile overwrites it.
        """
        if self.operand == self.dtype:
            return tile.logits
        return self._view(self._operand_workspace, tile.stop - tile.start)

    @functools.cached_property
    def _operand_workspace(self) -> Tensor:
        return torch.empty_like(self.workspace, dtype=self.operand)

    def _view(self, workspace: Tensor, width: int) -> Tensor:
        num_rows = len(self.hidden)
        return workspace[: num_rows * width].view(num_rows, width)

    def _form(self, tile: Tile) -> None:
        bias = None if self.bias is None else self.bias[tile.start : tile.stop]
        if self.operand != self.dtype:
            torch.mm(self.hidden, tile.weight.t(), out_dtype=self.dtype, out=tile.logits)
            if bias is not None:
                tile.logits.add_(bias)
        elif bias is None:
            torch.mm(self.hidden, tile.weight.t(), out=tile.logits)
        else:
            torch.addmm(bias, self.hidden, tile.weight.t(), out=tile.logits)

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
