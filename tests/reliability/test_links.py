"""Nothing is written through a symbolic link that leads out of a run folder."""

import os
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from command_line import arguments, prepare, refusal

from equipoise.cli import main
from equipoise.errors import InputError
from equipoise.files import clear, file_at_once, folder_at_once, refuse_other_than_own

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, made once."""
    place = tmp_path_factory.mktemp("trained") / "place"
    place.mkdir()
    prepare(place)
    with chdir(place):
        assert main(arguments(evaluate_every=2, record_tokens=1, max_steps=2)) == 0
    shutil.rmtree(place / "run" / "model")
    return place


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A run to resume, and a folder with things of somebody else."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("others/inner").mkdir(parents=True)
    for name in THEIRS:
        Path(name).write_bytes(b"theirs")
    return Path("run")


def others():
    return {str(p): p.read_bytes() for p in Path("others").rglob("*") if p.is_file()}


RESUME = ["train", "--resume", "run", "--max_steps", "3"]
THEIRS = {"others/file": b"theirs", "others/inner/file": b"theirs"}
MADE = ["model", "model.part", "checkpoint-3", "checkpoint-3.part", "metrics.jsonl.part", "evaluation.jsonl.part"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.jsonl", "failed_episodes_1.jsonl", "tokens"])
@pytest.mark.parametrize("target", ["others/file", "others", "others/new", "run/config.yaml"])
def test_what_a_run_adds_to_is_no_link(run, capsys, name, target):
    path = run / name
    clear(path)
    path.symlink_to(Path(target).resolve())
    line = refusal(RESUME, capsys)
    assert f"run/{name} is a link to" in line
    assert target in line
    assert others() == THEIRS


def test_a_record_file_that_is_a_link_is_refused(run, capsys):
    (run / "tokens" / "part-000009-rank0000.parquet").symlink_to(Path("others/file").resolve())
    assert "is a link to" in refusal(RESUME, capsys)
    assert others() == THEIRS


@pytest.mark.parametrize("target", ["others", "others/file", "others/new"])
def test_what_a_run_makes_takes_the_place_of_a_link(run, target):
    for name in MADE:
        (run / name).symlink_to(Path(target).resolve())
    assert main(RESUME) == 0
    assert others() == THEIRS
    assert not Path("others/new").exists()
    assert (run / "model" / "model.safetensors").is_file()
    for path in (run / "model", run / "checkpoint-3"):
        assert not path.is_symlink()
    assert not list(run.glob("*.part"))


def test_links_within_a_checkpoint_that_is_written_again_go(run):
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")  # a whole one, of update 3
    path = run / "checkpoint-3" / "optimizer.pt"
    path.unlink()
    path.symlink_to(Path("others/file").resolve())
    assert main(["train", "--resume", "run/checkpoint-2", "--max_steps", "3"]) == 0
    assert others() == THEIRS


def test_a_checkpoint_behind_a_link_can_be_resumed_from_and_is_not_removed(run):
    shutil.move(run / "checkpoint-2", "others/moved")
    (run / "checkpoint-2").symlink_to(Path("others/moved").resolve())
    before = others()
    assert main([*RESUME, "--save_total_limit", "1"]) == 0
    assert others() == before
    assert (run / "checkpoint-3").is_dir()


def test_a_run_folder_that_is_a_link_itself_is_the_users_wish(run):
    shutil.move("run", "others/run")
    Path("run").symlink_to(Path("others/run").resolve())
    assert main(RESUME) == 0
    assert (Path("others/run/model") / "model.safetensors").is_file()


def test_parts_do_not_follow_links(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "file.part").symlink_to(tmp_path / "theirs")
    with file_at_once(tmp_path / "file") as part:
        part.write_text("ours")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder.part").symlink_to(tmp_path / "elsewhere")
    with folder_at_once(tmp_path / "folder") as part:
        (part / "file").write_text("ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert [(tmp_path / name).read_text() for name in ("file", "folder/file")] == ["ours", "ours"]


def test_other_kinds_of_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="must be a file"):
        refuse_other_than_own(tmp_path / "pipe")
    with pytest.raises(InputError, match="must be a file"):
        refuse_other_than_own(tmp_path)
    refuse_other_than_own(tmp_path / "missing")
    refuse_other_than_own(tmp_path, folder=True)
