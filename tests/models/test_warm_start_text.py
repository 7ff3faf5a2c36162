"""A warm start on a task's own texts: learns, reproduces, and refuses what it is not for."""

import pytest
import torch
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.models.loading import load_model, load_tokenizer
from equipoise.models.warm_starts import warm_start
from equipoise.models.warm_starts.text import EOS, warm_start_text
from equipoise.tasks import Task

WORDS = ["ab", "ba", "abba", "bab", "aab", "bba"]


def copying(prompts=WORDS, **columns):
    data = Dataset.from_dict({"prompt": [f"{word}=" for word in prompts], "answer": prompts} | columns)
    held_out = Dataset.from_dict({"prompt": ["abc="], "answer": ["abc"]})
    return Task("copying", data, held_out, lambda **_: [], max_completion_length=None)


def test_it_learns_the_answers_and_where_they_end(tmp_path):
    folder = warm_start_text(copying(), tmp_path / "model", steps=60, batch_size=32, progress=False)
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), on_cpu=True).eval()
    prompt = tokenizer("abba=", return_tensors="pt")
    output = model.generate(**prompt, do_sample=False, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == f"abba{EOS}"


def test_every_character_of_the_task_is_a_token_held_out_ones_too(tmp_path):
    folder = warm_start_text(copying(), tmp_path / "model", steps=1, progress=False)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer("abc=")["input_ids"]) == "abc="
    assert len(tokenizer) == 2 + len("abc=")


def test_the_seed_decides(tmp_path):
    weights = [
        load_model(
            str(warm_start_text(copying(), tmp_path / str(n), seed=seed, steps=3, progress=False)), on_cpu=True
        ).lm_head.weight
        for n, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("bare", Dataset.from_dict({"prompt": ["a"]}), None, lambda **_: [], None), "text prompts and answers"),
        (copying(["a" * 200]), "texts of at most 256 characters, task copying has one of 401"),
    ],
)
def test_what_it_is_not_for(tmp_path, task, message):
    with pytest.raises(InputError, match=message):
        warm_start_text(task, tmp_path / "model", progress=False)
    assert not (tmp_path / "model").exists()


def test_by_the_name_of_the_task(tmp_path):
    folder = warm_start("ladder", tmp_path / "ladder", steps=1, progress=False)
    assert len(load_tokenizer(str(folder))) == 58
    with pytest.raises(InputError, match="laddr"):
        warm_start("laddr", tmp_path / "none")
