"""What a task is: prompts to train on, prompts held out, and the function that scores a completion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from datasets import Dataset

MAX_REWARD = 1e8
"""Largest reward, either sign. Advantages are made and used in float32 (up to 3.4e38, seven digits), where two squares
must stay finite: that of a reward, summed over a batch, for the standard deviation; and, where advantages are not
normalised, that of a gradient, twice the reward times as large and summed over up to 10^10 parameters, for its norm and
for Adam. 1e8 leaves the gradients of those parameters a factor of 10^5 each. A reward of 1e20 would be NaN at the
first."""


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


@runtime_checkable
class AnswerReader(Protocol):
    """What a reward may have beside its call, where questions have many right answers: which answer was given.

    Evaluations then count distinct correct answers by it, and by the texts of the completions where it is None.
    """

    def given_answers(self, *, prompts: list, completions: list, **columns: Any) -> Sequence[str | None]:
        """The answer that each completion gives, in a normal form: equal for completions that give the same one.

        Called with the keywords of `RewardFunction`; None where a completion gives none, or where it is not known.
        """
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
        verifier: scores completions of held-out prompts, 1.0 for a correct one; None: the reward does that too.
        environment_factory: makes environments for multi-turn episodes, as TRL calls it; None for single answers.
        right_completions: a completion of each row of `train` (or of a part of it) that is correct; None: the column
            "answer" has them.
    """

    name: str
    train: Dataset
    held_out: Dataset | None
    reward: RewardFunction
    max_completion_length: int | None
    verifier: RewardFunction | None = None
    environment_factory: Callable[[], Any] | None = None
    right_completions: Callable[[Dataset], list[str]] | None = None

    @property
    def evaluation_reward(self) -> RewardFunction:
        """What an evaluation calls correct: the verifier, without format and length terms."""
        return self.reward if self.verifier is None else self.verifier


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: itself, or the text of the last message of a chat; "" where there is none."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):  # parts, of which some may be images
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")
