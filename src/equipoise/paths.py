"""Paths that a user gives: whether the system can use them at all, and whether something can be written there.

Asked before the work. What is asked is tried: rights, quotas, read-only systems and names that are too long have one
answer only.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from equipoise.errors import InputError, shortened

TRIAL_BYTES = 2**22
"""What a disk must still take, not to be called full."""


def check_path(path: str | Path, name: str) -> None:
    """Refuse a path that no system call takes: too long, with a NUL in it, or with characters it cannot hold.

    Args:
        path: of a file or folder that may be there or not.
        name: what to call it in messages: a flag or key.

    Raises:
        InputError: naming it, with the cause.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as error:
        raise InputError(f"{name} {shortened(str(path))} is no path that can be used: {error.strerror}") from error
    except ValueError as error:  # NUL, half of a character
        raise InputError(f"{name} {shortened(str(path))} is no path that can be used: {error}") from error


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same place; links in a circle, which `Path.resolve` raises for, are themselves."""
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:  # a NUL, or half of a character
        return False


def check_new_file(path: Path, name: str) -> None:
    """Refuse a file that cannot be written; nothing is made.

    Args:
        path: of a file, or folder, that is not there yet.
        name: of the flag, for messages.

    Raises:
        InputError: it exists, or cannot be written, with the cause.
    """
    check_path(path, name)
    if path.exists() or path.is_symlink():
        raise InputError(f"{name} {path} exists; choose another name")
    _try_in(path.parent, path, name)


def check_new_folder(path: Path, name: str) -> None:
    """Refuse a folder that cannot be made, or holds anything; nothing is made.

    Args:
        path: of a folder that is not there yet, or empty.
        name: of the flag, for messages.

    Raises:
        InputError: it exists, or cannot be written, with the cause.
    """
    check_path(path, name)
    try:
        taken = path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir())))
    except OSError as error:
        raise InputError(f"{name} {path} cannot be used: {error.strerror}") from error
    if taken:
        raise InputError(f"{name} {path} exists and is no empty folder; choose another name")
    _try_in(path.parent, path, name)


def cause_of_failed_write(error: BaseException, folder: Path) -> str:
    """Why something could not be written to a folder, in the system's words.

    Libraries have words of their own for a full disk; the system is asked again by writing there.

    Args:
        error: what a library raised.
        folder: that is there.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    trial = folder / uuid4().hex
    try:
        trial.write_bytes(bytes(TRIAL_BYTES))
    except OSError as refused:
        return refused.strerror or str(refused)
    finally:
        trial.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    return f"{' '.join(str(error).split())} ({free / 2**20:,.0f} MiB are free there)"


def _try_in(folder: Path, path: Path, name: str) -> None:
    """Makes a folder of a name as long as the path's beside it, and removes it, with the folders made for it."""
    trial = folder / uuid4().hex.ljust(len(path.name.encode("utf-8", "surrogatepass")) + len(".part"), "x")
    made = [above for above in (folder, *folder.parents) if not os.path.lexists(above)]
    try:
        trial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{name} {shortened(str(path))} cannot be written: {error.strerror}") from error
    finally:
        for one in (trial, *made):
            with suppress(OSError):
                one.rmdir()
