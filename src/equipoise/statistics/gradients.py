"""The backward walk over an LM head: gradients in hidden states, weight and bias from those in log-prob and entropy."""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.statistics import triton_fused
from equipoise.statistics.row_state import RowState
from equipoise.statistics.walk import HeadWalk, Tile


class Wanted(NamedTuple):
    """Which gradients are."""

    hidden: bool
    weight: bool
    bias: bool


class HeadGradients(NamedTuple):
    """That in the hidden states is in the type of the sums, the others in the type of what they belong to."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def walk_back(
    walk: HeadWalk,
    rows: ModuleType,
    state: RowState,
    wanted: Wanted,
    *,
    formed: bool = False,
    temperature: float,
    softcap: float | None,
) -> HeadGradients:
    """Gradients from logits that are formed again, tile by tile.

    Args:
        walk: over the tokens of `state`.
        rows: the module with the row operations, which a fused walk does without.
        state: targets count from the first entry of the head that is walked.
        wanted: what is computed; None elsewhere.
        formed: the workspace holds the logits of the only tile.
        temperature: as the row operations have yet to apply it.
        softcap: likewise.
    """
    hidden = walk.zero_hidden() if wanted.hidden else None
    weight = torch.empty_like(walk.weight) if wanted.weight else None
    bias = torch.empty_like(walk.raw_bias) if wanted.bias and walk.raw_bias is not None else None
    head = {"temperature": temperature, "softcap": softcap}
    for tile in walk.tiles():
        gradient = _in_logits(walk, rows, tile, state, formed=formed, summed=bias is not None, **head)
        if bias is not None:
            bias[tile.start : tile.stop] = gradient.sum(0).mul_(walk.scale)
            gradient = gradient.to(walk.operand)
        if hidden is not None:
            walk.add_hidden_product_(hidden, gradient, tile)
        if weight is not None:
            walk.weight_gradient_into(weight[tile.start : tile.stop], gradient)
    if hidden is not None and walk.scale != 1:
        hidden.mul_(walk.scale)
    return HeadGradients(hidden, weight, bias)


def _in_logits(
    walk: HeadWalk,
    rows: ModuleType,
    tile: Tile,
    state: RowState,
    *,
    formed: bool,
    summed: bool,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """Gradient in the raw logits of a tile, rounded to the type of products unless it is `summed` over tokens first."""
    state = state.from_column(tile.start)
    if walk.fused:
        out = walk.operand_tile(tile)
        triton_fused.gradient_into(out, walk.hidden, tile.weight, state, temperature=temperature)
        return out
    logits = walk.held(tile) if formed else walk.logits(tile)
    out = logits if summed else walk.operand_tile(tile)
    rows.gradient_tile_(logits, state, temperature=temperature, softcap=softcap, out=out)
    return out
