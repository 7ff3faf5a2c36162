"""Which checkpoints count, which are kept, and when one is marked."""

import os

import pytest

from equipoise.diagnostics.run_folder import checkpoint_folder, latest_checkpoint
from equipoise.trl import checkpoints
from equipoise.trl.checkpoints import CheckpointError


def make(folder, step, *, complete=True):
    checkpoint = checkpoint_folder(folder, step)
    checkpoint.mkdir()
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


def test_only_incomplete_checkpoints_are_discarded(tmp_path):
    make(tmp_path, 1)
    incomplete = make(tmp_path, 2, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.discard_incomplete(tmp_path) == [incomplete]
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-best"}


def test_older_checkpoints_go_by_number_and_the_best_stays(tmp_path):
    for age, step in enumerate((10, 9, 8, 2)):  # the order in which they were last touched says nothing
        folder = make(tmp_path, step)
        os.utime(folder, (1000 + age, 1000 + age))
    checkpoints.rotate(tmp_path, 3, str(tmp_path / "checkpoint-2"))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-9", "checkpoint-2"}
    checkpoints.rotate(tmp_path, None, None)
    assert len(list(tmp_path.iterdir())) == 3


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
