"""Who `token_statistics.py` compares: the same work by ours, bare matrix products, torch, TRL, Liger and verl.

Each contender takes a `Problem` and returns what it computed, gradients first where it has any. A package that is not
installed, or a function that a release lacks, is an error of the call.
"""

import importlib.util
import sys
import types

import torch
from torch.nn.functional import cross_entropy

from equipoise import linear_token_statistics


class Problem:
    """Inputs of a realistic scale: logits of standard deviation 2, advantages of both signs."""

    def __init__(self, shape, device, dtype):
        num_tokens, width, vocabulary = shape
        draw = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        hidden = torch.randn(num_tokens, width, **draw)
        weight = torch.randn(vocabulary, width, **draw).mul_(2 / width**0.5)
        self.hidden, self.weight = (x.to(dtype).requires_grad_() for x in (hidden, weight))
        self.targets = torch.randint(vocabulary, (num_tokens,), **draw)
        self.advantage = torch.randn(num_tokens, **draw)

        self.logprob = None  # as a contender last gave it

    def gradients(self, logprob, *inputs):
        self.logprob = logprob.detach()
        return torch.autograd.grad(logprob, inputs, self.advantage.to(logprob.dtype))


def floor(problem):
    """Three bare matrix products."""
    h, w = problem.hidden.detach(), problem.weight.detach()
    if h.is_cuda:
        logits = torch.mm(h, w.t())
        return torch.mm(logits, w), torch.mm(logits.t(), h)
    tile = min(2048, max(256, 2**22 // len(h)), len(w))
    workspace, dh, dw = h.new_empty(len(h) * tile), torch.zeros_like(h), torch.empty_like(w)
    for start in range(0, len(w), tile):
        part = w[start : start + tile]
        logits = workspace[: len(h) * len(part)].view(len(h), len(part))
        torch.mm(h, part.t(), out=logits)
        dh.addmm_(logits, part)
        torch.mm(logits.t(), h, out=dw[start : start + len(part)])
    return dh, dw


@torch.no_grad()
def floor_of_forward(problem):
    """The bare matrix product of the logits."""
    torch.mm(problem.hidden, problem.weight.t())
    return ()


def ours(problem):
    out = linear_token_statistics(problem.hidden, problem.weight, problem.targets)
    return problem.gradients(out.logprob, problem.hidden, problem.weight)


def ours_with_entropy_gradient(problem):
    out = linear_token_statistics(problem.hidden, problem.weight, problem.targets)
    inputs, g = (problem.hidden, problem.weight), problem.advantage
    return torch.autograd.grad((out.logprob, out.entropy), inputs, (g, g))


def ours_frozen_head(problem):
    out = linear_token_statistics(problem.hidden, problem.weight.detach(), problem.targets)
    return problem.gradients(out.logprob, problem.hidden)


@torch.no_grad()
def ours_forward_only(problem):
    return linear_token_statistics(problem.hidden, problem.weight, problem.targets)


def naive(problem):
    logits = (problem.hidden @ problem.weight.t()).float()
    log_p = logits.log_softmax(-1)
    with torch.no_grad():
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        p.square_()
        moments = p.sum(-1), (p * log_p).sum(-1)
    logprob = log_p.gather(-1, problem.targets[:, None])[:, 0]
    return (*problem.gradients(logprob, problem.hidden, problem.weight), entropy, moments)


def torch_cross_entropy(problem):
    logits = (problem.hidden @ problem.weight.t()).float()
    logprob = -cross_entropy(logits, problem.targets, reduction="none")
    return problem.gradients(logprob, problem.hidden, problem.weight)


def torch_linear_cross_entropy(problem):
    loss = torch.nn.functional.linear_cross_entropy(problem.hidden, problem.weight, problem.targets, reduction="none")
    return problem.gradients(-loss, problem.hidden, problem.weight)


def torch_linear_cross_entropy_chunked(problem):
    # Its chunks prepare the gradient in the forward pass, which a loss per token does not allow: a mean, no advantages.
    options = torch.nn.LinearCrossEntropyOptions()
    loss = torch.nn.functional.linear_cross_entropy(problem.hidden, problem.weight, problem.targets, options=options)
    return torch.autograd.grad(loss, (problem.hidden, problem.weight))


def trl_chunked(problem):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    sums = ("entropy", "log_sum_sq_probs")
    args = (problem.hidden, problem.weight, None, problem.targets, 1.0, trl_chunk(problem), None, 1.0, sums)
    return problem.gradients(ChunkedLogProbFunction.apply(*args)[0], problem.hidden, problem.weight)


def trl_chunked_logprob_alone(problem):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    args = (problem.hidden, problem.weight, None, problem.targets, 1.0, trl_chunk(problem), None, 1.0, ())
    return problem.gradients(ChunkedLogProbFunction.apply(*args)[0], problem.hidden, problem.weight)


def trl_chunk(problem):
    """Vocabulary entries at a time as TRL's trainer chooses them."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    return min(_CHUNKED_LOGPROB_CHUNK_SIZE, len(problem.weight))


def liger(problem):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss = liger_fused_linear_cross_entropy(problem.hidden, problem.weight, problem.targets)
    return torch.autograd.grad(loss, (problem.hidden, problem.weight))


def liger_scaled(problem):
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    args = (problem.hidden, problem.weight, problem.targets, 1.0, -100, 1, True)
    nll, _entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(*args)
    return problem.gradients(-nll, problem.hidden, problem.weight)


@torch.no_grad()
def liger_scaled_forward_only(problem):
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    args = (problem.hidden, problem.weight, problem.targets, 1.0, -100, 1, True)
    return LigerFusedLinearScaledCrossEntropyFunction.apply(*args)


def verl(problem):
    without_package_code("verl", "verl.utils", "verl.utils.experimental")
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    logprob, _ = FusedLinearForPPO()(problem.hidden[None], problem.weight, problem.targets[None])
    return problem.gradients(logprob[0], problem.hidden, problem.weight)


def verl_kernel(problem):
    without_package_code("verl", "verl.utils", "verl.utils.kernel")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    logprob, _entropy = linear_cross_entropy(problem.hidden, problem.weight, problem.targets, 1.0)
    return problem.gradients(logprob, problem.hidden, problem.weight)


@torch.no_grad()
def verl_kernel_forward_only(problem):
    without_package_code("verl", "verl.utils", "verl.utils.kernel")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(problem.hidden, problem.weight, problem.targets, 1.0)


def without_package_code(*packages):
    """Let modules of these packages be imported without the packages' own code, which wants Ray and much else."""
    for name in packages:
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = spec.submodule_search_locations


CONTENDERS = {
    "three bare matrix products": floor,
    "the one of the logits": floor_of_forward,
    "equipoise": ours,
    "equipoise, entropy gradient too": ours_with_entropy_gradient,
    "equipoise, frozen head": ours_frozen_head,
    "equipoise, forward only": ours_forward_only,
    "torch, naive": naive,
    "torch, cross_entropy": torch_cross_entropy,
    "torch, linear_cross_entropy": torch_linear_cross_entropy,
    "torch, linear_cross_entropy chunked (mean)": torch_linear_cross_entropy_chunked,
    "TRL, ChunkedLogProb, its optional sums": trl_chunked,
    "TRL, ChunkedLogProb, log-prob alone": trl_chunked_logprob_alone,
    "Liger, fused linear cross entropy (mean)": liger,
    "Liger, fused linear scaled cross entropy": liger_scaled,
    "Liger, scaled, forward only": liger_scaled_forward_only,
    "verl, FusedLinearForPPO": verl,
    "verl, linear_cross_entropy kernel": verl_kernel,
    "verl, kernel, forward only": verl_kernel_forward_only,
}
NEEDS = {"TRL": "trl", "Liger": "liger_kernel", "verl": "verl"}
FLOOR = "three bare matrix products"
