"""Starts a worker: `python -P start.py KIND MEMORY_BYTES`; run as a script by `process`, imported by nobody."""

import sys
import types
from pathlib import Path


def make_packages_bare() -> None:
    """Lets modules of this package be imported without its `__init__`s, which load torch and take seconds."""
    folder = Path(__file__).resolve().parents[2]
    for name in ("equipoise", "equipoise.tasks", "equipoise.tasks.workers"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package


if __name__ == "__main__":
    make_packages_bare()

    from equipoise.tasks.workers.worker import main

    main(sys.argv[1], int(sys.argv[2]))
