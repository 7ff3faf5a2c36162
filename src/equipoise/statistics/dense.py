"""Token statistics from logits that are already there: the definition that every faster path is held to."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.statistics.checks import accumulation_dtype, check_rows, check_targets, check_temperature
from equipoise.statistics.moments import moments_of, row_statistics
from equipoise.types import TokenStatistics


def token_statistics(
    logits: Float[Tensor, "*shape vocabulary"], targets: Int[Tensor, "*shape"], *, temperature: float = 1.0
) -> TokenStatistics:
    """Log-prob, entropy, tendency and correction of sampled tokens under pi = softmax(logits / temperature).

    Source: arXiv 2605.11775 (first-order entropy change); sums that leave the maximum out are ours (`moments`).
    `logprob` and `entropy` are differentiable in `logits`, `tendency` and `correction` are detached. The tendency is
    that of a step on the tempered logits; a step on raw logits scales it by 1 / temperature^2.

    Args:
        logits: any floating type; sums are formed in float32, or float64 for float64 logits. -inf marks a token that
            cannot be sampled; NaN propagates to its row.
        targets: index of the sampled token in [0, vocabulary).
        temperature: > 0, the temperature the tokens were sampled at.

    Returns:
        TokenStatistics in the type of the sums, shaped like `targets`, in nats.

    Raises:
        ValueError: shapes that do not fit, targets out of range, temperature <= 0, or a row that is -inf throughout.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must be shaped like targets plus a last dimension for the vocabulary, "
            f"got logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
        )
    check_temperature(temperature)
    check_targets(targets, logits.shape[-1])
    return TokenStatistics(*_DenseStatistics.apply(logits, targets.long(), temperature))


class _DenseStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, temperature):
        tempered = logits.to(accumulation_dtype(logits.dtype)) / temperature
        moments = moments_of(tempered)
        check_rows(moments.maximum)
        target_logit = tempered.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        logprob, entropy, tendency, correction, log_s0 = row_statistics(moments, target_logit)
        ctx.save_for_backward(logits, targets, moments.maximum, log_s0, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tendency, correction)
        return logprob, entropy, tendency, correction

    @staticmethod
    @once_differentiable
    def backward(ctx, logprob_gradient, entropy_gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, targets, maximum, log_s0, entropy = ctx.saved_tensors
        if logprob_gradient is None and entropy_gradient is None:
            return None, None, None
        log_p = logits.to(log_s0.dtype) / ctx.temperature - maximum.unsqueeze(-1) - log_s0.unsqueeze(-1)
        gradient = logit_gradient(log_p, entropy, logprob_gradient, entropy_gradient)
        if logprob_gradient is not None:
            gradient.scatter_add_(-1, targets.unsqueeze(-1), logprob_gradient.unsqueeze(-1))
        return (gradient / ctx.temperature).to(logits.dtype), None, None


def logit_gradient(
    log_p: Float[Tensor, "*rows part"],
    entropy: Float[Tensor, "*rows"],
    logprob_gradient: Float[Tensor, "*rows"] | None,
    entropy_gradient: Float[Tensor, "*rows"] | None,
) -> Float[Tensor, "*rows part"]:
    """-g p_k - g_H p_k (log p_k + H): the gradient in the tempered logits, without the one-hot part of log pi_a.

    Works on any part of the vocabulary. Destroys `log_p`.
    """
    p = log_p.exp()
    if entropy_gradient is None:
        assert logprob_gradient is not None
        return p.mul_(-logprob_gradient.unsqueeze(-1))
    factor = log_p.masked_fill_(log_p.isneginf(), 0.0).add_(entropy.unsqueeze(-1)).mul_(entropy_gradient.unsqueeze(-1))
    if logprob_gradient is not None:
        factor.add_(logprob_gradient.unsqueeze(-1))
    return p.mul_(factor).neg_()
