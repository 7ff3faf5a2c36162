"""Several tasks in one: prompts in the shares of their weights, each scored by the reward of its own task."""

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks.datasets import with_column
from equipoise.tasks.messages import alike
from equipoise.tasks.prompts import without_held_out
from equipoise.tasks.task import AnswerReader, RewardFunction, Task

logger = logging.getLogger("equipoise")

TASK_COLUMN = "task"


def mixture(tasks: Sequence[Task], weights: Sequence[float], *, seed: int = 0) -> Task:
    """One task whose training prompts come from several, in the shares of the weights.

    An epoch has as many prompts as all tasks together. A task with a larger share than it has prompts repeats them
    (said in one line), one with a smaller share gives a random part. Held-out prompts are all of all tasks; what any
    task holds out, no task trains on.

    Args:
        tasks: with different names.
        weights: positive, one per task; their sum does not matter.
        seed: of what is chosen and of the order.

    Returns:
        A task with the columns of all (None where a task has none of that name) and "task", the name.

    Raises:
        InputError: a weight that is not positive, a task named twice, one with an environment, prompts that are text
            in one and chat messages in another, or columns of one name and different types.
    """
    _check(tasks, weights)
    held_out = [task.held_out for task in tasks if task.held_out is not None]
    all_held_out = _joined([_named(task, task.held_out) for task in tasks if task.held_out is not None])
    parts = []
    total = sum(len(task.train) for task in tasks)
    generator = random.Random(seed)
    for task, weight in zip(tasks, weights, strict=True):
        train = task.train
        for other in held_out:
            train = without_held_out(train, other, task.name)
        parts.append(_named(task, _share(task.name, train, round(total * weight / sum(weights)), generator)))
    train = _joined(parts)
    assert train is not None
    order = list(range(len(train)))
    generator.shuffle(order)
    lengths = [task.max_completion_length for task in tasks]
    return Task(
        name=" + ".join(task.name for task in tasks),
        train=train.select(order),
        held_out=all_held_out,
        reward=MixtureReward({task.name: task.reward for task in tasks}),
        max_completion_length=None if None in lengths else max(length for length in lengths if length),
        verifier=MixtureReward({task.name: task.evaluation_reward for task in tasks}),
    )


class MixtureReward:
    """The reward of the task that each prompt belongs to, by the column "task"."""

    def __init__(self, rewards: dict[str, RewardFunction]) -> None:
        self.__name__ = "mixture_reward"
        self.rewards = rewards

    def __call__(self, *, prompts: list, completions: list, task: list[str], **columns: Any) -> list[float | None]:
        """One reward per completion; the mean of each task is logged as reward/TASK."""
        rewards: list[float | None] = [None] * len(completions)
        for name, rows, chosen in self._parts(task, {"prompts": prompts, "completions": completions} | columns):
            scores = list(self.rewards[name](**chosen))
            for row, score in zip(rows, scores, strict=True):
                rewards[row] = score
            scored = [score for score in scores if score is not None]
            if scored and "log_metric" in columns:
                columns["log_metric"](f"reward/{name}", sum(scored) / len(scored))
        return rewards

    def given_answers(self, *, prompts: list, completions: list, task: list[str], **columns: Any) -> list[str | None]:
        """The answers that the rewards of the tasks read; None for those of a task whose reward reads none."""
        given: list[str | None] = [None] * len(completions)
        for name, rows, chosen in self._parts(task, {"prompts": prompts, "completions": completions} | columns):
            reward = self.rewards[name]
            if isinstance(reward, AnswerReader):
                for row, answer in zip(rows, reward.given_answers(**chosen), strict=True):
                    given[row] = answer
        return given

    def _parts(self, task: list[str], keywords: dict[str, Any]) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
        """Each task that has prompts: its name, their rows, and the keywords of its reward."""
        for name in self.rewards:
            if rows := [row for row, owner in enumerate(task) if owner == name]:
                yield (
                    name,
                    rows,
                    {
                        key: [values[row] for row in rows] if isinstance(values, list) else values
                        for key, values in keywords.items()
                    },
                )


def _check(tasks: Sequence[Task], weights: Sequence[float]) -> None:
    names = [task.name for task in tasks]
    for task, weight in zip(tasks, weights, strict=True):
        if not weight > 0:
            raise InputError(f"task {task.name}: the weight of a task in a mixture must be > 0, got {weight:g}")
        if names.count(task.name) > 1:
            raise InputError(f"task {task.name} occurs twice in the mixture; give one term with the sum of the weights")
        if task.environment_factory is not None:
            raise InputError(f"task {task.name} has an environment and cannot be part of a mixture")
        if isinstance(task.train["prompt"][0], str) != isinstance(tasks[0].train["prompt"][0], str):
            raise InputError(
                f"tasks {names[0]} and {task.name}: prompts are text in one and chat messages in the other; "
                "chat: true makes all of them chat messages"
            )


def _share(name: str, train: Dataset, count: int, generator: random.Random) -> Dataset:
    if count < 1:
        raise InputError(f"task {name}: its weight in the mixture is too small for a single prompt")
    if count > len(train):
        logger.warning("%s: each of its %d prompts occurs about %.1f times.", name, len(train), count / len(train))
    rows: list[int] = []
    while len(rows) < count:
        rows += generator.sample(range(len(train)), min(len(train), count - len(rows)))
    return train.select(rows)


def _named(task: Task, dataset: Dataset) -> Dataset:
    return with_column(dataset, TASK_COLUMN, [task.name] * len(dataset))


def _joined(parts: list[Dataset]) -> Dataset | None:
    if not parts:
        return None
    try:
        return datasets.concatenate_datasets(alike(parts))
    except ValueError as error:  # the columns of one name must have one type
        raise InputError(
            f"the tasks of the mixture have columns of one name and different types: {' '.join(str(error).split())}"
        ) from error
