"""What processes of `equipoise.commands.side_by_side` do in its tests: in a module, so that they can import it."""

import json
import os
import sys
import time
from pathlib import Path

from equipoise.errors import InputError


def note(folder: Path, *names: str) -> None:
    """Writes down some variables of the environment, and the threads of torch."""
    import torch

    found = {name: os.environ.get(name) for name in names} | {"threads": torch.get_num_threads()}
    folder.mkdir()
    (folder / "found.json").write_text(json.dumps(found))


def refuse(folder: Path) -> None:
    print("begun", flush=True)
    raise InputError(f"{folder.name} cannot be\nused")


def crash(folder: Path) -> None:
    raise RuntimeError("a bug")


def vanish(folder: Path) -> None:
    sys.exit(3)


def meet(folder: Path, other: str) -> None:
    """Ends only once the other one has begun."""
    folder.mkdir()
    deadline = time.monotonic() + 60
    while not folder.with_name(other).exists():
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.05)
