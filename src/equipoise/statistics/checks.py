"""What every path of the token statistics refuses, with the same words."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.errors import require


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums over the vocabulary are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    """Refuse hidden states, LM head, targets and bias that do not belong together, and a softcap that caps nothing."""
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [..., width] with targets [...] and weight [vocabulary, width], got hidden "
            f"{tuple(hidden.shape)}, targets {tuple(targets.shape)}, weight {tuple(weight.shape)}"
        )
    if not hidden.shape[-1]:
        raise ValueError(f"hidden must have a width above 0, got hidden {tuple(hidden.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}] like the vocabulary, got {tuple(bias.shape)}")
    devices = {str(x.device) for x in (hidden, weight, targets, bias) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"hidden, weight, targets and bias must be on one device, got {sorted(devices)}")
    require("softcap", softcap, "> 0 and finite, or None", softcap is None or 0 < softcap < math.inf)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number."""
    require("temperature", temperature, "> 0 and finite", 0 < temperature < math.inf)


def check_targets(targets: Int[Tensor, "*shape"], vocabulary: int) -> None:
    """Refuse a target that is no index into the vocabulary."""
    if targets.numel() == 0:
        return
    low, high = (int(x) for x in targets.aminmax())
    if low < 0 or high >= vocabulary:
        raise ValueError(f"targets must be in [0, {vocabulary}), got values from {low} to {high}")


def check_rows(maximum: Float[Tensor, "*rows"]) -> None:
    """Refuse rows in which no token can be sampled."""
    empty = maximum.isneginf()
    if bool(empty.any()):
        where = empty.nonzero()[0].tolist()
        raise ValueError(f"every row of logits needs an entry above -inf, row {where} has none")
