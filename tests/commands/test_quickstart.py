"""The quick start end to end, small: it finishes, goes on after an interruption, and says what failed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from equipoise.cli import main
from equipoise.commands import quickstart
from equipoise.models.warm_starts import warm_start_ladder

pytestmark = pytest.mark.slow

SMALL = {"max_steps": 4, "evaluate_every": 2, "evaluate_samples": 2, "evaluate_k": [1, 2], "save_steps": 1}
SMALL |= {"per_device_train_batch_size": 16, "evaluate_prompts": 8}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Recipes and warm start of a size for tests."""
    monkeypatch.chdir(tmp_path)
    recipes = quickstart.recipe_folder()
    Path("recipes").mkdir()
    for name in quickstart.RECIPES.values():
        Path("recipes", name).write_text(yaml.safe_dump(yaml.safe_load((recipes / name).read_text()) | SMALL))
    monkeypatch.setattr(quickstart, "recipe_folder", lambda: Path("recipes"))
    monkeypatch.setattr(
        quickstart,
        "warm_start_ladder",
        lambda path, seed: warm_start_ladder(path, seed=seed, steps=3, batch_size=8),
    )
    return tmp_path


def num_lines(name):
    return len(Path(name).read_text().splitlines())


def test_end_to_end_again_and_with_another_seed(small, capsys):
    assert main(["quickstart", "--output", "q"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("warm start", "GRPO", "equipoise", "pass@2", "comparison.png"))
    assert {p.name for p in Path().iterdir()} == {"recipes", "q"}
    for name in ("GRPO", "equipoise"):
        assert num_lines(f"q/{name}/metrics.jsonl") == 4
    settings = [yaml.safe_load(Path(f"q/{n}/resolved.yaml").read_text()) for n in ("GRPO", "equipoise")]
    differing = {k for k in settings[0] if settings[0][k] != settings[1].get(k)} - {"output_dir", "logging_dir"}
    assert differing == {"clipping", "polarity", "bapo_low", "papo_reference_entropy"}

    # half of it lost: the rest is kept, the lost half made again
    before = Path("q/GRPO/metrics.jsonl").stat().st_mtime_ns
    first = Path("q/equipoise/evaluation.jsonl").read_text()
    for name in ("model", "checkpoint-4"):
        shutil.rmtree(f"q/equipoise/{name}")
    Path("q/comparison.png").unlink()
    Path("q/report.html").unlink()
    assert main(["quickstart", "--output", "q"]) == 0
    assert Path("q/comparison.png").exists()
    assert "Token" in Path("q/report.html").read_text()
    assert Path("q/GRPO/metrics.jsonl").stat().st_mtime_ns == before
    assert Path("q/equipoise/evaluation.jsonl").read_text() == first
    assert json.loads(Path("q/equipoise/metrics.jsonl").read_text().splitlines()[-1])["update"] == 4

    capsys.readouterr()
    assert main(["quickstart", "--output", "q", "--seed", "1"]) == 2
    assert "q holds a quick start with seed 0, got seed 1" in capsys.readouterr().err


def test_a_run_that_fails_is_named_with_its_last_line(small, capsys):
    broken = Path("recipes", quickstart.RECIPES["GRPO"])
    broken.write_text(broken.read_text().replace("learning_rate: 0.0006", "learning_rate: fast"))
    assert main(["quickstart", "--output", "q"]) == 2
    assert "the run GRPO failed: config recipes" in capsys.readouterr().err
