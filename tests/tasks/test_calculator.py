"""The calculator task: sums, the environment, scripted episodes."""

import random

import pytest

from equipoise.errors import InputError
from equipoise.tasks import named_task
from equipoise.tasks.environments.calculator import calculator_task, scripted_episode


def test_sums_their_answers_and_their_split():
    task = calculator_task(seed=1)
    assert (len(task.train), len(task.held_out)) == (2000, 200)
    texts = [row[0]["content"] for data in (task.train, task.held_out) for row in data["prompt"]]
    assert len(set(texts)) == 2200
    for text, answer in zip(texts, [*task.train["answer"], *task.held_out["answer"]], strict=True):
        words = text.split()
        values = [int(words[0])]
        for sign, number in zip(words[1:-1:2], words[2:-1:2], strict=True):
            values.append(values[-1] + int(number) * (1 if sign == "+" else -1))
        assert str(values[-1]) == answer
        assert all(0 <= value < 100 for value in values)
    assert named_task("calculator?seed=1").train.to_list() == task.train.to_list()
    assert calculator_task(seed=2).train.to_list() != task.train.to_list()


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 + 30", "42"), ("42 - 7", "35"), ("60 + 60", "error"), ("3 - 4", "error"), ("1 + 2 + 3", "error"),
        ("3 * 3", "error"), ("a + b", "the expression must be numbers, + - * / // % ** and parentheses"), ("", "error"),
    ],
)  # fmt: skip
def test_the_calculator_does_one_operation_on_small_numbers(expression, result):
    episode = calculator_task().environment_factory()
    episode.reset(answer="35")
    assert episode.calculate(expression=expression) == result
    assert not episode.failed


def test_what_is_said_in_the_end_is_the_answer():
    task = calculator_task()
    ends = [[{"content": "7"}], [{"content": " 7 \n"}], [{"content": "8"}], [{"content": "7"}, {"content": None}], []]
    episodes = [task.environment_factory() for _ in ends]
    for episode in episodes:
        episode.reset(answer="7")
    called = {"prompts": ["p"] * 5, "answer": ["7"] * 5, "environments": episodes}
    assert task.reward(completions=ends, **called) == [1.0, 1.0, 0.0, 0.0, 0.0]
    episodes[1]._fail("error", "x")
    assert task.reward(completions=ends, **called) == [1.0, 0.25, 0.0, 0.0, 0.0]


def test_scripted_episodes_are_right_as_often_as_their_skill_says():
    generator = random.Random(0)
    assert all(_right(*scripted_episode(generator, skill=1.0)) for _ in range(200))
    share = sum(_right(*scripted_episode(generator)) for _ in range(2000)) / 2000
    assert 0.4 < share < 0.7, "each of two or three calls is right with 0.4^(1/4), some mistakes do not matter"


def _right(prompt, turns):
    *_, end = turns
    return end == [str(eval(prompt.removesuffix("=")))] and turns[-2] == end


def test_refused_parameters():
    for query, message in (("max_steps=0", "max_steps >= 1"), ("max_failed_fraction=0", r"must be in \(0, 1\]")):
        with pytest.raises(InputError, match=message):
            named_task(f"calculator?{query}")
    with pytest.raises(InputError, match="task calculator has a reward of its own|leave reward out"):
        named_task("calculator", reward="math")
