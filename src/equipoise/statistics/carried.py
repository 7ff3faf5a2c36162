"""The gradient of log pi_a in the hidden states, prepared by the forward pass: a frozen head needs no second walk.

d log pi_a / dh = (W_a - sum_k p_k W_k) / temperature. The sum leaves the maximum out, as those of `moments` do and for
the same reason: with L = sum_{k != argmax} e^(z_k - max) W_k it is (W_argmax + L) / S0, and for a = argmax the
difference becomes (T0 W_argmax - L) / S0, which keeps its digits on a near-certain token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.statistics.moments import Moments
from equipoise.statistics.torch_rows import fold_tile_weights
from equipoise.statistics.walk import Tile


class Carried(NamedTuple):
    """L [tokens, width] in the frame of the running maximum, and where in the vocabulary that is [tokens]."""

    losers: Tensor
    argmax: Tensor

    @classmethod
    def nothing(cls, hidden: Tensor) -> "Carried":
        """Before the first tile."""
        return cls(torch.zeros_like(hidden), torch.zeros(len(hidden), dtype=torch.long, device=hidden.device))

    def fold_(self, tile: Tile, weight: Tensor, moments: Moments, column: Tensor, target_logit: Tensor) -> None:
        """`torch_rows.fold_tile` of a tile of tempered logits, which it overwrites, and of its part of the sum."""
        before, new_maximum = moments.maximum.clone(), torch.full_like(self.argmax, -1)
        fold_tile_weights(
            tile.logits,
            moments,
            column,
            target_logit,
            temperature=1.0,
            softcap=None,
            weights=tile.logits,
            maximum_column=new_maximum,
        )
        grown = (new_maximum >= 0).nonzero()[:, 0]
        scale = (before[grown] - moments.maximum[grown]).exp()  # 0 at first, when the maximum was -inf
        former = weight[self.argmax[grown]].to(self.losers.dtype)
        self.losers[grown] = former.add_(self.losers[grown]).mul_(scale[:, None])
        self.argmax[grown] = new_maximum[grown] + tile.start
        self.losers.addmm_(tile.logits, tile.weight)

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
