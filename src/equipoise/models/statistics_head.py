"""The statistics head: token statistics inside the model's own forward, in the place of TRL's fused head.

Inside the forward of the model and of its LM head, because FSDP, DeepSpeed, LoRA and device maps gather, replace and
move the weights there; reading `lm_head.weight` from outside would find a shard of it.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from equipoise.statistics import linear_token_statistics

# How the model families write a factor on the logits in their configuration; `logits_scaling` divides, except in one.
_LOGIT_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass
class StatisticsOutput(ModelOutput):
    """Statistics of the next-token labels, [batch, length - 1] each, zero where the label is -100.

    Attributes:
        log_probs: log pi of the label, nats, differentiable (TRL's name).
        entropy: nats, differentiable.
        tendency: T of the label, detached.
        correction: C of the state, detached.
        aux_loss: load-balancing loss of a mixture-of-experts model, when router logits are asked for.
    """

    # Under mixed precision accelerate makes it anew, from one dict of all fields in the first one's place.
    log_probs: Tensor | dict[str, Tensor] | None = None
    entropy: Tensor | None = None
    tendency: Tensor | None = None
    correction: Tensor | None = None
    aux_loss: Tensor | None = None


def add_statistics_head(model: PreTrainedModel, *, temperature: float, float32_products: bool = False) -> None:
    """Make `model(..., labels=labels, fused_lm_head=True)` return a `StatisticsOutput`; other calls are unchanged.

    Only positions whose next-token label is not -100 pass the LM head, and no [tokens, vocabulary] tensor is formed.

    Args:
        model: a causal language model, not wrapped in PEFT (pass the base model). Patched in place.
        temperature: of the sampling policy, > 0; divides the logits.
        float32_products: form logits from float32 hidden states and weights, whatever type the model computes in
            (TRL's `cast_lm_head_to_fp32`).

    Raises:
        ValueError: the LM head has no weight, or one that is packed; or it has an adapter of its own
            (`lora_target_modules`), whose part would be missing. A whole copy that is trained (`modules_to_save`) is
            one head like any other.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is None or not weight.is_floating_point():
        raise ValueError(
            f"log-probs and entropies are formed from the weight of the LM head, and {type(model).__name__} has none "
            f"in floating point there, got a {type(model.get_output_embeddings()).__name__}: leave the head out of a "
            f"quantisation"
        )
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError(
            "an adapter on the LM head is not in its weight, which log-probs and entropies are formed from: leave the "
            "head out of lora_target_modules"
        )
    head = _StatisticsHead(model.config.get_text_config(), temperature, float32_products=float32_products)
    original_forward = model.forward

    # `generate` validates its keyword arguments against the signature, so the class's own is kept.
    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs):
        if not fused_lm_head:
            return original_forward(*args, **kwargs, **({} if labels is None else {"labels": labels}))
        assert labels is not None, "the statistics head needs labels"
        return head.forward(self, args, kwargs, labels)

    model.forward = types.MethodType(forward, model)


class _StatisticsHead:
    """What the forward pass of a model with the statistics head does.

    Args:
        text_config: of the model.
        temperature: divides the logits.
        float32_products: as of `add_statistics_head`.
    """

    def __init__(self, text_config: Any, temperature: float, *, float32_products: bool = False):
        self.text_config, self.temperature, self.float32_products = text_config, temperature, float32_products
        self.softcap = getattr(text_config, "final_logit_softcapping", None)
        self.factor = _logit_factor(text_config)

    def forward(self, model: Any, args: tuple, kwargs: dict[str, Any], labels: Tensor) -> StatisticsOutput:
        """The backbone's hidden states of the scored positions, and the statistics of their labels."""
        if getattr(self.text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone = model.base_model(*args, **kwargs, use_cache=False)
        hidden, labels = backbone.last_hidden_state[:, :-1], labels[:, 1:]
        head, origin = model.get_output_embeddings(), labels.device
        if head.weight.is_meta:
            raise ValueError("the LM head is offloaded: the statistics head needs its weight on a device")
        hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)
        scored = labels != -100
        of_rows = functools.partial(self._statistics, head, labels[scored])
        statistics = _in_the_place_of_forward(head, of_rows, hidden[scored])
        # Scattering keeps the graph connected when no label is scored: every rank then still has a backward pass.
        logprob, entropy, tendency, correction = (
            x.new_zeros(scored.shape).masked_scatter(scored, x).to(origin) for x in statistics
        )
        asked = kwargs.get("output_router_logits")
        aux_loss = _load_balancing_loss(backbone, self.text_config, kwargs) if asked else None
        return StatisticsOutput(logprob, entropy, tendency, correction, aux_loss)

    def _statistics(self, head: Any, targets: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        weight, bias = _present(head)
        products = torch.float32 if self.float32_products else _type_of_products(rows)
        rows = (rows if self.factor == 1 else rows * self.factor).to(products)
        bias = None if bias is None else bias * self.factor
        # Sums want float32 logits; under autocast the product would be rounded to bf16 first.
        with torch.autocast(rows.device.type, enabled=False):
            return linear_token_statistics(
                rows, weight, targets, bias=bias, temperature=self.temperature, softcap=self.softcap
            )


def _logit_factor(text_config) -> float:
    for name in _LOGIT_FACTORS:
        value = getattr(text_config, name, None)
        if value is not None:
            return value
    scaling = getattr(text_config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if text_config.model_type == "hyperclovax" else 1 / scaling


def _in_the_place_of_forward(module: nn.Module, function: Callable[[Tensor], Any], given: Tensor) -> Any:
    """What `function` returns, called as the module: FSDP and DeepSpeed gather weights and reduce gradients by that."""
    own = module.__dict__.get("forward")
    module.forward = function
    try:
        return module(given)
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _present(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an LM head, whole."""
    if not head.weight.numel():
        raise ValueError(
            "the weight of the LM head is not gathered where the head is called: DeepSpeed ZeRO-3 does not go with a "
            "head that is wrapped in another module"
        )
    return head.weight, getattr(head, "bias", None)


def _type_of_products(rows: Tensor) -> torch.dtype:
    """That of the hidden states; on a GPU under autocast its type, since float32 products would be ten times slower."""
    if rows.is_cuda and rows.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return rows.dtype


def _load_balancing_loss(backbone, text_config, kwargs) -> Tensor:
    # The loss of Mixtral is the one all families of mixture-of-experts models in transformers share.
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    num_experts = getattr(text_config, "num_experts", None) or text_config.num_local_experts
    loss = load_balancing_loss_func(
        backbone.router_logits, num_experts, text_config.num_experts_per_tok, kwargs.get("attention_mask")
    )
    return cast(Tensor, loss)
