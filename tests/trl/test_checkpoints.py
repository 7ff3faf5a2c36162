"""Which checkpoints count, which are kept, and when one is marked."""

import os
import shutil

import pytest

from equipoise.diagnostics.run_folder import (
    CHECKPOINT_BEGUN,
    CHECKPOINT_MARKER,
    HOST_STATE,
    checkpoint_folder,
    is_foreign,
    latest_checkpoint,
)
from equipoise.trl import checkpoints
from equipoise.trl.checkpoints import CheckpointError


def make(folder, step, *, complete=True):
    checkpoint = checkpoint_folder(folder, step)
    checkpoints.begin(checkpoint)
    if complete:
        checkpoints.write_marker(checkpoint, {"polarity_controller": None})
    return checkpoint


def test_the_latest_is_the_one_of_the_highest_update_that_is_complete(tmp_path):
    for step in (9, 10, 2):
        make(tmp_path, step)
    make(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-12").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert latest_checkpoint(tmp_path / "none") is None


def foreign(folder, step):
    """As GRPOTrainer leaves it."""
    checkpoint = checkpoint_folder(folder, step)
    checkpoint.mkdir()
    (checkpoint / HOST_STATE).write_text("{}")
    return checkpoint


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_what_equipoise_began_and_did_not_finish_is_discarded(tmp_path):
    make(tmp_path, 1)
    incomplete = make(tmp_path, 2, complete=False)
    for name in ("checkpoint-best", "checkpoint-3", "checkpoint-4"):  # a user's, an empty one, one of another trainer
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-4" / HOST_STATE).write_text("{}")
    assert checkpoints.discard_incomplete(tmp_path) == [incomplete]
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-best", "checkpoint-3", "checkpoint-4"}


def test_what_another_trainer_wrote_is_kept_under_another_name(tmp_path, caplog):
    for trainer in ("first", "second"):
        (foreign(tmp_path, 5) / "model").write_text(trainer)
        checkpoints.begin(tmp_path / "checkpoint-5")
        checkpoints.write_marker(tmp_path / "checkpoint-5", {})
        shutil.rmtree(tmp_path / "checkpoint-5")
    kept = [(tmp_path / f"found-{n}-checkpoint-5" / "model").read_text() for n in (1, 2)]
    assert kept == ["first", "second"]
    assert [record.args[1] for record in caplog.records] == ["found-1-checkpoint-5", "found-2-checkpoint-5"]


def test_a_complete_checkpoint_that_is_written_again_is_none_meanwhile(tmp_path):
    folder = make(tmp_path, 1)
    checkpoints.begin(folder)
    assert contents(tmp_path) == [f"checkpoint-1/{CHECKPOINT_BEGUN}"]
    assert latest_checkpoint(tmp_path, foreign=True) is None
    checkpoints.write_marker(folder, {})
    assert contents(tmp_path) == [f"checkpoint-1/{CHECKPOINT_MARKER}"]


def test_one_of_another_trainer_counts_where_it_is_asked_for(tmp_path):
    make(tmp_path, 1)
    foreign(tmp_path, 2)
    (make(tmp_path, 3, complete=False) / HOST_STATE).write_text("{}")  # interrupted
    (tmp_path / "checkpoint-4").mkdir()  # no trainer's
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert latest_checkpoint(tmp_path, foreign=True) == tmp_path / "checkpoint-2"
    assert [is_foreign(tmp_path / f"checkpoint-{n}") for n in (1, 2, 3, 4)] == [False, True, False, False]


def test_older_checkpoints_go_by_number_and_the_best_stays(tmp_path):
    for age, step in enumerate((10, 9, 8, 2)):  # the order in which they were last touched says nothing
        folder = make(tmp_path, step)
        os.utime(folder, (1000 + age, 1000 + age))
    checkpoints.rotate(tmp_path, 3, str(tmp_path / "checkpoint-2"))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-9", "checkpoint-2"}
    checkpoints.rotate(tmp_path, None, None)
    checkpoints.rotate(tmp_path, 0, None)
    assert len(list(tmp_path.iterdir())) == 3
    foreign(tmp_path, 1)
    checkpoints.rotate(tmp_path, 1, str(tmp_path / "gone"))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-1"}  # never another trainer's


def test_a_marker_that_could_not_be_written_marks_nothing(tmp_path, monkeypatch):
    folder = make(tmp_path, 1, complete=False)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.write_marker(folder, {})
    assert not checkpoints.is_complete(folder)
    with pytest.raises(CheckpointError, match="checkpoint-1 has no equipoise.json"):
        checkpoints.read_marker(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "one"}'])
def test_a_damaged_marker_is_said(tmp_path, text):
    folder = make(tmp_path, 1)
    (folder / CHECKPOINT_MARKER).write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint-1.equipoise.json is damaged"):
        checkpoints.read_marker(folder)
