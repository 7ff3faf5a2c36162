"""Token statistics straight from hidden states and the LM head, without the [tokens, vocabulary] logits.

The vocabulary is walked in tiles of all tokens (`walk`); the sums of the tiles merge (`moments`). The head is read once
per walk and its gradient written once. The backward pass walks again, over the tokens that have an upstream gradient.
It has two shortcuts: a vocabulary of one tile keeps its logits, and before a frozen head the forward pass carries the
sum that the gradient of log-prob consists of (`carried`). Row operations: `torch_rows`, on a GPU `triton_rows`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.statistics import torch_rows, triton_rows
from equipoise.statistics.carried import Carried
from equipoise.statistics.checks import check_head, check_rows, check_targets, check_temperature
from equipoise.statistics.moments import Moments, absent_part, row_statistics
from equipoise.statistics.walk import HeadWalk
from equipoise.types import TokenStatistics

TILE = 2048
"""Vocabulary entries per tile on a CPU, at most."""

TILE_ELEMENTS = 2**22
"""Logits per tile on a CPU: with many tokens a tile takes fewer vocabulary entries, which bounds scratch memory."""

CUDA_TILE = 4096
"""Vocabulary entries per tile on a GPU, where each product needs more work; not measured: no GPU was at hand."""

BACKENDS = ("auto", "torch", "triton")


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
        backend: "torch", "triton" (CUDA, not float64), or "auto": torch, until the kernels have been measured on a GPU.

    Returns:
        TokenStatistics shaped like `targets`, in nats.

    Raises:
        ValueError: shapes or devices that do not fit, targets out of range, temperature or softcap <= 0, an unknown
            backend or one that cannot run here, or a row whose logits are -inf throughout.
    """
    check_head(hidden, weight, targets, bias, softcap)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    check_temperature(temperature)
    check_targets(targets, weight.shape[0])
    rows = _LinearStatistics.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1).long(),
        bias,
        _Settings(temperature, softcap, _uses_triton(backend, hidden), torch.is_grad_enabled()),
    )
    return TokenStatistics(*(row.view(targets.shape) for row in rows))


def _uses_triton(backend: str, hidden: Tensor) -> bool:
    """Whether `triton_rows` do the work; refuses where they are asked for and cannot."""
    # Without any CUDA device `available` speaks of triton's interpreter, which takes CPU tensors.
    fits = hidden.dtype != torch.float64 and (hidden.is_cuda or not torch.cuda.is_available())
    possible = backend != "torch" and fits and triton_rows.available()
    if backend == "triton" and not possible:
        raise ValueError(
            f"backend 'triton' needs triton and CUDA tensors that are not float64, "
            f"got {hidden.dtype} on {hidden.device}"
        )
    # Not for "auto" yet: the kernels have run in triton's interpreter and been compiled, but not run on a GPU.
    return possible and backend == "triton"


class _Settings(NamedTuple):
    temperature: float
    softcap: float | None
    triton: bool
    recorded: bool
    """Whether a backward pass may follow."""

    @property
    def rows(self):
        """The module with the row operations."""
        return triton_rows if self.triton else torch_rows

    def walk(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, workspace: Tensor | None = None) -> HeadWalk:
        """The tiles of the head over some tokens."""
        # In the hidden states the temperature costs nothing per logit; a softcap acts before it. Triton kernels
        # divide for free.
        folded = self.softcap is None and not self.triton
        width = _tile_width(len(hidden), len(weight), hidden.device)
        return HeadWalk(hidden, weight, bias, width, 1 / self.temperature if folded else 1.0, workspace)

    def of_rows(self, walk: HeadWalk) -> dict:
        """Temperature and softcap as the row operations have yet to apply them."""
        return {"temperature": self.temperature if walk.scale == 1 else 1.0, "softcap": self.softcap}


def _tile_width(num_rows: int, vocabulary: int, device: torch.device) -> int:
    width = CUDA_TILE if device.type == "cuda" else min(TILE, max(256, TILE_ELEMENTS // max(1, num_rows)))
    return max(1, min(width, vocabulary))


class _LinearStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, settings: _Settings):
        walk = settings.walk(hidden, weight, bias)
        moments = Moments(*(x.clone() for x in absent_part(hidden.shape[:1], walk.dtype, hidden.device)))
        target_logit = torch.zeros(targets.shape, dtype=walk.dtype, device=hidden.device)
        prepares = settings.recorded and not settings.triton and any(ctx.needs_input_grad)
        keeps = prepares and walk.num_tiles == 1
        carries = prepares and not keeps and settings.softcap is None and not any(ctx.needs_input_grad[1:])
        carried = Carried.nothing(walk.hidden) if carries else None
        for tile in walk.tiles():
            column = targets - tile.start
            if carried is None:
                settings.rows.fold_tile(tile.logits, moments, column, target_logit, **settings.of_rows(walk))
            else:
                carried.fold_(tile, weight, moments, column, target_logit)
        check_rows(moments.maximum)
        logprob, entropy, tendency, correction, log_s0 = row_statistics(moments, target_logit)
        ctx.save_for_backward(
            hidden, weight, targets, bias, moments.maximum, log_s0, entropy, moments.t0, *(carried or ())
        )
        ctx.settings = settings
        # A vocabulary of one tile: its logits are the workspace, and kept they spare forming them again.
        ctx.logits = walk.workspace if keeps else None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tendency, correction)
        return logprob, entropy, tendency, correction

    @staticmethod
    @once_differentiable
    def backward(ctx, logprob_gradient, entropy_gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if logprob_gradient is None and entropy_gradient is None:
            return (None,) * 5
        hidden, weight, targets, bias, maximum, log_s0, entropy, t0, *carried = ctx.saved_tensors
        if carried and entropy_gradient is None:
            gradient = Carried(*carried).hidden_gradient(
                weight, targets, t0, logprob_gradient / ctx.settings.temperature
            )
            return gradient.to(hidden.dtype), None, None, None, None
        g, g_entropy = (None if x is None else x.contiguous() for x in (logprob_gradient, entropy_gradient))
        logits, ctx.logits = ctx.logits, None  # overwritten below; a second backward pass forms them again
        rows = _Rows(hidden, targets, maximum, log_s0, entropy, g, g_entropy, logits)
        return _gradients(rows, weight, bias, ctx.needs_input_grad, ctx.settings)


class _Rows(NamedTuple):
    """What a backward pass knows of each token. `logits` are flat, where a vocabulary of one tile kept them."""

    hidden: Tensor
    targets: Tensor
    maximum: Tensor
    log_s0: Tensor
    entropy: Tensor
    logprob_gradient: Tensor | None
    entropy_gradient: Tensor | None
    logits: Tensor | None

    def moving(self) -> Tensor | None:
        """Rows with an upstream gradient, None for all: prompts, padding, groups without advantage have none."""
        moving = torch.zeros_like(self.targets, dtype=torch.bool)
        for gradient in (self.logprob_gradient, self.entropy_gradient):
            if gradient is not None:
                moving |= gradient != 0
        return None if bool(moving.all()) else moving.nonzero()[:, 0]

    def at(self, index: Tensor) -> "_Rows":
        """Some of the rows."""
        logits = None if self.logits is None else self.logits.view(len(self.hidden), -1)
        some = _Rows._make(None if x is None else x[index] for x in self._replace(logits=logits))
        return some._replace(logits=None if some.logits is None else some.logits.view(-1))


def _gradients(rows: _Rows, weight, bias, needs_input_grad, settings: _Settings):
    """Gradients in hidden, weight and bias, from logits that are formed anew or were kept."""
    index, num_rows = rows.moving(), len(rows.hidden)
    rows = rows if index is None else rows.at(index)
    walk = settings.walk(rows.hidden, weight, bias, rows.logits)
    wants_hidden, wants_weight, _, wants_bias = needs_input_grad[:4]
    hidden_gradient = torch.zeros_like(rows.hidden, dtype=walk.dtype) if wants_hidden else None
    weight_gradient = torch.empty_like(weight) if wants_weight else None
    bias_gradient = torch.empty_like(bias) if wants_bias else None
    for tile in walk.tiles(formed=rows.logits is not None):
        settings.rows.gradient_tile_(
            tile.logits,
            rows.maximum,
            rows.log_s0,
            rows.entropy,
            rows.targets - tile.start,
            rows.logprob_gradient,
            rows.entropy_gradient,
            **settings.of_rows(walk),
        )
        if bias_gradient is not None:
            bias_gradient[tile.start : tile.stop] = tile.logits.sum(0).mul_(walk.scale)
        gradient = tile.logits.to(walk.operand)
        if hidden_gradient is not None:
            walk.add_hidden_gradient_(hidden_gradient, gradient, tile)
        if weight_gradient is not None:
            walk.weight_gradient_into(weight_gradient[tile.start : tile.stop], gradient)
    if hidden_gradient is not None:
        hidden_gradient = hidden_gradient.mul_(walk.scale).to(rows.hidden.dtype)
        if index is not None:
            everywhere = hidden_gradient.new_zeros(num_rows, hidden_gradient.shape[1])
            hidden_gradient = everywhere.index_copy_(0, index, hidden_gradient)
    return hidden_gradient, weight_gradient, None, bias_gradient, None
