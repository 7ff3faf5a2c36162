"""Token statistics straight from hidden states and the LM head, without the [tokens, vocabulary] logits.

The vocabulary is walked in tiles of all tokens; the sums of the tiles merge (`moments`). The backward pass forms each
tile again. Nothing of shape [tokens, vocabulary] is ever allocated.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.statistics.checks import accumulation_dtype, check_rows, check_targets, check_temperature
from equipoise.statistics.dense import logit_gradient
from equipoise.statistics.moments import absent_part, merged, moments_of, row_statistics
from equipoise.types import TokenStatistics

TILE = 2048
"""Vocabulary entries per tile: wide enough for the matrix product, narrow enough to stay in cache."""


def linear_token_statistics(
    hidden: Float[Tensor, "*shape width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, "*shape"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> TokenStatistics:
    """`token_statistics` of logits = hidden @ weight.T + bias, capped by softcap * tanh(logits / softcap).

    Same numbers, signs, errors and differentiability as `equipoise.token_statistics`; gradients flow to `hidden`,
    `weight` and `bias`. Sums are formed in float32 (float64 for float64 inputs) whatever the input type.

    Args:
        hidden: last hidden states.
        weight: LM head.
        targets: index of the sampled token in [0, vocabulary).
        bias: of the LM head.
        temperature: > 0, divides the (capped) logits.
        softcap: > 0 or None, final logit soft-capping as in Gemma 2.
        backend: "auto" or "torch".

    Returns:
        TokenStatistics shaped like `targets`, in nats.

    Raises:
        ValueError: shapes or devices that do not fit, targets out of range, temperature or softcap <= 0, an unknown
            backend, or a row whose logits are -inf throughout.
    """
    _check(hidden, weight, targets, bias, softcap, backend)
    check_temperature(temperature)
    check_targets(targets, weight.shape[0])
    rows = _LinearStatistics.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1).long(), bias, temperature, softcap
    )
    return TokenStatistics(*(row.view(targets.shape) for row in rows))


def _check(hidden, weight, targets, bias, softcap, backend) -> None:
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [..., width] with targets [...] and weight [vocabulary, width], got hidden "
            f"{tuple(hidden.shape)}, targets {tuple(targets.shape)}, weight {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}] like the vocabulary, got {tuple(bias.shape)}")
    devices = {str(x.device) for x in (hidden, weight, targets, bias) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"hidden, weight, targets and bias must be on one device, got {sorted(devices)}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be > 0 and finite, or None, got {softcap}")
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend must be 'auto' or 'torch', got {backend!r}")


class _Head:
    """The LM head as a walk over tiles of tempered logits, formed anew each time one is asked for."""

    def __init__(self, hidden, weight, bias, temperature, softcap):
        self.dtype = accumulation_dtype(hidden.dtype)
        self.hidden = hidden.to(self.dtype)
        self.weight, self.bias, self.temperature, self.softcap = weight, bias, temperature, softcap

    def spans(self):
        """(start, stop) of each tile of the vocabulary."""
        vocabulary = self.weight.shape[0]
        return ((start, min(start + TILE, vocabulary)) for start in range(0, vocabulary, TILE))

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor | float]:
        """Tempered logits [tokens, stop - start] and their derivative in the raw logits."""
        logits = self.hidden @ self.weight[start:stop].to(self.dtype).t()
        if self.bias is not None:
            logits += self.bias[start:stop]
        if self.softcap is None:
            return logits.div_(self.temperature), 1 / self.temperature
        capped = logits.div_(self.softcap).tanh_()
        slope = capped.square().neg_().add_(1).div_(self.temperature)
        return capped.mul_(self.softcap / self.temperature), slope


def _targets_in(targets: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in a tile, and the column of each (any valid column for the others)."""
    return (targets >= start) & (targets < stop), (targets - start).clamp(0, stop - start - 1)[:, None]


class _LinearStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, temperature, softcap):
        head = _Head(hidden, weight, bias, temperature, softcap)
        moments = absent_part(hidden.shape[:1], head.dtype, hidden.device)
        target_logit = torch.zeros(targets.shape, dtype=head.dtype, device=hidden.device)
        for start, stop in head.spans():
            logits, _ = head.tile(start, stop)
            inside, column = _targets_in(targets, start, stop)
            target_logit = torch.where(inside, logits.gather(1, column)[:, 0], target_logit)
            moments = merged(moments, moments_of(logits))
        check_rows(moments.maximum)
        logprob, entropy, tendency, correction, log_s0 = row_statistics(moments, target_logit)
        ctx.save_for_backward(hidden, weight, targets, bias, moments.maximum, log_s0, entropy)
        ctx.temperature, ctx.softcap = temperature, softcap
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tendency, correction)
        return logprob, entropy, tendency, correction

    @staticmethod
    @once_differentiable
    def backward(ctx, logprob_gradient, entropy_gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if logprob_gradient is None and entropy_gradient is None:
            return (None,) * 6
        hidden, weight, targets, bias, maximum, log_s0, entropy = ctx.saved_tensors
        head = _Head(hidden, weight, bias, ctx.temperature, ctx.softcap)
        wants_hidden, wants_weight, _, wants_bias = ctx.needs_input_grad[:4]
        hidden_gradient = torch.zeros_like(head.hidden) if wants_hidden else None
        weight_gradient = torch.empty_like(weight, dtype=head.dtype) if wants_weight else None
        bias_gradient = torch.empty_like(bias, dtype=head.dtype) if wants_bias else None
        for start, stop in head.spans():
            logits, slope = head.tile(start, stop)
            log_p = logits.sub_(maximum[:, None]).sub_(log_s0[:, None])
            gradient = logit_gradient(log_p, entropy, logprob_gradient, entropy_gradient)
            if logprob_gradient is not None:
                inside, column = _targets_in(targets, start, stop)
                gradient.scatter_add_(1, column, (logprob_gradient * inside)[:, None])
            gradient.mul_(slope)
            if hidden_gradient is not None:
                hidden_gradient.addmm_(gradient, weight[start:stop].to(head.dtype))
            if weight_gradient is not None:
                weight_gradient[start:stop] = gradient.t() @ head.hidden
            if bias_gradient is not None:
                bias_gradient[start:stop] = gradient.sum(0)
        return (
            None if hidden_gradient is None else hidden_gradient.to(hidden.dtype),
            None if weight_gradient is None else weight_gradient.to(weight.dtype),
            None,
            None if bias_gradient is None else bias_gradient.to(bias.dtype),
            None,
            None,
        )
