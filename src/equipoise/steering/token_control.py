"""The baselines of entropy control inside a clipped loss: marks over the whole update, then action on any part of it.

Weights go onto the advantages. A method that sets gradients needs no term beside the loss: a token with ratio 1 and
advantage g has the gradient g * grad log pi, so its old log-prob becomes its own and its advantage g, and the
denominators of the loss, whatever they are, apply to it as to every other token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.entropy_control import EntropyControl, UpdateTokens, token_draw
from equipoise.steering.micro_batch import MicroBatch
from equipoise.steering.ranks import Ranks
from equipoise.types import ClipBounds


@dataclass(frozen=True)
class Steered:
    """What a loss is to read of a micro-batch in the place of what the host had.

    Attributes:
        bounds: absolute clip bounds.
        advantage: per token, reweighted.
        old_logprob: of the policy that the ratio is taken to; None: as it was.
        is_set: tokens whose advantage is a gradient factor at a ratio of 1; None: no token.
        selection: of the bounds; None for a loss without.
    """

    bounds: ClipBounds
    advantage: Float[Tensor, "batch time"]
    old_logprob: Float[Tensor, "batch time"] | None = None
    is_set: Bool[Tensor, "batch time"] | None = None


class TokenControl:
    """One method in force in a run.

    Args:
        control: the method.
        ranks: that share an update.
        seed: of the run; draws follow from it, the number of the update and the token.
    """

    def __init__(self, control: EntropyControl, ranks: Ranks, seed: int):
        self.control, self.ranks, self.seed = control, ranks, seed

    @property
    def needs_preview(self) -> bool:
        """Whether it must see all micro-batches of an update before the first backward pass."""
        return self.control.control.whole_update

    @torch.no_grad()
    def marks(self, batches: Sequence[MicroBatch], update: int) -> list[Float[Tensor, "batch time"]]:
        """For each micro-batch of this rank, what the whole update decides about its tokens.

        Gathers four float64 and two int64 numbers per token over the ranks, once per update. Every rank then decides
        for itself, and alike. A method that looks at each token alone gathers nothing and waits for no device.
        """
        if not self.needs_preview:
            return [self._mark_alone(batch) for batch in batches]
        values, keys = (torch.cat(columns) for columns in zip(*map(token_columns, batches), strict=True))
        own, gather, rank = len(values), self.ranks.all_gather, self.ranks.rank
        all_values, all_keys = gather(values), gather(keys)
        start = sum(map(len, all_values[:rank]))
        values, keys = torch.cat(all_values), torch.cat(all_keys)
        draw = token_draw(keys[:, 0], keys[:, 1], seed=self.seed, update=update)
        order = draw.argsort()  # sums are formed in one order, whatever the split into micro-batches and ranks
        marked = torch.empty_like(values[:, 0])
        logprob, old_logprob, entropy, advantage = values[order].unbind(1)
        marked[order] = self.control.mark(UpdateTokens(logprob, old_logprob, entropy, advantage, draw[order]))
        marked = marked[start : start + own]
        sizes = [int(batch.loss_mask.sum()) for batch in batches]
        return [self._spread(mark, batch) for mark, batch in zip(marked.split(sizes), batches, strict=True)]

    def _mark_alone(self, batch: MicroBatch) -> Float[Tensor, "batch time"]:
        mask = batch.loss_mask
        logprob, old, entropy, advantage = (torch.where(mask, x.double(), 0).flatten() for x in _values(batch))
        draw = torch.zeros_like(logprob, dtype=torch.int64)  # nothing is drawn among tokens alone
        mark = self.control.mark(UpdateTokens(logprob, old, entropy, advantage, draw)).view(mask.shape)
        return torch.where(mask, mark.to(batch.advantage.dtype), self._untouched)

    @property
    def _untouched(self) -> float:
        return 0.0 if self.control.control.sets_gradient else 1.0

    def _spread(self, mark: Tensor, batch: MicroBatch) -> Float[Tensor, "batch time"]:
        mask = batch.loss_mask
        spread = torch.full(mask.shape, self._untouched, dtype=batch.advantage.dtype, device=mask.device)
        return spread.masked_scatter(mask, mark.to(spread))

    @torch.no_grad()
    def steer(
        self, batch: MicroBatch, advantage: Float[Tensor, "batch time"], mark: Tensor, bounds: ClipBounds
    ) -> tuple[Steered, Tensor]:
        """What the loss reads, and on how many tokens that changes the gradient, as a number on the device.

        Args:
            batch: of the update.
            advantage: reweighted by polarity where that is on.
            mark: of `marks`.
            bounds: in force.
        """
        steered, is_set = self.control.steer(advantage, mark, batch.log_ratio, bounds)
        is_set = is_set & batch.loss_mask
        steered = torch.where(batch.loss_mask, steered, advantage)
        old = batch.old_logprob
        if old is not None:
            old = torch.where(is_set, batch.statistics.logprob.detach(), old)
        touched = ((is_set | (steered != advantage)) & batch.loss_mask).sum()
        return Steered(bounds, steered, old, is_set), touched


def _values(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, old log-prob, entropy and advantage, [batch, time] each."""
    logprob = batch.statistics.logprob.detach()
    old = logprob if batch.old_logprob is None else batch.old_logprob
    return logprob, old, batch.statistics.entropy.detach(), batch.advantage


def token_columns(batch: MicroBatch) -> tuple[Float[Tensor, "tokens 4"], Tensor]:
    """The tokens of a micro-batch that carry loss: [tokens, 4] values and [tokens, 2] keys (sequence, position)."""
    mask = batch.loss_mask
    assert batch.row is not None, "tokens are drawn by the identity of their sequence"
    values = torch.stack([x[mask].double() for x in _values(batch)], 1)
    position = torch.arange(mask.shape[1], device=mask.device)
    keys = torch.stack([batch.row[:, None].expand_as(mask)[mask], position.expand_as(mask)[mask]], 1)
    return values, keys
