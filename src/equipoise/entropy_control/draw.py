"""Random numbers that belong to a token, not to a place in a batch: the same for any split of an update."""

import torch
from jaxtyping import Int64
from torch import Tensor

from equipoise.splitmix import splitmix64


def token_draw(
    row: Int64[Tensor, " tokens"], position: Int64[Tensor, " tokens"], *, seed: int, update: int
) -> Int64[Tensor, " tokens"]:
    """A uniform 64-bit number per token from (seed, update, sequence, position, occurrence), counter-based.

    The generator is SplitMix64. Tokens of equal sequences at equal positions are told apart by their
    occurrence; as they are equal, it does not matter which of them is which.

    Args:
        row: identity of the token's sequence (`row_identity`), not its place.
        position: of the token in its completion.
        seed: of the run.
        update: number of the update.
    """
    token = splitmix64(row ^ splitmix64(position))
    order = token.argsort(stable=True)
    place = torch.arange(len(token), device=token.device)
    is_first = torch.ones_like(place, dtype=torch.bool)
    is_first[1:] = token[order][1:] != token[order][:-1]
    occurrence = torch.empty_like(place)
    occurrence[order] = place - torch.where(is_first, place, 0).cummax(0).values if len(place) else place
    start = splitmix64(splitmix64(torch.tensor(seed, device=token.device)) + update)
    return splitmix64(start ^ splitmix64(token ^ splitmix64(occurrence)))


def row_identity(
    prompt: Int64[Tensor, "batch prompt"],
    prompt_mask: Int64[Tensor, "batch prompt"],
    completion: Int64[Tensor, "batch time"],
    completion_mask: Int64[Tensor, "batch time"],
) -> Int64[Tensor, " batch"]:
    """A hash of the tokens of each sequence, whatever padding stands left of the prompt and right of the completion."""
    return _hash(prompt.flip(1), prompt_mask.flip(1)) + splitmix64(_hash(completion, completion_mask))


def _hash(ids: Int64[Tensor, "batch time"], mask: Int64[Tensor, "batch time"]) -> Int64[Tensor, " batch"]:
    place = torch.arange(ids.shape[1], device=ids.device)
    return (splitmix64(ids ^ splitmix64(place)) * mask).sum(1)  # sums of 64 bits wrap around, as they should
