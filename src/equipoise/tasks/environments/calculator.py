"""Sums with a calculator that does one operation at a time: the smallest environment worth learning.

The prompt "12 + 30 - 7 =" asks for 35. The model may call the calculator, one operation per call, and must in the end
say the number alone. A model of 70,000 parameters that has seen scripted episodes, most of them with mistakes, learns
it on a CPU within minutes.
"""

import random
from typing import Any

from datasets import Dataset

from equipoise.tasks.environments.episode import EpisodeLimits, guarded
from equipoise.tasks.environments.reward import EpisodeReward
from equipoise.tasks.environments.tools import arithmetic
from equipoise.tasks.task import Task

NUM_NUMBERS = 100  # 0 .. 99
NUM_TERMS = (3, 4)
NUM_TRAIN, NUM_HELD_OUT = 2000, 200
MAX_COMPLETION_LENGTH = 40
CALL, END_CALL, ERROR = "<call>", "</call>", "error"


class Calculator:
    """Sums of small numbers, with a calculator for one operation at a time."""

    def __init__(self) -> None:
        self.answer = ""

    def reset(self, answer: str, **row: Any) -> None:
        """A new sum; it stands in the prompt."""
        self.answer = answer

    def calculate(self, expression: str) -> str:
        """The result of one operation.

        Args:
            expression: two numbers from 0 to 99 with + or - between them.
        """
        words = expression.split()
        if len(words) != 3 or words[1] not in ("+", "-"):
            raise ValueError(ERROR)
        result = arithmetic(expression)
        if not 0 <= result < NUM_NUMBERS:
            raise ValueError(ERROR)
        return str(result)

    def get_reward(self) -> float:
        """What is said in the end counts, and only the reward function is given that."""
        return 0.0


class CalculatorReward(EpisodeReward):
    """1.0 for an episode whose last message is the answer alone, else 0.0."""

    def __call__(self, *, completions: list, answer: list[str], **columns: Any) -> list[float]:
        """As `EpisodeReward`; `answer` holds the results."""
        said = [str(messages[-1].get("content") or "").strip() if messages else "" for messages in completions]
        right = [float(text == expected) for text, expected in zip(said, answer, strict=True)]
        super().__call__(completions=completions, **columns)
        self.last_scores = [
            None if score is None else value for score, value in zip(self.last_scores, right, strict=True)
        ]
        return self.neutral(columns["prompts"])


def calculator_task(seed: int = 0, *, max_steps: int = 4, max_failed_fraction: float = 0.2) -> Task:
    """Sums of three and four numbers, 2,000 to train on and 200 held out, with the calculator as the environment.

    Args:
        seed: of the sums and the split.
        max_steps: calls per episode.
        max_failed_fraction: of `EpisodeReward`.

    Returns:
        A task with columns "prompt" (one message of the user) and "answer".
    """
    generator = random.Random(seed)
    sums: dict[str, str] = {}
    while len(sums) < NUM_TRAIN + NUM_HELD_OUT:
        numbers, text = _sum(generator)
        sums[text] = str(numbers)
    rows = list(sums.items())
    return Task(
        name="calculator",
        train=_dataset(rows[NUM_HELD_OUT:]),
        held_out=_dataset(rows[:NUM_HELD_OUT]),
        reward=CalculatorReward(max_failed_fraction),
        max_completion_length=MAX_COMPLETION_LENGTH,
        environment_factory=guarded(Calculator, EpisodeLimits(max_steps=max_steps, step_seconds=5)),
    )


def scripted_episode(generator: random.Random, *, skill: float = 0.4) -> tuple[str, list[list[str]]]:
    """A prompt and the turns of an episode, as words: each turn of the model followed by the calculator's answer.

    With the probability `skill` every call is the next one that is needed and the end is right; otherwise a call has a
    random operand or operation, the rest follows from it, or the end is said too early.

    Returns:
        ("12 + 30 - 7 =", [["<call>", "12", "+", "30", "</call>"], ["42"], …, ["35"]]): the model speaks first and last.
    """
    _, text = _sum(generator)
    words = text.split()[:-1]
    value, rest = words[0], words[1:]
    turns: list[list[str]] = []
    while rest:
        operation, operand, *rest = rest
        mistaken = generator.random() > skill ** (1 / max(NUM_TERMS))
        if mistaken:
            choice = generator.randrange(3)
            if choice == 0:
                operand = str(generator.randrange(NUM_NUMBERS))
            elif choice == 1:
                operation = "-" if operation == "+" else "+"
            elif turns:
                break
        turns.append([CALL, value, operation, operand, END_CALL])
        result = arithmetic(f"{value} {operation} {operand}")
        if not 0 <= result < NUM_NUMBERS:
            turns.append([ERROR])
            break
        value = str(result)
        turns.append([value])
    turns.append([value])
    return text, turns


def _sum(generator: random.Random) -> tuple[int, str]:
    """A sum whose every intermediate result is in range: its value and "a + b - c ="."""
    value = generator.randrange(NUM_NUMBERS)
    words = [str(value)]
    for _ in range(generator.choice(NUM_TERMS) - 1):
        sign = generator.choice((1, -1))
        operand = generator.randrange(NUM_NUMBERS - value if sign > 0 else value + 1)
        value += sign * operand
        words += ["+" if sign > 0 else "-", str(operand)]
    return value, " ".join([*words, "="])


def _dataset(rows: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": text}] for text, _ in rows], "answer": [answer for _, answer in rows]}
    )
