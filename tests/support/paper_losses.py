"""The losses of methods that set gradients, as their papers write them: what their coefficients are held to."""

from equipoise import ppo_clip


def ce_gppo_loss(statistics, batch, *, bounds, beta_low=0.5, beta_high=1.0):
    """The clipped surrogate, and -beta bound (rho / sg(rho)) A on what the clip takes out (arXiv 2509.20712)."""
    clipped = ppo_clip(statistics, batch, bounds=bounds).loss
    mask = batch.action_mask
    log_ratio = (statistics.logprob - batch.behavior_logprob).masked_fill(~mask, 0.0)
    ratio, advantage = log_ratio.detach().exp(), batch.advantage.detach().masked_fill(~mask, 0.0)
    carried = (log_ratio - log_ratio.detach()).exp()  # rho / sg(rho): 1, with the gradient of log pi
    low, high = (advantage < 0) & (ratio < bounds.low), (advantage > 0) & (ratio > bounds.high)
    loss = clipped.where(~low, -beta_low * bounds.low * carried * advantage)
    return loss.where(~high, -beta_high * bounds.high * carried * advantage)


def kl_cov_loss(statistics, batch, *, bounds, selected, coefficient=1.0):
    """The clipped surrogate, and coefficient |log pi - log mu| on the selected tokens (arXiv 2505.22617)."""
    clipped = ppo_clip(statistics, batch, bounds=bounds).loss
    distance = (statistics.logprob - batch.behavior_logprob).masked_fill(~(selected & batch.action_mask), 0.0)
    return clipped + coefficient * distance.abs()
