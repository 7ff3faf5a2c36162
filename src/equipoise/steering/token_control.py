"""The baselines of entropy control inside TRL's loss.

Weights go onto the advantages, where TRL reads them. A method that sets gradients needs no term beside TRL's loss: a
token with ratio 1 and advantage g has the gradient g * grad log pi, so its old log-prob becomes its own and its
advantage g, and TRL's denominators, whatever the loss type, apply to it as to every other token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from equipoise.entropy_control import EntropyControl, UpdateTokens, token_draw
from equipoise.entropy_control.draw import row_identity
from equipoise.steering.update import MicroBatch
from equipoise.types import ClipBounds


class Part(NamedTuple):
    """One micro-batch: TRL's inputs and what the trainer measured on them."""

    inputs: dict[str, Tensor]
    batch: MicroBatch


class TokenControl:
    """One method in force in a run.

    Args:
        control: the method.
        accelerator: gathers the tokens of all ranks.
        seed: of the run; draws follow from it, the number of the update and the token.
    """

    def __init__(self, control: EntropyControl, accelerator: Accelerator, seed: int):
        self.control, self.accelerator, self.seed = control, accelerator, seed
        self._counts: Tensor | None = None

    @property
    def needs_preview(self) -> bool:
        """Whether it must see all micro-batches of an update before the first backward pass."""
        return self.control.control.whole_update

    @torch.no_grad()
    def marks(self, parts: list[Part], update: int) -> list[Tensor]:
        """For each micro-batch of this rank, what the whole update decides about its tokens, [batch, time].

        Gathers four float64 and two int64 numbers per token over the ranks, once per update. Every rank then decides
        for itself, and alike.
        """
        values, keys = (torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True))
        start = 0
        own = len(values)
        if self.needs_preview and self.accelerator.num_processes > 1:
            values, keys, start = self._gathered(values, keys)
        draw = token_draw(keys[:, 0], keys[:, 1], seed=self.seed, update=update)
        logprob, old_logprob, entropy, advantage = values.unbind(1)
        marked = self.control.mark(UpdateTokens(logprob, old_logprob, entropy, advantage, draw))[start : start + own]
        sizes = [int(part.batch.loss_mask.sum()) for part in parts]
        return [self._spread(mark, part) for mark, part in zip(marked.split(sizes), parts, strict=True)]

    def _gathered(self, values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, int]:
        """The tokens of all ranks, in order of rank, and where those of this rank begin."""
        gather = cast(Callable[[Any], Tensor], self.accelerator.gather)
        sizes = gather(torch.tensor([len(values)], device=values.device)).tolist()
        whole = []
        for local in (values, keys):
            padded = gather(self.accelerator.pad_across_processes(local, dim=0))
            ranks = padded.split(max(sizes)) if max(sizes) else [padded] * len(sizes)
            whole.append(torch.cat([rank[:size] for rank, size in zip(ranks, sizes, strict=True)]))
        return whole[0], whole[1], sum(sizes[: self.accelerator.process_index])

    def _spread(self, mark: Tensor, part: Part) -> Tensor:
        mask = part.batch.loss_mask
        untouched = 0.0 if self.control.control.sets_gradient else 1.0
        spread = torch.full(mask.shape, untouched, dtype=part.batch.advantage.dtype, device=mask.device)
        return spread.masked_scatter(mask, mark.to(spread))

    @torch.no_grad()
    def steer(self, part: Part, advantage: Tensor, mark: Tensor, bounds: ClipBounds) -> None:
        """Leave advantages, and old log-probs where gradients are set, in the inputs of TRL's loss."""
        inputs, logprob = part.inputs, part.batch.statistics.logprob.detach()
        old = inputs.get("old_per_token_logps")
        log_ratio = torch.zeros_like(logprob) if old is None else logprob - old
        steered, is_set = self.control.steer(advantage, mark, log_ratio, bounds)
        is_set = is_set & part.batch.loss_mask
        inputs["advantages"] = torch.where(part.batch.loss_mask, steered, advantage)
        if old is not None:
            inputs["old_per_token_logps"] = torch.where(is_set, logprob, old)
        touched = is_set | (inputs["advantages"] != advantage)
        counts = torch.stack([touched.sum(), part.batch.action_mask.sum()]).double()
        self._counts = counts if self._counts is None else self._counts + counts

    def metrics(self, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Of the update that ends: the fraction of its action tokens whose gradient was changed."""
        assert self._counts is not None, "an update without micro-batches"
        touched, tokens = all_reduce(self._counts).tolist()
        self._counts = None
        return {"controlled_fraction": touched / tokens if tokens else 0.0}


def _columns(part: Part) -> tuple[Tensor, Tensor]:
    """The tokens of a micro-batch that carry loss: [tokens, 4] values and [tokens, 2] keys."""
    inputs, batch = part
    mask, logprob = batch.loss_mask, batch.statistics.logprob.detach()
    old: Any = inputs.get("old_per_token_logps")
    entropy, advantage = batch.statistics.entropy.detach(), batch.advantage
    values = torch.stack([x[mask].double() for x in (logprob, logprob if old is None else old, entropy, advantage)], 1)
    row = row_identity(
        inputs["prompt_ids"].long(), inputs["prompt_mask"].long(),
        inputs["completion_ids"].long(), inputs["completion_mask"].long(),
    )  # fmt: skip
    position = torch.arange(mask.shape[1], device=mask.device)
    keys = torch.stack([row[:, None].expand_as(mask)[mask], position.expand_as(mask)[mask]], 1)
    return values, keys
