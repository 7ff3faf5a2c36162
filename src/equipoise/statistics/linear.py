"""Token statistics straight from hidden states and the LM head, without the [tokens, vocabulary] logits.

The vocabulary is walked in tiles of all tokens (`walk`); the sums of the tiles merge (`moments`). The head is read once
per walk and its gradient written once. The backward pass walks again, over the tokens that have an upstream gradient.
It has two shortcuts: a vocabulary of one tile keeps its logits, and before a frozen head the forward pass carries the
sum that the gradient of log-prob consists of (`carried`). Row operations: `torch_rows`, on a GPU `triton_rows`; on a
Hopper GPU `triton_fused` does them where the logits are formed.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.errors import require
from equipoise.statistics import torch_rows, triton_fused, triton_rows
from equipoise.statistics.carried import Carried
from equipoise.statistics.checks import check_head, check_rows, check_targets, check_temperature
from equipoise.statistics.gradients import Wanted, walk_back
from equipoise.statistics.moments import row_statistics
from equipoise.statistics.row_state import RowState
from equipoise.statistics.sums import walk_forward
from equipoise.statistics.walk import HeadWalk, tile_width
from equipoise.types import TokenStatistics

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
        backend: "torch", "triton" (CUDA, not float64), or "auto": triton wherever it can run.

    Returns:
        TokenStatistics shaped like `targets`, in nats.

    Raises:
        ValueError: shapes or devices that do not fit, targets out of range, temperature or softcap <= 0, an unknown
            backend or one that cannot run here, or a row whose logits are -inf throughout.
    """
    check_head(hidden, weight, targets, bias, softcap)
    require("backend", backend, f"one of {', '.join(BACKENDS)}", backend in BACKENDS)
    check_temperature(temperature)
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
    # The interpreter is for tests: "auto" does not choose it.
    return possible and (backend == "triton" or hidden.is_cuda)


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

    def walk(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        logits: Tensor | None = None,
        needs_logits: bool = False,
    ) -> HeadWalk:
        """The tiles of the head over some tokens; `logits` are those of the only tile, if they were kept."""
        # In the hidden states the temperature costs nothing per logit; a softcap acts before it. Triton kernels
        # divide for free.
        folded = self.softcap is None and not self.triton
        needs_logits |= logits is not None or not self.triton
        fused = not needs_logits and triton_fused.fits(hidden, weight, bias, self.softcap)
        return HeadWalk(hidden, weight, bias, 1 / self.temperature if folded else 1.0, logits, fused=fused)

    def of_rows(self, walk: HeadWalk) -> dict:
        """Temperature and softcap as the row operations have yet to apply them."""
        return {"temperature": self.temperature if walk.scale == 1 else 1.0, "softcap": self.softcap}


class _LinearStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, settings: _Settings):
        prepares = settings.recorded and any(ctx.needs_input_grad)
        keeps = prepares and tile_width(len(hidden), len(weight), hidden.device) >= len(weight)
        carries = prepares and not keeps and settings.softcap is None and not any(ctx.needs_input_grad[1:])
        walk = settings.walk(hidden, weight, bias, needs_logits=keeps or carries)
        carried = Carried.nothing(walk) if carries else None
        moments, target_logit = walk_forward(walk, settings.rows, targets, carried, **settings.of_rows(walk))
        logprob, entropy, tendency, correction, log_s0 = row_statistics(moments, target_logit)
        # Last: a GPU has all its work by now, and no operation above goes wrong on what is refused here.
        check_targets(targets, len(weight))
        check_rows(moments.maximum)
        ctx.save_for_backward(
            hidden, weight, targets, bias, moments.maximum, log_s0, entropy, target_logit, moments.t0, *(carried or ())
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
        hidden, weight, targets, bias, maximum, log_s0, entropy, target_logit, t0, *carried = ctx.saved_tensors
        if carried and entropy_gradient is None:
            gradient = Carried(*carried).hidden_gradient(
                weight, targets, t0, logprob_gradient / ctx.settings.temperature
            )
            return gradient.to(hidden.dtype), None, None, None, None
        g, g_entropy = (None if x is None else x.contiguous() for x in (logprob_gradient, entropy_gradient))
        state = RowState(targets, maximum, log_s0, entropy, target_logit, g, g_entropy)
        logits, ctx.logits = ctx.logits, None  # overwritten below; a second backward pass forms them again
        return _gradients(hidden, weight, bias, state, logits, ctx.needs_input_grad, ctx.settings)


def _gradients(hidden, weight, bias, state: RowState, logits, needs_input_grad, settings: _Settings):
    """Gradients in hidden, weight and bias, from logits that are formed anew or were kept (flat)."""
    index, num_rows, width = state.moving(), *hidden.shape
    hidden_dtype = hidden.dtype
    if index is not None:
        logits = None if logits is None else logits.view(num_rows, -1)[index].view(-1)
        state, hidden = state.at(index), hidden[index]
    walk = settings.walk(hidden, weight, bias, logits=logits)
    wants_hidden, wants_weight, _, wants_bias = needs_input_grad[:4]
    found = walk_back(
        walk,
        settings.rows,
        state,
        Wanted(wants_hidden, wants_weight, wants_bias),
        formed=logits is not None,
        **settings.of_rows(walk),
    )
    hidden_gradient = found.hidden
    if hidden_gradient is not None:
        hidden_gradient = hidden_gradient.to(hidden_dtype)
        if index is not None:
            everywhere = hidden_gradient.new_zeros(num_rows, width)
            hidden_gradient = everywhere.index_copy_(0, index, hidden_gradient)
    return hidden_gradient, found.weight, None, found.bias, None
