"""What steering needs of a run on several ranks: a sum and the rows of all, as plain functions."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Ranks:
    """The ranks that share an update; by default there is one.

    Attributes:
        all_reduce: a vector -> its sum over the ranks, on every rank.
        all_gather: rows [n, …] -> those of every rank, in order of rank; n may differ between ranks.
        rank: number of this one.
    """

    all_reduce: Callable[[Tensor], Tensor] = _itself
    all_gather: Callable[[Tensor], list[Tensor]] = _alone
    rank: int = 0
