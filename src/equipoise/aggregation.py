"""From a loss per token to a scalar, with the denominator in the open: it is never that of the micro-batch."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

Normalization = Literal["token", "sequence", "length"]


@dataclass(frozen=True)
class UpdateSize:
    """How much one optimizer update holds, over all its micro-batches and ranks. Adds.

    Attributes:
        num_tokens: action tokens.
        num_sequences: sequences, those without action tokens included.
    """

    num_tokens: int
    num_sequences: int

    def __add__(self, other: "UpdateSize") -> "UpdateSize":
        """The size of both together."""
        return UpdateSize(self.num_tokens + other.num_tokens, self.num_sequences + other.num_sequences)

    @classmethod
    def of(cls, action_mask: Bool[Tensor, "batch time"]) -> "UpdateSize":
        """The size of one micro-batch."""
        return cls(int(action_mask.sum()), action_mask.shape[0])


def aggregate(
    loss: Float[Tensor, "batch time"],
    action_mask: Bool[Tensor, "batch time"],
    update_size: UpdateSize,
    *,
    normalization: Normalization,
    max_length: int | None = None,
) -> Float[Tensor, ""]:
    """This micro-batch's share of the loss of the whole update: shares add up to the loss, gradients likewise.

    "token": sum over tokens / tokens of the update (DAPO). "sequence": mean over sequences of the mean over their
    tokens (GRPO). "length": sum over tokens / (sequences of the update x max_length) (Dr. GRPO).

    Args:
        loss: per token; whatever lies outside the mask is ignored, NaN included.
        action_mask: True on tokens the policy chose.
        update_size: of the whole update, all micro-batches and ranks.
        normalization: the denominator; there is no default.
        max_length: tokens, for "length" only.

    Raises:
        ValueError: an unknown normalization, or "length" without a positive max_length.
    """
    loss = loss.masked_fill(~action_mask, 0.0)
    if normalization == "token":
        return loss.sum() / max(update_size.num_tokens, 1)
    if normalization == "sequence":
        per_sequence = loss.sum(-1) / action_mask.sum(-1).clamp(min=1)
        return per_sequence.sum() / max(update_size.num_sequences, 1)
    if normalization == "length":
        if max_length is None or max_length <= 0:
            raise ValueError(f"normalization 'length' needs max_length > 0, got {max_length}")
        return loss.sum() / (max(update_size.num_sequences, 1) * max_length)
    raise ValueError(f"normalization must be 'token', 'sequence' or 'length', got {normalization!r}")
