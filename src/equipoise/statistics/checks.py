"""What every path of the token statistics refuses, with the same words."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums over the vocabulary are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")


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
