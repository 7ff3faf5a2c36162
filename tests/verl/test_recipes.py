"""Recipes for clusters cannot run here; that verl and equipoise take every key and value of theirs can be held."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "verl").glob("*.sh"))
STUB = "#!/usr/bin/env python3\nimport json, os, sys\njson.dump(sys.argv[1:], open(os.environ['SAID'], 'w'))\n"


def overrides_of(recipe, folder, *more, output=None):
    """What a recipe gives verl's trainer."""
    stub = folder / "python"
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PYTHON": str(stub),
        "SAID": str(folder / "said"),
        "OUTPUT": output or str(folder / "run"),
        "TRAIN_FILES": "train.parquet",
        "TEST_FILES": "test.parquet",
    }
    subprocess.run(["bash", str(recipe), *more], cwd=folder, env=environment, check=True, timeout=60)
    module, *overrides = json.loads((folder / "said").read_text())[1:]
    assert module == "verl.trainer.main_ppo"
    return overrides


def composed(overrides):
    import verl
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", overrides=[key for key in overrides if not key.startswith("hydra.")])


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "common"], ids=lambda path: path.stem)
def test_verl_and_equipoise_take_every_key_of_a_recipe(recipe, tmp_path):
    import functools

    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    from equipoise.verl.checks import check_actor

    config = composed(overrides_of(recipe, tmp_path, "trainer.total_training_steps=7"))
    assert config.trainer.total_training_steps == 7  # what is given on the command line wins
    assert config.actor_rollout_ref.model.external_lib == "equipoise.verl"
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    settings = actor.policy_loss.settings()
    check_actor(functools.partial(ppo_loss, config=actor), actor, settings, config.actor_rollout_ref.model)
    assert settings.clipping == "balanced" or settings.polarity == "papo"
    assert settings.output_dir == str(tmp_path / "run" / "equipoise")
    prompts, group = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    assert prompts % actor.ppo_mini_batch_size == 0
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    assert actor.ppo_mini_batch_size * group % ranks == 0


def test_an_output_beside_the_shell_is_one_place_for_all_workers(tmp_path):
    """They need not run where the recipe does."""
    config = composed(overrides_of(RECIPES[0], tmp_path, output="runs/mine"))
    place = tmp_path / "runs" / "mine"
    assert config.trainer.default_local_dir == str(place / "checkpoints")
    assert config.actor_rollout_ref.actor.policy_loss.equipoise.output_dir == str(place / "equipoise")


@pytest.mark.parametrize("missing", ["TRAIN_FILES", "TEST_FILES", "OUTPUT"])
def test_what_a_recipe_needs_is_named(missing):
    environment = {"TRAIN_FILES": "a", "TEST_FILES": "b", "OUTPUT": "c", "PATH": os.environ["PATH"]}
    del environment[missing]
    done = subprocess.run(
        ["bash", str(RECIPES[0])], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert missing in done.stderr
