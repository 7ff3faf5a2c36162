"""`dataset: FILE` is another spelling of `task: data:FILE`: one mechanism, whatever the file is called."""

import json

import pytest

from equipoise.errors import InputError
from equipoise.settings.data_keys import data_term
from equipoise.settings.run import GROUPS, RunSettings
from equipoise.settings.task_loading import load_task
from equipoise.tasks.terms import parsed_terms
from equipoise.trl.keys import checked_keys

NAMES = [
    "plain.jsonl", "two words.jsonl", "a?b.jsonl", "a&b=c.jsonl", "a + b.jsonl", "3*4.jsonl", "it's \"so\".jsonl",
    "a?answer_column=b.jsonl", "C:\\mine\\d.jsonl", "0.5*ladder.jsonl", "'quoted'.jsonl", "a:b.jsonl", "ü – ?.jsonl",
]  # fmt: skip


def write(path, prompts, **columns):
    rows = [{"prompt": p, "answer": "2"} | columns for p in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_exists_is_found_whatever_it_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, ["1+1"], solution="3")
    for source, answer in ((name, "2"), (f"{name}?answer_column=solution", "3")):
        (term,) = parsed_terms(data_term(source), "task")
        assert term.name == f"data:{name}"
        if answer == "3":
            # the file has a column "answer" as well, which is refused by name: the parameter has arrived
            with pytest.raises(InputError, match="column 'solution' was chosen as the answer"):
                load_task(RunSettings(model="m", task=data_term(source)))
        else:
            assert load_task(RunSettings(model="m", task=data_term(source))).train["answer"][:] == [answer]


@pytest.mark.parametrize(
    ("source", "name", "parameters"),
    [
        ("owner/name", "data:owner/name", {}),
        ("owner/name:main?split=test&held_out=0.1", "data:owner/name:main", {"split": "test", "held_out": 0.1}),
        ("none.jsonl?prompt_column=my question", "data:none.jsonl", {"prompt_column": "my question"}),
        ("'what?.jsonl'?split=train", "data:what?.jsonl", {"split": "train"}),
        ("a + b.jsonl", "data:a + b.jsonl", {}),
    ],
)
def test_what_is_no_file_here_is_a_name_and_its_parameters(tmp_path, monkeypatch, source, name, parameters):
    monkeypatch.chdir(tmp_path)
    (term,) = parsed_terms(data_term(source), "task")
    assert (term.name, term.parameters) == (name, parameters)


@pytest.mark.parametrize("spelling", ["dataset", "dataset_name"])
def test_spellings(spelling):
    keys = {spelling: "a.jsonl", "eval_dataset": "b.jsonl?split=test", "reward": "exact"}
    assert checked_keys(keys, "") == {"task": "data:a.jsonl", "eval_task": "data:b.jsonl?split=test", "reward": "exact"}
    assert checked_keys({spelling: None, "task": "ladder", "eval_dataset": None}, "") == {"task": "ladder"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "ladder", "dataset": "d"}, "dataset is given twice, under another name: give either task or dataset"),
        ({"eval_task": "ladder", "eval_dataset": "d"}, "give either eval_task or eval_dataset"),
        ({"dataset": ["a", "b"]}, "dataset must be text"),
        ({"datset": "a"}, "datset is not known; did you mean dataset"),
        ({"prompt_column": "question"}, r"prompt_column is a parameter .*data:FILE\?prompt_column=question"),
        ({"answer_column": "solution"}, r"data:FILE\?answer_column=solution"),
        ({"dataset_split": "test"}, r"data:FILE\?split=test"),
    ],
)
def test_what_cannot_be_read(keys, message):
    with pytest.raises(InputError, match=f"config x: {message}|{message}"):
        checked_keys(keys, "config x: ")


def test_all_groups_together_are_the_settings():
    names = [name for group in GROUPS for name in group.__dataclass_fields__]
    assert sorted(names) == sorted(RunSettings.__dataclass_fields__)
    assert len(names) == len(set(names)) == 21
    assert all((group.__doc__ or "").rstrip(".").count(".") == 0 for group in GROUPS)
