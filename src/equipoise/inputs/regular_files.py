"""Bytes of a file: of a regular one only, so that a pipe or a device cannot hang, and no more than a limit."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from equipoise.errors import InputError


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open to read its bytes.

    Raises:
        OSError: it is missing, no regular file, or cannot be opened; a name that no file can have, too.
    """
    try:
        _require_regular(os.stat(path))
        # Between the two looks it may have become a pipe, which would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL or half of a character in the name
        raise OSError(errno.EINVAL, "no file can have this name") from error
    try:
        _require_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def file_bytes(path: str | Path, what: str, limit: int) -> bytes:
    """All bytes of a regular file.

    Args:
        path: of the file.
        what: it is called in messages: "config".
        limit: bytes it may have.

    Raises:
        InputError: it cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{called(what, path)} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InputError(f"{called(what, path)} cannot be read: it must have at most {limit:,} bytes")
    return data


def file_text(path: str | Path, what: str, limit: int) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        InputError: as `file_bytes`, or bytes that are no UTF-8, with their line.
    """
    data = file_bytes(path, what, limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{called(what, path)}, line {line} must be UTF-8, got the byte 0x{error.object[error.start]:02x}"
        ) from error


def called(what: str, path: str | Path) -> str:
    """A file as messages name it: "config a.yaml", or the path alone."""
    return f"{what} {path}".strip()
