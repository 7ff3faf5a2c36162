"""A run that was interrupted ends like one that was not; a checkpoint is whole or not there."""

import shutil
from pathlib import Path

import pytest
import torch
from resume_setup import SETTINGS, history, weights
from trainer_setup import prompts, trainer
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from equipoise.diagnostics.run_folder import CHECKPOINT_BEGUN, CHECKPOINT_MARKER, HOST_STATE, latest_checkpoint
from equipoise.trl import checkpoints
from equipoise.trl.checkpoints import CheckpointError

pytestmark = pytest.mark.slow


def make(folder, **settings):
    return trainer(folder, **(SETTINGS | settings), dataset=prompts(16))


class AtBegin(TrainerCallback):
    def __init__(self, act):
        self.act = act

    def on_train_begin(self, args, state, control, **kwargs):
        self.act()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subject = make(folder)
    subject.train()
    assert subject.state.epoch > 1
    return folder, weights(subject), history(subject), subject.steering.controller.state_dict()


@pytest.mark.parametrize("step", [1, 3, 4, 7, 16, 17, 21, 22])
def test_resumed_run_ends_with_the_same_weights_and_metrics(uninterrupted, tmp_path, step):
    folder, final_weights, final_history, controller = uninterrupted
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    subject = make(tmp_path)
    subject.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, final_weights[name]) for name, value in weights(subject).items())
    assert history(subject) == final_history
    assert subject.steering.controller.state_dict() == controller


def test_lagged_bounds_are_resumed(tmp_path):
    whole = make(tmp_path / "whole", bapo_scope="lagged", max_steps=8)
    whole.train()
    assert len({entry["equipoise/bounds_high"] for entry in history(whole)}) > 2
    for step in (2, 5):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / str(step) / f"checkpoint-{step}")
        part = make(tmp_path / str(step), bapo_scope="lagged", max_steps=8)
        part.train(resume_from_checkpoint=True)
        assert history(part) == history(whole)
        assert part.steering.lagged_bounds.selection.bounds == whole.steering.lagged_bounds.selection.bounds


def test_every_epoch_has_an_order_of_its_own_and_the_first_is_that_of_trl(tmp_path):
    subject = make(tmp_path)
    sampler, trl = subject._get_train_sampler(), GRPOTrainer._get_train_sampler(subject)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] == list(trl)
    assert orders[1] != orders[0]
    assert sorted(orders[1]) == sorted(orders[0])


def test_metrics_between_two_logs_survive(tmp_path):
    whole = make(tmp_path / "whole", logging_steps=4, max_steps=8)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part = make(tmp_path / "part", logging_steps=4, max_steps=8)
    part.train(resume_from_checkpoint=True)
    assert history(part) == history(whole)


def test_an_interrupted_write_leaves_the_previous_checkpoint_usable(tmp_path, monkeypatch):
    subject = make(tmp_path, max_steps=3)
    original = torch.save

    def disk_full(value, target, *args, **kwargs):
        if "checkpoint-3" in str(target):
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(value, target, *args, **kwargs)

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-3 could not be written: .*No space left.*checkpoint-2, is complete"
    ):
        subject.train()
    assert not (tmp_path / "checkpoint-3").exists()
    monkeypatch.undo()
    resumed = make(tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert checkpoints.is_complete(tmp_path / "checkpoint-3")


def test_a_killed_write_is_not_resumed_and_is_cleared_away(tmp_path):
    make(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / CHECKPOINT_MARKER).unlink()  # as a kill before the end of the write leaves it
    (tmp_path / "checkpoint-2" / CHECKPOINT_BEGUN).touch()
    (tmp_path / "checkpoint-2" / "rollout_1.pt").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    subject = make(tmp_path, max_steps=2)
    with pytest.raises(CheckpointError, match="checkpoint-2 has no equipoise.json: its writing was interrupted"):
        subject.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    subject.train(resume_from_checkpoint=True)
    assert checkpoints.is_complete(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2" / "rollout_1.pt").exists()


def test_older_checkpoints_go_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    present = []
    original = checkpoints.write_marker

    def look_first(folder, state):
        present.append(sorted(p.name for p in tmp_path.glob("checkpoint-*")))
        original(folder, state)

    monkeypatch.setattr(checkpoints, "write_marker", look_first)
    make(tmp_path, max_steps=3, save_total_limit=1).train()
    assert present == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_run_interrupted_in_the_middle_of_an_update_resumes_in_the_same_process(uninterrupted, tmp_path):
    folder, final_weights, final_history, controller = uninterrupted
    shutil.copytree(folder / "checkpoint-5", tmp_path / "checkpoint-5")
    subject = make(tmp_path)
    subject.train(resume_from_checkpoint=True)  # a session in which the run has gone on ...
    shutil.rmtree(tmp_path / "checkpoint-6")
    original, calls = subject._steer, []

    def interrupt(*args):
        calls.append(original(*args))
        if len(calls) == 3:  # the first of two micro-batches
            raise KeyboardInterrupt

    subject._steer = interrupt
    with pytest.raises(KeyboardInterrupt):
        subject.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    subject._steer = original
    assert subject._update is not None
    subject._metrics["train"]["left over"].append(1.0)
    subject.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert all(torch.equal(value, final_weights[name]) for name, value in weights(subject).items())
    assert history(subject) == final_history
    assert subject.steering.controller.state_dict() == controller


def test_a_resumed_run_saves_as_it_is_told_now(tmp_path):
    make(tmp_path, max_steps=1).train()
    make(tmp_path, max_steps=6, save_steps=3).train(resume_from_checkpoint=True)
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3", "checkpoint-6"}


def test_checkpoints_of_the_model_alone_are_not_resumed(tmp_path):
    make(tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="checkpoint-1 was saved with save_only_model: it has no optimizer state"):
        make(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="has no complete checkpoint to resume from"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    make(tmp_path, max_steps=1).train()
    marker = tmp_path / "checkpoint-1" / CHECKPOINT_MARKER
    marker.write_text(marker.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(CheckpointError, match="of a newer format"):
        make(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def grpo_run(folder, **settings):
    """A run of TRL's own trainer that has saved its checkpoints."""
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none",
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, max_completion_length=8,
        save_strategy="steps", save_steps=1, max_steps=2, learning_rate=1e-2, **settings,
    )  # fmt: skip
    subject = trainer(folder, trainer_class=GRPOTrainer, args=args, dataset=prompts(16))
    subject.train()
    return subject


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_of_trls_trainer_in_the_same_folder_stay(tmp_path):
    grpo_run(tmp_path)
    before = contents(tmp_path / "checkpoint-1"), contents(tmp_path / "checkpoint-2")
    make(tmp_path, max_steps=3, save_steps=1, save_total_limit=1).train()
    after = contents(tmp_path / "found-1-checkpoint-1"), contents(tmp_path / "found-1-checkpoint-2")
    assert after == before
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


@pytest.mark.parametrize("features", [{}, {"replay_fraction": 0.5}, {"rollout_token_budget": 3}], ids=str)
def test_a_run_of_trls_trainer_is_continued(tmp_path, caplog, features):
    theirs = grpo_run(tmp_path)
    subject = make(tmp_path, max_steps=5, **features)
    started = []
    subject.add_callback(AtBegin(lambda: started.append(weights(subject))))
    subject.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, started[0][name]) for name, value in weights(theirs).items())
    said = [record.getMessage() for record in caplog.records if "of another trainer" in record.getMessage()]
    assert len(said) == 1
    assert "lacks" not in said[0]
    assert [entry["step"] for entry in history(subject)] == [3, 4, 5]
    assert subject.steering.controller.state_dict()["num_updates"] == 3
    assert checkpoints.is_complete(tmp_path / "checkpoint-5")
    assert (tmp_path / "checkpoint-2").exists()


def test_without_optimizer_state_that_is_said(tmp_path, caplog):
    grpo_run(tmp_path, save_only_model=True)
    make(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert "optimizer, scheduler, random state, which it lacks" in caplog.text


def test_at_the_end_of_a_run_that_keeps_its_best_checkpoint_alone_those_of_others_stay(tmp_path):
    others = [tmp_path / name for name in ("checkpoint-50", "checkpoint-77")]
    for folder in others:
        folder.mkdir()
        (folder / "notes").touch()
    (others[0] / HOST_STATE).write_text("{}")
    subject = make(
        tmp_path, max_steps=3, save_steps=1, save_total_limit=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_reward", eval_dataset=prompts(4),
        per_device_eval_batch_size=4,
    )  # fmt: skip
    subject.train()
    best = Path(subject.state.best_model_checkpoint)
    assert sorted(tmp_path.glob("checkpoint-*")) == sorted([best, *others])
    assert all((folder / "notes").exists() for folder in others)
    assert subject.args.save_total_limit == 1


def interrupted_in_its_second_update(folder):
    """A trainer whose run was stopped between two micro-batches; its next call of `train` goes through."""
    stopped = []

    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1 and not stopped:
                stopped.append(state.global_step)
                raise KeyboardInterrupt

    subject = make(folder, max_steps=4)
    subject.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        subject.train()
    return subject


def staleness(subject):
    return [entry["equipoise/staleness"] for entry in history(subject)]


def test_a_run_that_was_interrupted_in_an_update_begins_again_with_a_rollout_batch(tmp_path):
    subject = interrupted_in_its_second_update(tmp_path)
    subject.train()
    assert staleness(subject) == [0, 1, 2, 3]


@pytest.mark.parametrize("stored", [{}, {"replay_fraction": 0.5}], ids=str)
def test_a_second_call_of_train_counts_versions_from_zero(tmp_path, stored):
    """It goes on in the rollout batch of the first one, as with TRL; where groups are stored, it is gone."""
    subject = make(tmp_path, max_steps=3, **stored)
    subject.train()
    subject.train()
    assert staleness(subject) == ([0, 1, 2] if stored else [3, 0, 1])
