"""Independent formulations that the tests hold the package to: textbook sums in float64, and 50 digits of mpmath."""

import mpmath
import torch

from equipoise import TokenStatistics
from equipoise.statistics.moments import row_statistics
from equipoise.statistics.row_state import RowState


def textbook_statistics(logits, targets, temperature=1.0):
    """The four statistics by log_softmax and plain sums, in the type of `logits`; differentiable throughout."""
    log_p = (logits / temperature).log_softmax(-1)
    p = log_p.exp()
    finite_log_p = torch.where(p > 0, log_p, 0.0)
    entropy = -(p * finite_log_p).sum(-1)
    surprise = finite_log_p + entropy.unsqueeze(-1)
    correction = (p.square() * surprise).sum(-1)
    index = targets.unsqueeze(-1)
    logprob = log_p.gather(-1, index).squeeze(-1)
    tendency = correction - (p * surprise).gather(-1, index).squeeze(-1)
    return TokenStatistics(logprob, entropy, tendency.detach(), correction.detach())


def head_logits(hidden, weight, bias=None, softcap=None):
    """hidden @ weight.T + bias, capped."""
    logits = hidden @ weight.t()
    if bias is not None:
        logits = logits + bias
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def row_state(moments, target_logit, targets, upstream):
    """What a backward pass is given after a forward one."""
    statistics = row_statistics(moments, target_logit)
    return RowState(targets, moments.maximum, statistics.log_s0, statistics.entropy, target_logit, *upstream)


def exact_statistics(row):
    """log-prob and T of every token of one row of float logits and its entropy, formed with 50 digits."""
    with mpmath.workdps(50):
        z = [mpmath.mpf(x) for x in row]
        log_normalizer = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in z))
        log_p = [x - log_normalizer for x in z]
        p = [mpmath.exp(x) for x in log_p]
        entropy = -mpmath.fsum(a * b for a, b in zip(p, log_p, strict=True))
        correction = mpmath.fsum(a * a * (b + entropy) for a, b in zip(p, log_p, strict=True))
        tendency = [correction - a * (b + entropy) for a, b in zip(p, log_p, strict=True)]
        return [float(x) for x in log_p], float(entropy), [float(x) for x in tendency]


def near_certain_logits(p_top, vocabulary, seed):
    """One float32 row whose first token has about probability `p_top`, the others random."""
    generator = torch.Generator().manual_seed(seed)
    others = 2 * torch.randn(vocabulary - 1, generator=generator, dtype=torch.float64)
    top = others.logsumexp(-1) + torch.tensor(p_top / (1 - p_top), dtype=torch.float64).log()
    return torch.cat([top[None], others]).float()


def every_target(row):
    """Each token of the vocabulary as the sampled one: logits [vocabulary, vocabulary] and targets [vocabulary]."""
    return row.expand(row.numel(), -1), torch.arange(row.numel())


def largest_error(actual, expected):
    """Largest absolute difference to a float64 reference."""
    return float((actual.double() - expected).abs().max())
