import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from terminal import Terminal
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise.errors import InputError
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.warm_starts import ladder as warm_start
from equipoise.models.warm_starts import ladder_tokenizer, warm_start_ladder
from equipoise.tasks import ladder_task

pytestmark = pytest.mark.slow

TINY = {"steps": 3, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return warm_start_ladder(tmp_path_factory.mktemp("warm") / "new" / "model", **TINY)


def test_folder_is_an_ordinary_model_and_tokenizer(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 65_712
    assert model.dtype == torch.float32
    assert model.config.use_cache is True
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    text = "12 40 = +7 19 *2 38"
    assert tokenizer(text)["input_ids"] == ladder_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == model.config.vocab_size == 58


def test_nothing_else_is_written(folder):
    assert os.listdir(folder.parent) == ["model"]
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_same_seed_same_weights(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(99)
    (tmp_path / "again").mkdir()  # an empty folder may exist
    again, other = weights(warm_start_ladder("again", **TINY)), weights(warm_start_ladder("other", seed=1, **TINY))
    assert all(torch.equal(value, again[name]) for name, value in weights(folder).items())
    assert not all(torch.equal(value, other[name]) for name, value in weights(folder).items())
    assert sorted(os.listdir(tmp_path)) == ["again", "other"]


def test_random_state_is_as_before(tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    warm_start_ladder(tmp_path / "model", **TINY)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_labels_are_the_response_and_its_end_only():
    tokenizer = ladder_tokenizer()
    walks = warm_start._TokenizedWalks(64, tokenizer, np.random.default_rng(0))
    longest = max(len(walk) for walk in walks.input_ids)
    assert len(walks) == 64
    for index in range(64):
        ids, labels = walks[index]["input_ids"].tolist(), walks[index]["labels"].tolist()
        end = ids.index(tokenizer.eos_token_id)
        assert ids[2] == tokenizer.convert_tokens_to_ids("=")
        assert labels == [-100] * 3 + ids[3 : end + 1] + [-100] * (longest - end - 1)
        assert set(ids[end + 1 :]) <= {tokenizer.pad_token_id}


def test_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("keep")
    with pytest.raises(InputError) as caught:
        warm_start_ladder(tmp_path, **TINY)
    assert str(caught.value).startswith(f"the folder of a warm start {tmp_path} exists and is no empty folder")
    with pytest.raises(InputError, match=r"note.txt exists and is no empty folder"):
        warm_start_ladder(tmp_path / "note.txt", **TINY)
    assert os.listdir(tmp_path) == ["note.txt"]


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_start, "train_supervised", interrupted)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        warm_start_ladder(tmp_path / "model", **TINY)
    assert os.listdir(tmp_path) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_output_is_a_progress_bar_on_a_terminal_or_nothing(tmp_path, capsys, monkeypatch):
    warm_start_ladder(tmp_path / "quiet", **TINY)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    warm_start_ladder(tmp_path / "shown", steps=3, batch_size=8)
    assert "warm start" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_warm_start_learns_the_rules_of_the_ladder(tmp_path):
    """Far fewer steps than the default: most completions end, and some are right."""
    folder = warm_start_ladder(tmp_path / "model", steps=150, batch_size=96, progress=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    task = ladder_task()
    evaluation = evaluate_policy(
        model, tokenizer, task.held_out, task.reward, num_samples=8, max_new_tokens=13, progress=False
    )
    assert evaluation.truncated_fraction < 0.1
    assert evaluation.pass_at[8]["mean"] > 0.01
    forms = [
        c["text"].split()[0][0] in "+-*" for record in evaluation.samples for c in record["completions"] if c["text"]
    ]
    assert np.mean(forms) > 0.98
