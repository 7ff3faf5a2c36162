"""A user's directory, and the command line called in it."""

import json
import sys
from pathlib import Path

import pytest
from trainer_setup import character_tokenizer, tiny_model

from equipoise.cli import main

REWARDS = '''
import math

def digits(completions, answer, **columns):
    """Share of the answer's digits."""
    return [sum(c in a for c in text) / max(len(text), 1) for text, a in zip(completions, answer)]

def broken(completions, **columns):
    raise RuntimeError("the judge is away")

def short(completions, **columns):
    return [0.0]

def nothing(completions, **columns):
    return [None] * len(completions)

def undefined(completions, **columns):
    return [math.nan] * len(completions)
'''


def prepare(place):
    """Puts there what a user has: a model folder, data files, a module with rewards."""
    model, tokenizer = tiny_model(), character_tokenizer()
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    for name, step in (("data.jsonl", 3), ("held_out.jsonl", 5)):
        rows = [{"prompt": f"{i}+{i + step}=", "answer": str(2 * i + step)} for i in range(16)]
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "judges.py").write_text(REWARDS)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory as a user has it, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    prepare(tmp_path)
    yield tmp_path
    for module in ("judges", "praises"):
        sys.modules.pop(module, None)


def arguments(**changes):
    keys = {
        "model": "model", "dataset": "data.jsonl", "eval_dataset": "held_out.jsonl", "reward": "judges:digits",
        "output_dir": "run", "max_steps": 4, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 6, "num_iterations": 2, "clipping": "balanced", "polarity": "papo",
        "learning_rate": 0.01, "use_cpu": "true", "save_steps": 1, "evaluate_every": 2, "evaluate_samples": 4,
        "evaluate_k": "[1, 2]", "disable_tqdm": "true",
    }  # fmt: skip
    return ["train", *(word for k, v in (keys | changes).items() if v is not None for word in (f"--{k}", str(v)))]


def untimed(record):
    """A line of metrics without what a clock says."""
    return {name: value for name, value in record.items() if name != "step_time" and not name.endswith("_seconds")}


def run_lines(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def refusal(arguments, capsys):
    """The one line of a refused command."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    line = [x for x in error.splitlines() if x.startswith("equipoise: ")]
    assert len(line) == 1
    assert "Traceback" not in error
    return line[0]
