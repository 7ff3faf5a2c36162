"""The gradient of log pi_a in the hidden states, prepared by the forward pass: a frozen head needs no second walk.

d log pi_a / dh = (W_a - sum_k p_k W_k) / temperature. The sum leaves the maximum out, as those of `moments` do and for
the same reason: with L = sum_{k != argmax} e^(z_k - max) W_k it is (W_argmax + L) / S0, and for a = argmax the
difference becomes (T0 W_argmax - L) / S0, which keeps its digits on a near-certain token.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.statistics.moments import Moments
from equipoise.statistics.walk import HeadWalk, Tile


class Carried(NamedTuple):
    """L [tokens, width] in the frame of the running maximum, and where in the vocabulary that is [tokens]."""

    losers: Tensor
    argmax: Tensor

    @classmethod
    def nothing(cls, walk: HeadWalk) -> "Carried":
        """Before the first tile."""
        losers = walk.zero_hidden()
        return cls(losers, torch.zeros(len(losers), dtype=torch.long, device=losers.device))

    def fold_(
        self,
        walk: HeadWalk,
        rows: ModuleType,
        tile: Tile,
        moments: Moments,
        column: Tensor,
        target_logit: Tensor,
        **head: float | None,
    ) -> None:
        """Form the tile's logits, then `fold_tile` of the module `rows` and the tile's part of the sum."""
        before, maximum_column = moments.maximum.clone(), torch.full_like(self.argmax, -1)
        logits, weights = walk.logits(tile), walk.operand_tile(tile)
        rows.fold_tile(logits, moments, column, target_logit, weights=weights, maximum_column=maximum_column, **head)
        new_argmax = torch.where(maximum_column >= 0, maximum_column + tile.start, -1)
        rows.move_maximum_(self.losers, walk.weight, self.argmax, new_argmax, before, moments.maximum)
        walk.add_hidden_product_(self.losers, weights, tile)

    def hidden_gradient(self, weight: Tensor, targets: Tensor, t0: Tensor, logprob_gradient: Tensor) -> Tensor:
        """Gradient in the hidden states, in the type of the sums; `logprob_gradient` comes divided by temperature."""
        s0, at_maximum = 1 + t0, targets == self.argmax
        factor = logprob_gradient / s0
        gradient = self.losers * -factor[:, None]
        for entry, share in (
            (self.argmax, torch.where(at_maximum, t0, -1.0)),
            (targets, s0.masked_fill(at_maximum, 0)),
        ):
            gradient += weight[entry].to(gradient.dtype).mul_((factor * share)[:, None])
        return gradient.masked_fill_((logprob_gradient == 0)[:, None], 0.0)  # also where a row was NaN
