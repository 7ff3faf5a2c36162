"""The recipe on GSM8K: what it calls easy, its scaled form, and one update of it on the real file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from equipoise.cli import main
from equipoise.commands.plan import PlanOptions, plan
from equipoise.models.architectures import recipe_folder
from equipoise.models.tiny import tiny_model
from equipoise.trl.keys import checked_keys, read_config

RECIPE = recipe_folder() / "real_model" / "gsm8k.yaml"
DATA = Path(os.environ.get("EQUIPOISE_MATH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data" / "math"))
FILES = ("gsm8k_train.jsonl", "gsm8k_test.jsonl")


def easy(*files, **flags):
    """What the script says, and the rows of the two files that it writes in runs/gsm8k."""
    script = [sys.executable, str(RECIPE.with_name("easy_gsm8k.py")), *map(str, files)]
    options = [f"--{name}={value}" for name, value in flags.items()]
    said = subprocess.run([*script, *options], check=True, capture_output=True, text=True).stdout
    return said, [rows(Path(f"runs/gsm8k/{name}.jsonl")) for name in ("train", "test")]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question(name, *steps):
    return {"question": name, "answer": " ".join(f"<<{step}>>" for step in steps) + "\n#### 3"}


def test_a_question_is_easy_by_the_calculations_of_its_solution(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = [question("none"), question("one", "1+2=3"), question("two", "1+1=2", "2+1=3"),
                 question("three", "1+0=1", "1+1=2", "2+1=3")]  # fmt: skip
    for name in FILES:
        Path(name).write_text("".join(json.dumps(q) + "\n" for q in questions))
    said, (train, test) = easy(*FILES)
    assert [row["prompt"] for row in train] == ["one", "two"]
    assert [row["prompt"] for row in test] == ["none", "one", "two", "three"]
    assert train[1]["answer"] == questions[2]["answer"]
    assert "2 of 4 questions" in said
    assert [row["prompt"] for row in easy(*FILES, steps=3)[1][0]] == ["one", "two", "three"]


def scaled():
    """The recipe with the values that it says it takes on 8 GPUs."""
    text = RECIPE.read_text(encoding="utf-8")
    changed = dict(re.findall(r"^(\w+): .*# \[S\] ([^;\n]+)", text, re.M))
    block = re.sub(r"^# ", "", text[text.index("use_cpu: true") :].split("\n", 1)[1], flags=re.M)
    keys = {name: yaml.safe_load(value) for name, value in changed.items()} | yaml.safe_load(block)
    assert text.count("# [S]") == len(changed)
    return read_config(RECIPE) | checked_keys(keys, "") | {"model": "Qwen/Qwen2.5-7B"}


def test_the_scaled_form_fits_on_eight_gpus_and_has_the_batches_that_it_says():
    node = recipe_folder() / "accelerate" / "one_node_fsdp2.yaml"
    made = plan(scaled(), PlanOptions(accelerate=node))
    assert (made.device, made.fits) == ("gpu", True)
    assert (made.batch.completions_per_update, made.batch.completions_per_rollout) == (1024, 4096)
    assert made.batch.updates_per_rollout == 4


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"GSM8K is not in {DATA} (EQUIPOISE_MATH_DATA names its folder)")
def test_the_recipe_trains_and_evaluates_on_the_real_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, (train, test) = easy(*(DATA / name for name in FILES))
    assert (len(train), len(test)) == (2579, 1319)
    tiny_model("Qwen/Qwen2.5-7B", "data:runs/gsm8k/train.jsonl", tmp_path / "model")
    few = "--max_completion_length 8 --steps_per_generation 1 --max_steps 1 --evaluate_every 1 --evaluate_prompts 2"
    few += " --task data:runs/gsm8k/train.jsonl?limit=8 --eval_task data:runs/gsm8k/test.jsonl?limit=2"
    command = ["train", "--config", str(RECIPE), "--model", "model", "--output_dir", "run", *few.split()]
    assert main([*command, "--evaluate_samples", "1", "--evaluate_k", "1", "--record_tokens", "1"]) == 0
    evaluations = rows(Path("run/evaluation.jsonl"))
    assert [e["num_prompts"] for e in evaluations] == [2, 2]
    assert (Path("run/model/config.json")).is_file()
    assert any("train_loss" in row or "reward" in row for row in rows(Path("run/metrics.jsonl")))
