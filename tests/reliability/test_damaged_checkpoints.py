"""A checkpoint from which something is missing, or in which something has changed, is refused by name."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import arguments, refusal
from resume_setup import weights
from trainer_setup import prompts, trainer
from trl import GRPOConfig, GRPOTrainer

from equipoise.cli import main
from equipoise.diagnostics.run_folder import CHECKPOINT_MARKER, HOST_STATE
from equipoise.errors import InputError
from equipoise.trl import checkpoints
from equipoise.trl.checkpoints import CheckpointError, check_whole

pytestmark = pytest.mark.slow

MODES = ("deleted", "emptied", "truncated", "changed", "longer")
HOSTS_OWN = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", HOST_STATE)
STATE = (*HOSTS_OWN, "rollout_0.pt", "replay_0.pt")


def damage(path, mode):
    content = path.read_bytes()
    if mode == "deleted":
        path.unlink()
        return
    half = len(content) // 2
    path.write_bytes(
        {
            "emptied": b"",
            "truncated": content[:half],
            "changed": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
            "longer": content + b"\0",
        }[mode]
    )


def make(folder, **settings):
    saving = {"save_strategy": "steps", "save_steps": 1, "replay_fraction": 0.5, "max_steps": 3}
    return trainer(folder, **(saving | settings), dataset=prompts(16))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    subject = make(folder, max_steps=2)
    subject.train()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_marker_lists_every_file_with_size_and_checksum(saved):
    listed = check_whole(saved / "checkpoint-2")["files"]
    present = {p.name: p.stat().st_size for p in (saved / "checkpoint-2").iterdir() if p.name != CHECKPOINT_MARKER}
    assert {name: entry["bytes"] for name, entry in listed.items()} == present
    assert set(STATE) <= set(listed)


@pytest.mark.parametrize("mode", MODES)
def test_every_file_is_missed_when_it_is_not_as_it_was_written(run, mode):
    newest = run / "checkpoint-2"
    for path in sorted(newest.iterdir()):
        if path.name == CHECKPOINT_MARKER:
            continue
        content = path.read_bytes()
        damage(path, mode)
        with pytest.raises(CheckpointError) as refused:
            check_whole(newest)
        assert path.name in str(refused.value)
        assert str(run / "checkpoint-1") in str(refused.value)
        path.write_bytes(content)
    check_whole(newest)


@pytest.mark.parametrize("name", STATE)
def test_a_trainer_does_not_go_on_from_it(run, name):
    damage(run / "checkpoint-2" / name, "deleted")
    subject = make(run)
    before = weights(subject)
    with pytest.raises(CheckpointError, match=f"checkpoint-2 is not whole: {name} is missing"):
        subject.train(resume_from_checkpoint=True)
    assert subject.state.global_step == 0
    assert all(torch.equal(value, before[key]) for key, value in weights(subject).items())


def test_nothing_is_offered_where_nothing_is_whole(run):
    for number in (1, 2):
        damage(run / f"checkpoint-{number}" / "optimizer.pt", "changed")
    with pytest.raises(CheckpointError, match="There is no whole checkpoint"):
        check_whole(run / "checkpoint-2")


def of_an_older_version(folder):
    """As it was before markers had a list of files."""
    state = json.loads((folder / CHECKPOINT_MARKER).read_text())
    del state["files"], state["xxh3_128"]
    (folder / CHECKPOINT_MARKER).write_text(json.dumps(state | {"format": 1}))
    return folder


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_of_an_older_version_without_one_of_its_parts_is_refused(run, name):
    for number in (1, 2):
        of_an_older_version(run / f"checkpoint-{number}")
    (run / "checkpoint-2" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name[:9])}.* is missing.*checkpoint-1: resume from that"):
        check_whole(run / "checkpoint-2")
    (run / "checkpoint-1" / name).unlink()
    with pytest.raises(CheckpointError, match="There is no whole checkpoint"):
        check_whole(run / "checkpoint-2")


def test_a_damaged_state_of_an_older_version_is_named(run):
    path = of_an_older_version(run / "checkpoint-2") / HOST_STATE
    damage(path, "truncated")
    with pytest.raises(InputError, match=re.escape(str(path))):
        check_whole(run / "checkpoint-2")


@pytest.mark.parametrize("form", [0, -1, 1.0, 1.5, True, "1", None, [1], {}], ids=str)
def test_a_format_that_is_none_is_said(run, form):
    marker = of_an_older_version(run / "checkpoint-2") / CHECKPOINT_MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": form}))
    with pytest.raises(CheckpointError, match=r"equipoise.json is damaged: format must be a whole number"):
        check_whole(run / "checkpoint-2")


def test_a_checkpoint_of_an_older_version_is_read_with_a_word(run, caplog):
    of_an_older_version(run / "checkpoint-2")
    subject = make(run)
    subject.train(resume_from_checkpoint=True)
    assert subject.state.global_step == 3
    assert "without a list of its files" in caplog.text


@pytest.mark.parametrize("files", ["x", ["a"], {"a": 1}, {"a": {}}, {"a": None}], ids=str)
def test_a_list_that_is_none_is_said(run, files):
    marker = run / "checkpoint-2" / CHECKPOINT_MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"files": files}))
    with pytest.raises(CheckpointError, match=r"equipoise.json is damaged"):
        check_whole(run / "checkpoint-2")


def leaves(value, place=()):
    if isinstance(value, dict):
        for name in value:
            yield (*place, name)
            yield from leaves(value[name], (*place, name))


def changed(value, place, change):
    """A copy of nested mappings with another value, or none, at one place."""
    name, *inner = place
    if inner:
        return value | {name: changed(value[name], inner, change)}
    return {n: v for n, v in value.items() if n != name} | ({} if change is leaves else {name: change})


@pytest.mark.parametrize(
    "change",
    [leaves, 0.125, -7, 1e300, True, "x", None, [], {}],
    ids=lambda change: "removed" if change is leaves else repr(change),
)
def test_a_marker_in_which_anything_was_changed_or_removed_is_refused(run, change):
    path = run / "checkpoint-2" / CHECKPOINT_MARKER
    written = json.loads(path.read_text())
    for place in leaves(written):
        damaged = changed(written, place, change)
        path.write_text(json.dumps(damaged))
        if json.dumps(damaged, sort_keys=True) == json.dumps(written, sort_keys=True):
            check_whole(run / "checkpoint-2")
        else:
            with pytest.raises(CheckpointError):
                check_whole(run / "checkpoint-2")


def test_a_checkpoint_that_lost_its_marker_is_not_taken_for_one_of_another_trainer(run):
    (run / "checkpoint-2" / CHECKPOINT_MARKER).unlink()
    with pytest.raises(CheckpointError, match=r"has no equipoise\.json"):
        make(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    subject = make(run)
    subject.train(resume_from_checkpoint=True)  # from checkpoint-1
    assert subject.state.global_step == 3


@pytest.mark.parametrize("name", HOSTS_OWN)
@pytest.mark.parametrize("mode", ["emptied", "truncated"])
def test_a_damaged_checkpoint_of_another_trainer_is_one_line(tmp_path, name, mode):
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none",
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, save_strategy="steps", save_steps=1,
        max_steps=1,
    )  # fmt: skip
    trainer(tmp_path, trainer_class=GRPOTrainer, args=args, dataset=prompts(16)).train()
    damage(tmp_path / "checkpoint-1" / name, mode)
    with pytest.raises(CheckpointError, match=r"checkpoint-1 cannot be read"):
        make(tmp_path, replay_fraction=0.0).train(resume_from_checkpoint=True)


def test_the_command_line_offers_the_newest_whole_one_and_goes_on_from_it(workplace, capsys, caplog):
    assert main(arguments(evaluate_every=0)) == 0
    final = Path("run/model/model.safetensors").read_bytes()
    shutil.rmtree("run/model")
    for name in ("checkpoint-4", "checkpoint-3"):
        damage(Path("run", name, "optimizer.pt"), "deleted")
    line = refusal(["train", "--resume", "run"], capsys)
    assert "run/checkpoint-4 is not whole: optimizer.pt is missing" in line
    assert "run/checkpoint-2: resume from that one" in line
    assert main(["train", "--resume", "run/checkpoint-2"]) == 0
    assert Path("run/model/model.safetensors").read_bytes() == final
    assert {"found-1-checkpoint-3", "found-1-checkpoint-4", "checkpoint-3", "checkpoint-4"} <= {
        p.name for p in Path("run").iterdir()
    }
    assert "is kept as found-1-checkpoint-3" in caplog.text


def test_damaged_lines_of_metrics_stay_and_the_run_goes_on(workplace, capsys):
    assert main(arguments(evaluate_every=0)) == 0
    for name in ("model", "checkpoint-4"):
        shutil.rmtree(f"run/{name}")
    path = Path("run/metrics.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\xff\xfe nothing"
    path.write_bytes(b"\n".join([*lines[:4], b'{"update": 5, "lo']))
    assert main(["train", "--resume", "run"]) == 0
    after = path.read_bytes().split(b"\n")
    assert after[1] == lines[1]
    assert [json.loads(after[number])["update"] for number in (0, 2, 3)] == [1, 3, 4]
    assert len(after) == 5


def test_files_are_on_disk_before_the_marker(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-1"
    checkpoints.begin(folder)
    (folder / "inner").mkdir()
    for name in ("a.bin", "inner/b.bin"):
        (folder / name).write_bytes(b"x" * 10)
    synced = []
    from equipoise import files

    original = files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(Path(path)), original(path)))
    monkeypatch.setattr(checkpoints, "sync", files.sync)
    monkeypatch.setattr(checkpoints, "write_at_once", lambda path, text: synced.append("marker"))
    checkpoints.write_marker(folder, {})
    before = synced[: synced.index("marker")]
    assert {folder / "a.bin", folder / "inner" / "b.bin", folder / "inner", folder, tmp_path} <= set(before)
