import os
from pathlib import Path

import pytest

from equipoise.errors import InputError
from equipoise.files import PART, file_at_once, folder_at_once, put, write_at_once, writing


class InterruptedWriteError(Exception):
    pass


def half_written(part):
    part.write_text("half")
    raise InterruptedWriteError


@pytest.fixture
def done(monkeypatch):
    """What is synced and renamed, in order."""
    names = {}
    seen = []

    def opened(path, *arguments, _open=os.open):
        descriptor = _open(path, *arguments)
        names[descriptor] = Path(path).name
        return descriptor

    def replaced(source, target, _replace=os.replace):
        seen.append(("replace", Path(source).name, Path(target).name))
        _replace(source, target)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(("sync", names[descriptor])))
    monkeypatch.setattr(os, "replace", replaced)
    return seen


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_is_on_disk_afterwards(tmp_path, done):
    write_at_once(tmp_path / "a.txt", "ä\n")
    assert done == [("sync", "a.txt" + PART), ("replace", "a.txt" + PART, "a.txt"), ("sync", tmp_path.name)]
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()


def test_a_folder_is_on_disk_with_all_that_is_in_it_before_it_has_its_name(tmp_path, done):
    with folder_at_once(tmp_path / "above" / "model") as part:
        (part / "deep").mkdir()
        for name in ("a", "deep/b"):
            (part / name).write_text(name)
    place = done.index(("replace", "model" + PART, "model"))
    assert set(done[:place]) == {("sync", name) for name in ("a", "b", "deep", "model" + PART)}
    assert done[place + 1 :] == [("sync", "above")]
    assert (tmp_path / "above/model/deep/b").read_text() == "deep/b"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(InterruptedWriteError), file_at_once(path) as part:
        half_written(part)
    assert path.read_text() == "old"
    with pytest.raises(InterruptedWriteError), folder_at_once(tmp_path / "folder") as part:
        half_written(part / "half")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_empty_one_and_of_no_other(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with folder_at_once(folder) as part:
        (part / "a").write_text("new")
    with pytest.raises(OSError, match="not empty"), folder_at_once(folder) as part:
        (part / "a").write_text("newer")
    assert (folder / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_an_interrupted_process_left_does_not_come_along(tmp_path):
    left = tmp_path / ("folder" + PART)
    left.mkdir()
    (left / "half").write_text("half")
    with folder_at_once(tmp_path / "folder") as part:
        (part / "a").write_text("a")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]


def test_what_was_written_elsewhere_is_put_in_place(tmp_path):
    (tmp_path / "made").write_text("new")
    (tmp_path / "a").write_text("old")
    put(tmp_path / "made", tmp_path / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


def test_a_refusal_of_the_system_is_one_line_for_the_user(tmp_path):
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(InputError) as refused, writing(f"--output {path}", "; make the folder"):
        write_at_once(path, "")
    line = str(refused.value)
    assert line.startswith(f"--output {path} ")
    assert line.endswith("; make the folder")
    assert "No such file" in line
    assert "\n" not in line


def test_errors_that_are_not_of_the_system_pass():
    with pytest.raises(InterruptedWriteError), writing("a"):
        raise InterruptedWriteError
