"""Replay and partial rollouts from the command line: a run, its resumption, and one line for every mistake."""

import shutil
from pathlib import Path

import pytest
from command_line import arguments, refusal, run_lines, untimed

from equipoise.cli import main
from equipoise.commands.quickstart import recipe_folder
from equipoise.settings.reading import read_yaml
from equipoise.trl.keys import build, checked_keys

pytestmark = pytest.mark.slow

STORED = {"replay_fraction": 0.5, "rollout_token_budget": 2, "max_steps": 6, "evaluate_every": 0, "num_iterations": 1}


def test_a_run_with_both_resumes_to_the_same_files(workplace):
    assert main(arguments(**STORED, output_dir="whole")) == 0
    shutil.copytree("whole", "part")
    for name in ("model", "checkpoint-4", "checkpoint-5", "checkpoint-6", "evaluation.jsonl"):
        path = Path("part", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert main(["train", "--resume", "part"]) == 0
    whole, part = ([untimed(line) for line in run_lines(f"{run}/metrics.jsonl")] for run in ("whole", "part"))
    assert whole == part
    assert max(line["equipoise/replay_fraction_used"] for line in whole) == 0.5
    assert all(line["equipoise/rollout_rounds"] >= 1 for line in whole)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"replay_fraction": 1.5}, "replay_fraction must be in [0, 1), got replay_fraction=1.5"),
        ({"replay_fraction": 0.1}, "is less than one group"),
        ({"replay_fraction": 0.5, "top_k": 4}, "leave top_k at its default, got top_k=4"),
        ({"replay_fraction": 0.5, "replay_sampling": "newest"}, "replay_sampling must be one of 'uniform', 'age'"),
        ({"replay_fraction": 0.5, "replay_capacity": -3}, "replay_capacity must be >= 1, got replay_capacity=-3"),
        ({"rollout_token_budget": 0}, "rollout_token_budget must be >= 1, got rollout_token_budget=0"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_leave_nothing(workplace, capsys, changes, expected):
    assert expected in refusal(arguments(**changes), capsys)
    assert not Path("run").exists()


def test_a_damaged_store_is_named_and_the_earlier_checkpoint_can_be_used(workplace, capsys):
    assert main(arguments(**STORED)) == 0
    shutil.rmtree("run/model")
    store = Path("run/checkpoint-6/replay_0.pt")
    store.write_bytes(store.read_bytes()[:100])
    line = refusal(["train", "--resume", "run", "--max_steps", "7"], capsys)
    assert "run/checkpoint-6 is not whole: replay_0.pt has" in line
    assert len(store.read_bytes()) == 100
    shutil.rmtree("run/checkpoint-6")
    assert main(["train", "--resume", "run", "--max_steps", "7"]) == 0


@pytest.mark.parametrize("name", ["ladder_replay", "ladder_partial"])
def test_the_recipes_are_complete(tmp_path, name):
    path = recipe_folder() / f"{name}.yaml"
    values = checked_keys(read_yaml(path), str(path)) | {"model": "m", "output_dir": str(tmp_path / "run")}
    _, config = build(values)
    assert config.off_policy
