"""A file or folder that is not what its place says."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def missing(rng: random.Random, path: Path) -> None:
    _remove(path)


def emptied(rng: random.Random, path: Path) -> None:
    kind = path.is_dir()
    _remove(path)
    path.mkdir() if kind else path.touch()


def folder_instead(rng: random.Random, path: Path) -> None:
    """A folder where a file is meant, and a file where a folder is."""
    kind = path.is_dir()
    _remove(path)
    path.write_text("x") if kind else path.mkdir()
    if not kind and rng.random() < 0.5:
        (path / "inside").write_text("x")


def link_to_itself(rng: random.Random, path: Path) -> None:
    _remove(path)
    path.symlink_to(path.name)


def link_to_nowhere(rng: random.Random, path: Path) -> None:
    _remove(path)
    path.symlink_to(rng.choice(("nowhere", "/proc/none/x", "x" * 250)))


def link_elsewhere(rng: random.Random, path: Path) -> None:
    """The same content, behind a link: what is only read may be, what is written must not go through it."""
    aside = path.with_name("aside-" + path.name)
    path.rename(aside)
    path.symlink_to(aside.name)


def link_to_device(rng: random.Random, path: Path) -> None:
    _remove(path)
    path.symlink_to(rng.choice(("/dev/null", "/dev/full", "/proc/self/mem", "/proc/version")))


def pipe(rng: random.Random, path: Path) -> None:
    """A pipe that nobody writes to."""
    _remove(path)
    os.mkfifo(path)


def another(rng: random.Random, path: Path) -> None:
    """What a neighbour holds."""
    neighbours = [p for p in sorted(path.parent.iterdir()) if p != path and p.is_file() and not p.is_symlink()]
    _remove(path)
    if neighbours:
        shutil.copyfile(rng.choice(neighbours), path)


def added(rng: random.Random, path: Path) -> None:
    """Something beside it that is not expected."""
    name = rng.choice(NAMES)
    place = path.parent / name
    if not os.path.lexists(place):
        rng.choice((lambda: place.mkdir(), lambda: place.write_bytes(b"x"), lambda: place.symlink_to("nowhere")))()


NAMES = (
    "checkpoint-9999999999999999999999", "checkpoint-1", "checkpoint--1", "checkpoint-\u0661", "model", "tokens",
    "x.part", "model.part", ".hidden", "é", "a\nb", "x" * 250, "\udcff", "equipoise.json", "--help",
)  # fmt: skip
"""Of what may lie beside something."""

MUTATIONS: tuple[Callable[[random.Random, Path], None], ...] = (
    missing, missing, emptied, folder_instead, link_to_itself, link_to_nowhere, link_elsewhere, link_to_device, pipe,
    another, added,
)  # fmt: skip


def misplace(rng: random.Random, path: Path) -> None:
    """Do one of them."""
    rng.choice(MUTATIONS)(rng, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
