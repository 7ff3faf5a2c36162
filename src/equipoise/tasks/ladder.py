"""The number ladder: reach a target number from a start number by small arithmetic steps.

The prompt "12 20 =" asks for a chain from 12 to 20; "+7 19 +1 20" answers it: operation, result, operation, result.
Most pairs have many valid chains, so that the diversity of a policy shows, and a model of 60,000 parameters can learn
it on a CPU within minutes.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from equipoise.tasks.task import Task

NUM_NUMBERS = 50  # the numbers are 0 .. 49
MAX_STEPS = 6
MIN_DISTANCE, MAX_DISTANCE = 2, 5  # of a pair, in steps of the shortest chain
HELD_OUT_FRACTION = 0.15
MAX_COMPLETION_LENGTH = 2 * MAX_STEPS + 1  # an operation and a result per step, and the end of sequence
SEPARATOR = "="

OPERATIONS: dict[str, Callable[[int], int]] = {
    "+1": lambda number: number + 1,
    "-1": lambda number: number - 1,
    "+7": lambda number: number + 7,
    "-7": lambda number: number - 7,
    "*2": lambda number: number * 2,
}
# Only these spellings count: "07" or "+12" are no numbers of the ladder.
_NUMBERS = {str(number): number for number in range(NUM_NUMBERS)}


def ladder_task(seed: int = 0) -> Task:
    """The number ladder, its pairs at distance 2 to 5 split into 1,659 to train on and 292 held out.

    Args:
        seed: of the split; the same seed gives the same split.

    Returns:
        A task with columns "prompt" ("s t =") and "answer" (t as a string).
    """
    pairs = _pairs()
    random.Random(seed).shuffle(pairs)
    num_held_out = int(len(pairs) * HELD_OUT_FRACTION)
    return Task(
        name="ladder",
        train=_pair_dataset(pairs[num_held_out:]),
        held_out=_pair_dataset(pairs[:num_held_out]),
        reward=ladder_reward,
        max_completion_length=MAX_COMPLETION_LENGTH,
        right_completions=lambda rows: list(map(shortest_ladder, rows["prompt"])),
    )


def ladder_reward(*, prompts: list, completions: list, **columns: Any) -> list[float]:
    """1.0 for every completion that is a valid chain of its prompt, else 0.0.

    Args:
        prompts: "s t =" strings.
        completions: decoded completions, one per prompt.
        columns: ignored.
    """
    return [float(is_valid_ladder(*texts)) for texts in zip(prompts, completions, strict=True)]


def is_valid_ladder(prompt: str, completion: str) -> bool:
    """Whether the completion is a chain of 1 to 6 steps from the prompt's start that stops on its target.

    Every result must follow from the number before it and stay in 0..49. A completion cut off by a length of 13 tokens
    is never valid: without an end of sequence it has an odd number of words.

    Args:
        prompt: "s t =".
        completion: words separated by white space, operation and result in turn.

    Raises:
        ValueError: when the prompt is not of the form "s t =" with numbers in 0..49.
    """
    current, target = _start_and_target(prompt)
    words = completion.split()
    if len(words) % 2 or not 1 <= len(words) // 2 <= MAX_STEPS:
        return False
    for operation, result in zip(words[::2], words[1::2], strict=True):
        if operation not in OPERATIONS or _NUMBERS.get(result) != OPERATIONS[operation](current):
            return False
        current = _NUMBERS[result]
    return current == target


def shortest_ladder(prompt: str) -> str:
    """A shortest valid chain for a prompt, as a completion; empty when there is none.

    Raises:
        ValueError: when the prompt is not of the form "s t =" with numbers in 0..49.
    """
    start, target = _start_and_target(prompt)
    chains: dict[int, list[str]] = {start: []}
    frontier = [start]
    while frontier and target not in chains:
        number = frontier.pop(0)
        for operation, result in _neighbours(number).items():
            if result not in chains:
                chains[result] = [*chains[number], operation, str(result)]
                frontier.append(result)
    return " ".join(chains.get(target, []))


def random_walk_texts(count: int, generator: np.random.Generator) -> list[tuple[str, str]]:
    """Random walks as (prompt, response) pairs: the prompt asks for the number on which the walk happened to end.

    The start is uniform, the number of steps uniform in 1..6, each step uniform among the operations that stay in
    range. The pairs of a task, held-out ones too, may occur among them: held out means held out of reinforcement.

    Args:
        count: number of walks.
        generator: source of randomness; it is advanced.
    """
    return [_random_walk(generator) for _ in range(count)]


def _pairs() -> list[tuple[int, int]]:
    """All (start, target) whose shortest chain has 2 to 5 steps, in order."""
    return [
        (start, target)
        for start in range(NUM_NUMBERS)
        for target, distance in sorted(_distances(start).items())
        if MIN_DISTANCE <= distance <= MAX_DISTANCE
    ]


def _distances(start: int) -> dict[int, int]:
    """Steps of the shortest chain from start to each number that can be reached."""
    distances = {start: 0}
    frontier = [start]
    while frontier:
        number = frontier.pop(0)
        for neighbour in _neighbours(number).values():
            if neighbour not in distances:
                distances[neighbour] = distances[number] + 1
                frontier.append(neighbour)
    return distances


def _neighbours(number: int) -> dict[str, int]:
    """Operation -> result, for the operations that stay in range."""
    results = {name: operation(number) for name, operation in OPERATIONS.items()}
    return {name: result for name, result in results.items() if 0 <= result < NUM_NUMBERS}


def _random_walk(generator: np.random.Generator) -> tuple[str, str]:
    start = current = int(generator.integers(NUM_NUMBERS))
    words = []
    for _ in range(int(generator.integers(1, MAX_STEPS + 1))):
        steps = list(_neighbours(current).items())
        operation, current = steps[int(generator.integers(len(steps)))]
        words += [operation, str(current)]
    return _prompt(start, current), " ".join(words)


def _prompt(start: int, target: int) -> str:
    return f"{start} {target} {SEPARATOR}"


def _start_and_target(prompt: str) -> tuple[int, int]:
    words = prompt.split()
    if len(words) != 3 or words[2] != SEPARATOR or words[0] not in _NUMBERS or words[1] not in _NUMBERS:
        raise ValueError(f'a ladder prompt must be "s t =" with numbers in 0..{NUM_NUMBERS - 1}, got {prompt!r}')
    return _NUMBERS[words[0]], _NUMBERS[words[1]]


def _pair_dataset(pairs: list[tuple[int, int]]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [_prompt(*pair) for pair in pairs], "answer": [str(target) for _, target in pairs]}
    )
