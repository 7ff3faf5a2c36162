"""The processes that share an evaluation: who has which prompt, what is put together, and one error that ends all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line

T = TypeVar("T")


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class EvaluationRanks:
    """The ranks that share an evaluation; by default there is one.

    Attributes:
        rank: number of this one.
        count: how many there are.
        gather: plain data (`equipoise.plain_data`) -> those of every rank, in order of rank, on every rank; all have to
            call it.
        in_step: the model is sharded, so that no rank can generate unless all of them do.
        own_seeds: every sample has a seed of its own, so that it is the same on any number of ranks. One process alone
            draws all of its samples from one generator.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = _alone
    in_step: bool = False
    own_seeds: bool = False

    def part(self, total: int) -> list[int]:
        """The rows of this rank: every `count`-th of `total`, none where there are fewer rows than ranks."""
        return list(range(self.rank, total, self.count))

    def merged(self, own: list[T]) -> list[T]:
        """The values of all rows in their order, on every rank, from those of this rank's `part`."""
        parts = self.gather(own)
        return [parts[row % self.count][row // self.count] for row in range(sum(map(len, parts)))]

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` returns here, once it has ended on every rank; what fails on one is raised on all.

        Args:
            work: does not wait for other ranks: one of them may already have failed.

        Raises:
            InputError: on another rank, in its words.
            RuntimeError: the same, for any other error.
        """
        if self.count == 1:
            return work()
        try:
            result, error = work(), None
        except Exception as caught:
            result, error = None, caught
        self.raise_of_any(error)
        return result  # pyright: ignore[reportReturnType]

    def generated(self, work: Callable[[], T]) -> T:
        """As `agreed`, for what generates: where that is in step, a failed rank could not tell the others, and ends."""
        return work() if self.in_step else self.agreed(work)

    def raise_of_any(self, error: Exception | None) -> None:
        """Raises on every rank when there is an error on one; all have to call it.

        Raises:
            Exception: the error of this rank itself, else the first of another, as `agreed` says.
        """
        of_input = isinstance(error, InputError)
        said = self.gather(error and (of_input, str(error) if of_input else one_line(error)))
        if error is not None:
            raise error
        for rank, other in enumerate(said):
            if other is not None:
                of_input, line = other
                raise InputError(line) if of_input else RuntimeError(f"rank {rank} failed: {line}")


def seed_of(seed: int, *numbers: int) -> int:
    """A seed that follows from a seed and from what it is for, in 0..2^63 - 1."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))
