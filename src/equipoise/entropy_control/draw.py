"""Random numbers that belong to a token, not to a place in a batch: the same for any split of an update."""

import torch
from jaxtyping import Int64
from torch import Tensor


def token_draw(
    row: Int64[Tensor, " tokens"], position: Int64[Tensor, " tokens"], *, seed: int, update: int
) -> Int64[Tensor, " tokens"]:
    """A uniform 64-bit number per token from (seed, update, sequence, position, occurrence), counter-based.

    The generator is the finaliser of SplitMix64. Tokens of equal sequences at equal positions are told apart by their
    occurrence; as they are equal, it does not matter which of them is which.

    Args:
        row: identity of the token's sequence (`row_identity`), not its place.
        position: of the token in its completion.
        seed: of the run.
        update: number of the update.
    """
    token = _mixed(row ^ _mixed(position))
    order = token.argsort(stable=True)
    place = torch.arange(len(token), device=token.device)
    is_first = torch.ones_like(place, dtype=torch.bool)
    is_first[1:] = token[order][1:] != token[order][:-1]
    occurrence = torch.empty_like(place)
    occurrence[order] = place - torch.where(is_first, place, 0).cummax(0).values if len(place) else place
    start = _mixed(_mixed(torch.tensor(seed, device=token.device)) + update)
    return _mixed(start ^ _mixed(token ^ _mixed(occurrence)))


def row_identity(
    prompt: Int64[Tensor, "batch prompt"],
    prompt_mask: Int64[Tensor, "batch prompt"],
    completion: Int64[Tensor, "batch time"],
    completion_mask: Int64[Tensor, "batch time"],
) -> Int64[Tensor, " batch"]:
    """A hash of the tokens of each sequence, whatever padding stands left of the prompt and right of the completion."""
    return _hash(prompt.flip(1), prompt_mask.flip(1)) + _mixed(_hash(completion, completion_mask))


def _hash(ids: Int64[Tensor, "batch time"], mask: Int64[Tensor, "batch time"]) -> Int64[Tensor, " batch"]:
    place = torch.arange(ids.shape[1], device=ids.device)
    return (_mixed(ids ^ _mixed(place)) * mask).sum(1)  # sums of 64 bits wrap around, as they should


def _mixed(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """SplitMix64's step and finaliser on signed numbers."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Int64[Tensor, "*shape"], by: int) -> Int64[Tensor, "*shape"]:
    """A logical shift to the right; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant
