"""verl's own trainer with equipoise on two ranks, through the recipe: it learns, and continues where it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import verl_setup
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1800)]

STEPS, SAVED = 20, 10
LOSS = "actor_rollout_ref.actor.policy_loss.equipoise"
# A controller that acts from the first update, whose state is worth keeping, and bounds that move.
ACTING = [
    f"+{LOSS}.{pair}" for pair in ("papo_reference_entropy=3.2", "papo_warmup_updates=0", "bapo_target_share=0.6")
]


def started(folder: Path) -> subprocess.Popen:
    """The recipe, in a process group of its own."""
    command = [sys.executable, str(verl_setup.RECIPE / "run.py"), "--output", str(folder), "--steps", str(STEPS)]
    return subprocess.Popen(
        [*command, "--save-every", str(SAVED), *ACTING],
        cwd=folder.parent,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen) -> None:
    shown, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, shown


def logged(*files: Path) -> dict[int, dict]:
    """Step -> what verl logged; a later file's are what counts."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {row["step"]: row["data"] for row in rows}


def killed_after(folder: Path, step: int) -> dict[int, dict]:
    """Run until the step after a checkpoint, then kill all at once; what was logged until then."""
    process = started(folder)
    try:
        while max(logged(*folder.glob("metrics.jsonl")), default=0) <= step:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    overrides = yaml.safe_load((folder / "hydra" / ".hydra" / "overrides.yaml").read_text())
    (sockets,) = (item.partition("=")[2] for item in overrides if "_temp_dir" in item)
    shutil.rmtree(sockets.strip("'"))  # which a killed run cannot remove
    assert len(family) > 8, "Ray has many"
    assert not alive, "Ray's processes end with those that started them"
    return logged(folder / "metrics.jsonl")


def leaves(state: dict, path: str = "") -> dict[str, object]:
    """Values of nested state by their paths, without those that are None."""
    if not isinstance(state, dict):
        return {} if state is None else {path: state}
    return {name: value for key in state for name, value in leaves(state[key], f"{path}/{key}").items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run of 20 steps, and of one that was killed after the checkpoint of step 10 and continued."""
    root = tmp_path_factory.mktemp("runs")
    whole = started(root / "whole")
    try:
        before = killed_after(root / "continued", SAVED)
        assert set(before) >= set(range(1, SAVED + 1))
        assert STEPS not in before
        ended(started(root / "continued"))
        ended(whole)
    finally:
        if whole.poll() is None:
            os.killpg(whole.pid, signal.SIGKILL)
    assert set(os.listdir(root)) == {"whole", "continued"}, "all that a run writes is in its folder"
    return root / "whole", root / "continued"


def test_the_reward_rises(runs):
    reward = [logged(runs[0] / "metrics.jsonl")[step]["critic/score/mean"] for step in range(1, STEPS + 1)]
    assert sum(reward[:5]) / 5 < 0.35
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.15


def test_equipoise_acts(runs):
    rows = logged(runs[0] / "metrics.jsonl").values()
    assert len({row["actor/equipoise/bounds_high"] for row in rows}) > 3
    assert len({row["actor/equipoise/weight_expanding_positive"] for row in list(rows)[:SAVED]}) > 3


def test_a_continued_run_goes_through_the_same_steps(runs):
    whole, continued = (logged(*sorted(run.glob("metrics*.jsonl"), reverse=True)) for run in runs)
    again = logged(runs[1] / "metrics-2.jsonl")
    assert list(again) == list(range(SAVED + 1, STEPS + 1))
    assert list(whole) == sorted(continued) == list(range(1, STEPS + 1))
    for step in whole:
        # The same answers; sums over ranks and their rows in another order.
        assert continued[step]["critic/score/mean"] == pytest.approx(whole[step]["critic/score/mean"], abs=1e-6)
        for name in ("actor/grad_norm", "actor/equipoise/entropy", "actor/equipoise/expanding_flow"):
            assert continued[step][name] == pytest.approx(whole[step][name], rel=1e-4), (step, name)


def test_a_continued_run_ends_with_the_same_weights(runs):
    whole, continued = (verl_setup.checkpoint_weights(run / "checkpoints/global_step_20/actor") for run in runs)
    first = verl_setup.checkpoint_weights(runs[0] / "checkpoints/global_step_10/actor")
    moved = max((whole[name] - first[name]).abs().max() for name in whole)
    assert moved > 0.01, "or the comparison sees nothing"
    # Float32: sums over ranks in another order, 20 updates long. Measured: 2e-6.
    torch.testing.assert_close(continued, whole, rtol=1e-4, atol=2e-5)


def test_a_continued_run_ends_with_the_same_state_of_equipoise(runs):
    whole, continued = (
        json.loads((run / "checkpoints/global_step_20/actor/equipoise.json").read_text()) for run in runs
    )
    assert whole["updates"] == 2 * STEPS
    assert len(set(whole["versions"])) == STEPS
    assert leaves(continued) == pytest.approx(leaves(whole), rel=1e-4)


def test_a_checkpoint_that_verl_has_merged_is_evaluated(runs, tmp_path):
    """verl's own tool rounds the weights to bfloat16; equipoise evaluates what it wrote."""
    actor = runs[0] / "checkpoints/global_step_20/actor"
    merge = ["verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "abc", "answer": "1"}\n{"prompt": "xyz", "answer": "2"}\n')
    evaluate = ["equipoise", "evaluate", str(tmp_path / "merged"), "--dataset", str(tmp_path / "prompts.jsonl")]
    evaluate += ["--reward", "exact", "--chat", "--samples", "2", "--k", "1", "--max_new_tokens", "8"]
    for module in (
        [*merge, "--target_dir", str(tmp_path / "merged")],
        [*evaluate, "--output", str(tmp_path / "found.json")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": verl_setup.ENVIRONMENT["PYTHONPATH"]},  # verl looks for the platform
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert 0 < found["prompts"]["mean_entropy"] < 4
