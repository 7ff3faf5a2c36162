"""Which checkpoint and which model of a run folder are meant."""

import pytest

from equipoise.diagnostics.run_folder import (
    CHECKPOINT_MARKER,
    CONFIG_FILE,
    MODEL_FOLDER,
    checkpoint_folders,
    model_of,
    trained_model,
)
from equipoise.errors import InputError


@pytest.fixture
def run(tmp_path):
    (tmp_path / CONFIG_FILE).write_text("task: ladder\n")
    return tmp_path


def checkpoint(run, update, *, complete=True):
    folder = run / f"checkpoint-{update}"
    folder.mkdir()
    if complete:
        (folder / CHECKPOINT_MARKER).write_text("{}")
    return folder


def test_checkpoints_come_by_their_numbers_and_other_names_are_none(run):
    folders = [checkpoint(run, update, complete=update != 2) for update in (2, 9, 10)]
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-1.part", "model"):
        (run / name).mkdir()
    (run / "checkpoint-11").write_text("no folder")
    assert checkpoint_folders(run) == folders


def test_the_final_model_counts_else_that_of_the_newest_whole_checkpoint(run):
    with pytest.raises(InputError, match="has no model yet"):
        trained_model(run)
    newest = [checkpoint(run, 9), checkpoint(run, 10), checkpoint(run, 11, complete=False)][1]
    assert trained_model(run) == newest
    (run / MODEL_FOLDER).mkdir()
    assert model_of(str(run)) == str(run / MODEL_FOLDER)


def test_what_is_no_run_folder_is_a_model_itself(tmp_path):
    assert [model_of(name) for name in (str(tmp_path), "owner/name")] == [str(tmp_path), "owner/name"]
