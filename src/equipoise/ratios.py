"""Importance ratios between the policy that learns and the policy that sampled."""

from jaxtyping import Bool, Float
from torch import Tensor


def importance_ratio(
    logprob: Float[Tensor, "*shape"], behavior_logprob: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """rho_t = pi(a_t|s_t) / mu(a_t|s_t) per token (arXiv 2510.18927, r_t). Differentiable in `logprob`."""
    return (logprob - behavior_logprob).exp()


def sequence_importance_ratio(
    logprob: Float[Tensor, "batch time"],
    behavior_logprob: Float[Tensor, "batch time"],
    action_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch 1"]:
    """exp of the mean log-ratio over the action tokens of each sequence (GSPO, arXiv 2507.18071, Eq. 7).

    Values outside the mask are ignored; a sequence without action tokens has ratio 1.
    """
    log_ratio = (logprob - behavior_logprob).masked_fill(~action_mask, 0.0)
    return (log_ratio.sum(-1, keepdim=True) / action_mask.sum(-1, keepdim=True).clamp(min=1)).exp()
