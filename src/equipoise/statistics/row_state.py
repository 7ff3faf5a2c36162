"""What a backward pass knows of each token."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RowState(NamedTuple):
    """Of each token, as tensors [rows]: sums over the whole vocabulary of tempered logits, and upstream gradients.

    All but the targets are contiguous and in the type of the sums.
    """

    targets: Int[Tensor, " rows"]
    """int64 column of the target in the part of the vocabulary at hand; any other value means "not in this part"."""

    maximum: Float[Tensor, " rows"]
    """The largest tempered logit."""

    log_s0: Float[Tensor, " rows"]
    """log Z - maximum. Subtracted one after the other the two keep the digits of log p; their rounded sum does not."""

    entropy: Float[Tensor, " rows"]
    """H, in nats."""

    target_logit: Float[Tensor, " rows"]
    """The tempered logit of the target, wherever that is."""

    logprob_gradient: Float[Tensor, " rows"] | None
    """g, that in the target's log-prob; None where it is 0 throughout."""

    entropy_gradient: Float[Tensor, " rows"] | None
    """g_H, that in the entropy; likewise."""

    def moving(self) -> Tensor | None:
        """Rows with an upstream gradient, None for all: prompts, padding, groups without advantage have none."""
        moving = torch.zeros_like(self.targets, dtype=torch.bool)
        for gradient in (self.logprob_gradient, self.entropy_gradient):
            if gradient is not None:
                moving |= gradient != 0
        return None if bool(moving.all()) else moving.nonzero()[:, 0]

    def at(self, index: Tensor) -> "RowState":
        """Some of the rows."""
        return RowState._make(None if x is None else x[index] for x in self)

    def from_column(self, start: int) -> "RowState":
        """The same rows, with targets as columns of a tile that begins at column `start`."""
        return self._replace(targets=self.targets - start)
