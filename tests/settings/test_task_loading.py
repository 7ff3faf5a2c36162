"""The task of a run from its settings: own data, held-out data, who verifies them, episodes."""

import json
import logging
from pathlib import Path

import pytest

from equipoise.errors import InputError, SettingError, read_from
from equipoise.settings.run import RunSettings
from equipoise.settings.task_loading import evaluation_task, load_task
from equipoise.tasks import ladder_task


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(name, *rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def sums(*numbers):
    return [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in numbers]


def settings(**keys):
    return RunSettings(model="m", **keys)


def test_held_out_data_are_removed_from_training_and_counted(caplog):
    write("train.jsonl", *sums(1, 2, 3))
    write("test.jsonl", *sums(3, 4))
    with caplog.at_level(logging.WARNING):
        task = load_task(settings(task="data:train.jsonl", eval_task="data:test.jsonl", reward="exact"))
    assert task.name == "train"
    assert (task.train["prompt"][:], task.held_out["prompt"][:]) == (["1+1=", "2+2="], ["3+3=", "4+4="])
    assert "train: 1 of 3 training prompts" in caplog.text
    with pytest.raises(InputError, match="train: all 3 training prompts are also in the held-out data"):
        load_task(settings(task="data:train.jsonl", eval_task="data:train.jsonl", reward="exact"))


def test_every_data_set_has_columns_of_its_own():
    write("train.jsonl", {"question": "1+1=", "solution": "2"})
    write("test.jsonl", {"prompt": "2+2=", "value": 4})
    task = load_task(settings(task="data:train.jsonl?prompt_column=question&answer_column=solution",
                              eval_task="data:test.jsonl?answer_column=value"))  # fmt: skip
    assert (task.train["answer"][:], task.held_out["answer"][:]) == (["2"], ["4"])


def verdict(task, completion):
    row = {name: values[:1] for name, values in task.held_out.to_dict().items()}
    return task.evaluation_reward(prompts=row.pop("prompt"), completions=[completion], completion_ids=[[0]], **row)


def test_own_data_are_verified_as_the_training_is():
    write("test.jsonl", *sums(3))
    write("train.jsonl", *sums(1))
    task = load_task(settings(task="data:train.jsonl", eval_task="data:test.jsonl", reward="exact + 0.5*format"))
    assert (verdict(task, "6"), verdict(task, "6.0")) == ([1.0], [0.0])
    task = load_task(settings(task="data:train.jsonl", eval_task="data:test.jsonl"))
    assert verdict(task, r"\boxed{6.0}") == [1.0], "math, where nothing is said"
    task = load_task(settings(task="0.5*data:train.jsonl + 0.5*ladder", eval_task="data:test.jsonl"))
    assert verdict(task, r"\boxed{6}") == [1.0], "rows of the user belong to no task of the mixture"


def test_the_ladder_verifies_prompts_of_its_form_and_math_the_others():
    row = ladder_task().held_out[0]
    write("pairs.jsonl", row)
    task = load_task(settings(task="ladder", eval_task="data:pairs.jsonl"))
    assert task.evaluation_reward is ladder_task().reward
    assert len(task.train) == len(ladder_task().train)
    write("sums.jsonl", *sums(3))
    assert verdict(load_task(settings(task="ladder", eval_task="data:sums.jsonl")), r"\boxed{6}") == [1.0]


def test_a_benchmark_brings_its_verifier_and_own_data_take_the_reward():
    write("aime.jsonl", {"problem": "3+3=", "answer": "6"})
    write("own.jsonl", *sums(3))
    for name, right in (("aime_2024?path=aime.jsonl", 1.0), ("data:own.jsonl", 0.0)):
        task = evaluation_task(name, reward="exact")
        answer = task.train["answer"][:1]
        assert task.evaluation_reward(prompts=["3+3="], completions=[r"\boxed{6.0}"], answer=answer) == [right]


GAME = """
class Game:
    def reset(self, secret, **row):
        self.secret = secret

    def guess(self, number: int) -> str:
        \"\"\"Guess.

        Args:
            number: the guess.
        \"\"\"
        return "no"

    def get_reward(self):
        return 1.0
"""


def test_episodes_may_begin_alike(folder):
    (folder / "game_of_tasks.py").write_text(GAME)
    rows = [{"prompt": "Guess.", "answer": "x", "secret": str(n)} for n in (1, 2, 2)]
    write("train.jsonl", *rows)
    write("test.jsonl", {"prompt": "Guess well.", "answer": "x", "secret": "3"})
    keys = {"task": "data:train.jsonl", "environment": "game_of_tasks:Game", "chat": True}
    task = load_task(settings(**keys, eval_task="data:test.jsonl"))
    assert task.train["secret"][:] == ["1", "2"], "a whole row that is repeated is one row"
    assert task.held_out["secret"][:] == ["3"]
    assert task.evaluation_reward is task.reward
    assert task.reward.__name__ == "episode_reward"
    with pytest.raises(InputError, match="leave eval_task out"):
        load_task(settings(**keys, eval_task="calculator"))


BROKEN = {"missing": None, "empty": "", "no rows of it": "[1]\n", "a column less": '{"prompt": "a"}\n'}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(
    ("keys", "key", "spelling"),
    [
        ({"task": "data:{}"}, "task", "dataset"),
        ({"task": "data:{}?limit=3"}, "task", "dataset"),
        ({"task": "ladder + data:{}"}, "task", "task"),
        ({"task": "ladder", "eval_task": "data:{}"}, "eval_task", "eval_dataset"),
    ],
)
def test_data_that_cannot_be_used_are_told_with_their_key(keys, key, spelling, fault):
    if BROKEN[fault] is not None:
        Path("x.jsonl").write_text(BROKEN[fault])
    with pytest.raises(SettingError) as refused:
        load_task(settings(**{name: text.format("x.jsonl") for name, text in keys.items()}))
    assert refused.value.key == key
    assert str(refused.value).startswith(f"{spelling} x.jsonl")


def test_what_is_not_about_the_data_names_its_own_key():
    write("x.jsonl", *sums(1, 2))
    with pytest.raises(InputError, match="^reward") as refused:
        load_task(settings(task="data:x.jsonl", reward="nowhere:judge"))
    assert not isinstance(refused.value, SettingError)


@pytest.mark.parametrize(
    ("keys", "told"), [(["task"], "config a.yaml: dataset x"), ([], "dataset x"), (["seed"], "dataset x")]
)
def test_a_key_that_a_file_has_is_told_with_the_file(keys, told):
    with pytest.raises(InputError) as refused, read_from("config a.yaml", keys):
        raise SettingError("dataset x", "task")
    assert str(refused.value) == told
