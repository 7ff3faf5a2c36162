"""What a checkpoint must hold to be whole: each of its files, with size and checksum.

A file that is missing would otherwise go unnoticed: transformers leaves out an optimizer, a scheduler or a random state
that is not there, and the run goes on with other numbers.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

CHUNK_BYTES = 2**24


def inventory(folder: Path, *, without: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Every file in the folder and below: path from the folder -> {"bytes", "xxh3_128"}.

    Args:
        folder: of the checkpoint.
        without: names of files of the folder that are left out.

    Raises:
        OSError: a file cannot be read.
    """
    paths = (Path(inner, name) for inner, _, names in os.walk(folder) for name in names)
    found = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    return {
        name: {"bytes": found[name].stat().st_size, "xxh3_128": _checksum(found[name])}
        for name in sorted(found.keys() - set(without))
    }


def fault(folder: Path, listed: Mapping[str, Mapping[str, Any]], *, contents: bool = True) -> str | None:
    """What keeps the folder from being what was listed, "optimizer.pt is missing"; None when it is whole.

    Args:
        folder: of the checkpoint.
        listed: of `inventory`; what lies in the folder beside it is nobody's business.
        contents: compare checksums as well, which reads everything; else only what is there and how long it is.
    """
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{name} has {size} bytes of {entry['bytes']}"
    if contents:
        for name, entry in listed.items():
            try:
                if _checksum(folder / name) != entry["xxh3_128"]:
                    return f"{name} is damaged: it has another checksum than when it was written"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror or error}"
    return None


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
