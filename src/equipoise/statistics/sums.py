"""The forward walk over an LM head: moments of each token, and the logit of its target."""

from types import ModuleType

import torch
from torch import Tensor

from equipoise.statistics import triton_fused
from equipoise.statistics.carried import Carried
from equipoise.statistics.moments import Moments, absent_part
from equipoise.statistics.walk import HeadWalk


def walk_forward(
    walk: HeadWalk,
    rows: ModuleType,
    targets: Tensor,
    carried: Carried | None = None,
    *,
    temperature: float,
    softcap: float | None,
) -> tuple[Moments, Tensor]:
    """Moments over the head that is walked and the targets' logits, 0 where a target is not in this head.

    Args:
        walk: over all tokens.
        rows: the module with the row operations.
        targets: [tokens], counted from the first entry of the head that is walked.
        carried: filled along the way; None: not wanted. Not with a fused walk.
        temperature: as the row operations have yet to apply it.
        softcap: likewise.
    """
    # Five tensors of their own: the row operations write in place.
    moments = Moments(*(x.clone() for x in absent_part(targets.shape, walk.dtype, walk.hidden.device)))
    target_logit = torch.zeros_like(moments.maximum)
    head = {"temperature": temperature, "softcap": softcap}
    for tile in walk.parts() if walk.fused else walk.tiles():
        column = targets - tile.start
        if walk.fused:
            triton_fused.fold_into(moments, target_logit, walk.hidden, tile.weight, column, temperature=temperature)
        elif carried is None:
            rows.fold_tile(walk.logits(tile), moments, column, target_logit, **head)
        else:
            carried.fold_(walk, rows, tile, moments, column, target_logit, **head)
    return moments, target_logit
