"""Token statistics for an LM head that is split over ranks along the vocabulary (tensor parallelism).

A shard of the vocabulary is a large tile: its sums merge with those of the other shards as tiles merge (`moments`).
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.errors import require
from equipoise.statistics import torch_rows, triton_fused, triton_rows
from equipoise.statistics.checks import accumulation_dtype, check_head, check_rows, check_targets, check_temperature
from equipoise.statistics.gradients import Wanted, walk_back
from equipoise.statistics.moments import Moments, absent_part, merged, row_statistics
from equipoise.statistics.row_state import RowState
from equipoise.statistics.sums import walk_forward
from equipoise.statistics.walk import HeadWalk
from equipoise.types import TokenStatistics


def vocabulary_parallel_token_statistics(
    hidden: Float[Tensor, "*shape width"],
    weight_shard: Float[Tensor, "shard width"],
    targets: Int[Tensor, "*shape"],
    *,
    vocabulary_start: int,
    group: Any = None,
    bias: Float[Tensor, " shard"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> TokenStatistics:
    """`linear_token_statistics` of a head whose rows are split over the ranks of `group`; same numbers on every rank.

    Every rank calls it with the same `hidden`, `targets`, temperature and softcap, and with its own shard.

    Forward: one collective, an all-gather of six numbers per token (maximum, four sums, the target's logit) and of
    the shard's range. A single all-reduce cannot do it: sums of different maxima have to be brought to a common one
    first, which takes a second all-reduce before it. Every rank merges the gathered parts in the order of ranks, so
    that the results are equal to the last bit.

    Backward: the gradients of `weight_shard` and `bias` are local. That of `hidden` is summed over the ranks by one
    all-reduce and complete on each: give `hidden` as it is, not through a layer that reduces its gradient again, and
    let every rank form the same loss from the (same) statistics. `logprob` and `entropy` are differentiable,
    `tendency` and `correction` are detached.

    Args:
        hidden: last hidden states, replicated.
        weight_shard: rows [vocabulary_start, vocabulary_start + shard) of the LM head; shards may differ in size.
        targets: index of the sampled token in the whole vocabulary, replicated.
        vocabulary_start: first entry of the vocabulary that is on this rank.
        group: process group of the ranks that share the head; None is the default group.
        bias: of these rows of the LM head.
        temperature: > 0, divides the (capped) logits.
        softcap: > 0 or None, final logit soft-capping as in Gemma 2.

    Returns:
        TokenStatistics shaped like `targets`, in nats.

    Raises:
        ValueError: on every rank, shards that overlap or leave a gap, a target in no shard, or a row whose logits are
            -inf in every shard. On the rank it happens on, before the collective: shapes or devices that do not fit,
            vocabulary_start < 0, temperature or softcap <= 0, no initialised process group.
    """
    check_head(hidden, weight_shard, targets, bias, softcap)
    check_temperature(temperature)
    require("vocabulary_start", vocabulary_start, ">= 0", vocabulary_start >= 0)
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "statistics of a split vocabulary need torch.distributed.init_process_group to be called first"
        )
    shard = _Shard(vocabulary_start, vocabulary_start + weight_shard.shape[0], group, temperature, softcap)
    rows = _VocabularyParallel.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight_shard, bias, targets.reshape(-1).long(), shard
    )
    return TokenStatistics(*(row.view(targets.shape) for row in rows))


class _Shard(NamedTuple):
    """What a rank knows of its part of the vocabulary besides the tensors."""

    start: int
    stop: int
    group: Any
    temperature: float
    softcap: float | None

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the row operations."""
        return {"temperature": self.temperature, "softcap": self.softcap}

    def walk(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[HeadWalk, ModuleType]:
        """The tiles of the shard and the module with the row operations."""
        on_cuda = hidden.is_cuda and accumulation_dtype(hidden.dtype) == torch.float32
        uses_triton = on_cuda and triton_rows.available()
        fused = uses_triton and triton_fused.fits(hidden, weight, bias, self.softcap)
        return HeadWalk(hidden, weight, bias, fused=fused), triton_rows if uses_triton else torch_rows


def _gathered(values: Tensor, group) -> Tensor:
    """[ranks, size] from [size] on each rank."""
    everyone = values.new_empty(dist.get_world_size(group) * values.numel())
    dist.all_gather_into_tensor(everyone, values, group)
    return everyone.view(-1, values.numel())


def _of_all_shards(moments: Moments, target_logit, targets, shard: _Shard) -> tuple[Moments, Tensor]:
    """Sums over the whole vocabulary, and the target's logit from the rank that has it."""
    # Integers travel as the bits of floats, which keeps them exact and the collective single.
    span = torch.tensor([shard.start, shard.stop]).view(target_logit.dtype).to(target_logit.device)
    parts = _gathered(torch.cat([*moments, target_logit, span]), shard.group)
    spans = parts[:, -span.numel() :].contiguous().view(torch.int64).tolist()
    check_targets(targets, _covered(spans))
    total = absent_part(targets.shape, target_logit.dtype, targets.device)
    for (start, stop), part in zip(spans, parts, strict=True):
        *sums, logit = part[: -span.numel()].view(6, -1)
        total = merged(total, Moments(*sums))
        target_logit = torch.where((targets >= start) & (targets < stop), logit, target_logit)
    return total, target_logit


def _covered(spans: list[list[int]]) -> int:
    """Size of the vocabulary, of which the spans [start, stop) must hold every entry once."""
    size = 0
    for start, stop in sorted(spans):
        if start != size:
            raise ValueError(
                f"shards [start, stop) must cover a vocabulary from 0 on without gap or overlap, got {sorted(spans)}"
            )
        size = stop
    return size


class _VocabularyParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, shard):
        walk, rows = shard.walk(hidden, weight, bias)
        moments, target_logit = walk_forward(walk, rows, targets - shard.start, **shard.settings())
        moments, target_logit = _of_all_shards(moments, target_logit, targets, shard)
        check_rows(moments.maximum)
        logprob, entropy, tendency, correction, log_s0 = row_statistics(moments, target_logit)
        ctx.save_for_backward(hidden, weight, bias, targets, moments.maximum, log_s0, entropy, target_logit)
        ctx.shard = shard
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tendency, correction)
        return logprob, entropy, tendency, correction

    @staticmethod
    @once_differentiable
    def backward(ctx, logprob_gradient, entropy_gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if logprob_gradient is None and entropy_gradient is None:
            return (None,) * 5
        hidden, weight, bias, targets, maximum, log_s0, entropy, target_logit = ctx.saved_tensors
        shard: _Shard = ctx.shard
        g, g_entropy = (None if x is None else x.contiguous() for x in (logprob_gradient, entropy_gradient))
        state = RowState(targets - shard.start, maximum, log_s0, entropy, target_logit, g, g_entropy)
        wanted = Wanted(*ctx.needs_input_grad[:3])
        walk, rows = shard.walk(hidden, weight, bias)
        found = walk_back(walk, rows, state, wanted, **shard.settings())
        hidden_gradient = found.hidden
        if hidden_gradient is not None:
            dist.all_reduce(hidden_gradient, group=shard.group)  # before it is rounded to the type of `hidden`
            hidden_gradient = hidden_gradient.to(hidden.dtype)
        return hidden_gradient, found.weight, found.bias, None, None
