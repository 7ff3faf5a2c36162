"""What a task is: prompts to train on, prompts held out, and the function that scores a completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from datasets import Dataset


@runtime_checkable
class RewardFunction(Protocol):
    """A function that scores completions, with the signature TRL calls.

    Called with keywords only: `prompts` and `completions` (strings, or lists of chat messages), `completion_ids` (token
    ids up to and including the end of sequence), every other column of the data set as a list, and TRL's
    `trainer_state`, `log_extra` and `log_metric`. What is not used goes into `**columns`. TRL names its metrics after
    `__name__`.
    """

    __name__: str

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> Sequence[float | None]:
        """One reward per completion; None leaves a completion unscored."""
        ...


@dataclass(frozen=True)
class Task:
    """Prompts, held-out prompts and the reward that checks them.

    Attributes:
        name: short name, used in file names and logs.
        train: columns "prompt", "answer" and any others the reward function asks for.
        held_out: the same columns, never trained on; None when there are none.
        reward: scores completions.
        max_completion_length: tokens a correct completion may need, end of sequence included; None when not known.
    """

    name: str
    train: Dataset
    held_out: Dataset | None
    reward: RewardFunction
    max_completion_length: int | None
