"""Files and folders that are whole or not there: written beside their place, brought to disk, then renamed to it.

A rename alone is not enough: after a power loss the new name may stand before the content does. So the content is
synced before the rename, and the folder that holds the name after it. Nothing is written through a symbolic link that
somebody has left in the way: the link goes, or is refused, and what it leads to stays.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.errors import InputError

PART = ".part"
"""What stands behind the name of a file or folder that is still being written."""


def write_at_once(path: Path, text: str) -> None:
    """Write a text file as UTF-8, in place of the one that is there.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    with file_at_once(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def file_at_once(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes the place of `path` when the block ends, and is removed when it fails.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    part = path.with_name(path.name + PART)
    clear(part)
    try:
        yield part
        put(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def folder_at_once(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; renamed to it when the block ends, and removed when the block fails.

    What an interrupted process left there is removed first.

    Args:
        folder: new or empty; the folders above it are made.

    Raises:
        OSError: it cannot be written.
    """
    part = folder.with_name(folder.name + PART)
    clear(part)
    part.mkdir(parents=True)
    try:
        yield part
        put(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear(path: Path) -> None:
    """Remove what an interrupted process has left: a file, a folder with all that is in it, or a link, not its target.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename what somebody else wrote there to the first free "found-N-NAME" beside it; returns the new place.

    Raises:
        OSError: it cannot be renamed.
    """
    names = (path.with_name(f"found-{n}-{path.name}") for n in itertools.count(1))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def refuse_other_than_own(path: Path, *, folder: bool = False) -> None:
    """Refuse to add to what is there, unless it is a plain file (or `folder`), in its own place; missing is well.

    Raises:
        InputError: a link, wherever it leads, or a file of another kind.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link to {os.readlink(path)}, and nothing is written through links: remove it")
    if os.path.lexists(path) and not (path.is_dir() if folder else path.is_file()):
        raise InputError(f"{path} must be a {'folder' if folder else 'file'} to be written to, and is something else")


def put(part: Path, path: Path) -> None:
    """Give what was written, a file or a folder with all that is in it, its name; on disk when this returns.

    Raises:
        OSError: it cannot be synced or renamed; a folder cannot take the place of one that holds anything.
    """
    if part.is_file():
        sync(part)
    else:
        sync_folder(part)
    os.replace(part, path)
    sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder to disk, with all that is in it.

    Raises:
        OSError: something in it cannot be synced.
    """
    for inner, _, names in os.walk(folder):
        for name in names:
            if (path := Path(inner, name)).is_file():
                sync(path)
        sync(Path(inner))


@contextmanager
def writing(what: object, advice: str = "", *, error: type[InputError] = InputError) -> Iterator[None]:
    """Turns an operating system's refusal to write into one line: "WHAT cannot be written: CAUSE" and the advice.

    Args:
        what: is written, as the user names it: a path, or a flag and its path.
        advice: what to do, beginning with the mark that joins it: "; once that is mended, ...".
        error: what is raised.

    Raises:
        InputError: in place of an `OSError` of the block; `error`, if one is given.
    """
    try:
        yield
    except OSError as refused:
        raise error(f"{what} cannot be written: {refused.strerror or refused}{advice}") from refused


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk.

    Raises:
        OSError: it cannot be synced.
    """
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and keeps names in a journal
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
