"""The walk over an LM head in tiles of its vocabulary, all tokens in each: the matrix products of `linear`."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.statistics.checks import accumulation_dtype


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
        tile_width: vocabulary entries per tile.
        scale: factor of the logits, left out where it would have to round half-precision operands.
        workspace: flat, at least tokens * tile_width, or None for a new one.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tile_width: int,
        scale: float,
        workspace: Tensor | None = None,
    ):
        self.dtype = accumulation_dtype(hidden.dtype)
        # CUDA multiplies half precision into float32; on a CPU a cast to float32 pays off tenfold.
        half = hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16) and weight.dtype == hidden.dtype
        self.operand = hidden.dtype if half else self.dtype
        self.scale = 1.0 if half else scale
        self.hidden = self._times_scale(hidden.to(self.operand))
        self.weight, self.bias = weight, None if bias is None else self._times_scale(bias.to(self.dtype))
        self.tile_width = tile_width
        if workspace is None:
            workspace = torch.empty(len(hidden) * tile_width, dtype=self.dtype, device=hidden.device)
        self.workspace = workspace
        cast = weight.dtype != self.operand
        self.cast_weight = weight.new_empty(tile_width, weight.shape[1], dtype=self.operand) if cast else None

    def _times_scale(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    @property
    def num_tiles(self) -> int:
        """Tiles in the vocabulary."""
        return -(-len(self.weight) // self.tile_width)

    def tiles(self, *, formed: bool = False) -> Iterator[Tile]:
        """Each tile, whose logits the next one overwrites. `formed`: the workspace holds those of the only one."""
        num_rows = len(self.hidden)
        for start in range(0, len(self.weight), self.tile_width):
            stop = min(start + self.tile_width, len(self.weight))
            weight = self.weight[start:stop]
            if self.cast_weight is not None:
                weight = self.cast_weight[: stop - start].copy_(weight)
            tile = Tile(start, stop, weight, self.workspace[: num_rows * (stop - start)].view(num_rows, stop - start))
            if not formed:
                self._form(tile)
            yield tile

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

    def add_hidden_gradient_(self, out: Tensor, gradient: Tensor, tile: Tile) -> None:
        """Add the tile's part of the gradient in the scaled hidden states, from that in its logits."""
        if self.operand != self.dtype:
            # Not torch.addmm: with an out_dtype, older releases want `out` in the type of the operands.
            out.add_(torch.mm(gradient, tile.weight, out_dtype=self.dtype))
        else:
            out.addmm_(gradient, tile.weight)

    def weight_gradient_into(self, out: Tensor, gradient: Tensor) -> None:
        """Write the gradient in the tile's rows of the LM head, from that in its logits."""
        if out.dtype == self.operand:
            torch.mm(gradient.t(), self.hidden, out=out)
        else:
            out.copy_(gradient.t() @ self.hidden)
