"""Checkpoints that are whole or not there: one that is begun says so, and a marker is written last.

The marker lists every file with its size and checksum, and is written when all of them are on disk: a loss of power
cannot mark what is not there, and what is lost or damaged later is found before a run goes on from it. It has a
checksum of its own, as it holds the state of the controllers.

An interrupted or failed write leaves the previous checkpoint in place; older ones are removed only after the new one is
marked. What another trainer has written into the same folder is never removed: not as unfinished, not as too old, and
not where a checkpoint of the same update takes its name.
"""

import functools
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from equipoise.diagnostics.run_folder import (
    CHECKPOINT_BEGUN,
    CHECKPOINT_MARKER,
    CHECKPOINT_PREFIX,
    HOST_STATE,
    checkpoint_folders,
    is_begun,
    is_complete,
)
from equipoise.errors import InputError, shortened
from equipoise.files import PART, clear, set_aside, sync, sync_folder, write_at_once
from equipoise.inputs.json_text import json_object
from equipoise.paths import same_place
from equipoise.trl.inventory import fault, inventory

logger = logging.getLogger("equipoise")

FORMAT = 2
"""1: without the list of files and the checksum of the marker. Such a checkpoint is read, and cannot be checked."""

_CHECKED = ("files", "xxh3_128")
"""In a marker of format 2, and not in one of format 1."""


class CheckpointError(InputError):
    """A checkpoint could not be written or read; the message names the folder, the cause and what is still usable."""


def sharding_of(folder: Path) -> str | None:
    """Who saved the model and the optimizer in parts, or in a form, that only it reads: "FSDP", "DeepSpeed" or None."""
    if any(folder.glob("pytorch_model_fsdp*")):
        return "FSDP"
    return "DeepSpeed" if any(folder.glob("global_step*")) else None


def begin(folder: Path) -> None:
    """Make the folder of a checkpoint, empty but for the mark that it is begun.

    What an interrupted write has left beside it is removed, and so is an older checkpoint of equipoise of the same
    update. A folder, or a link, of that name which equipoise did not write is moved aside, to the first free
    "found-N-NAME".

    Raises:
        OSError: it cannot be made.
    """
    discard_incomplete(folder.parent)
    if folder.is_symlink() or (folder.exists() and not is_complete(folder)):
        logger.warning("%s was not written by equipoise: it is kept as %s.", folder, set_aside(folder).name)
    if folder.exists():
        _remove(folder)
    part = folder.with_name(folder.name + PART)
    part.mkdir(parents=True)
    (part / CHECKPOINT_BEGUN).touch()
    part.rename(folder)  # with its mark, so that a kill leaves no folder that might be somebody else's


def discard_incomplete(run_folder: str | Path) -> list[Path]:
    """Remove checkpoints that equipoise began and did not finish, to write or to remove; returns them.

    Raises:
        OSError: one cannot be removed.
    """
    parts = [p for p in Path(run_folder).glob(f"{CHECKPOINT_PREFIX}*{PART}") if p.stem.partition("-")[2].isdecimal()]
    for part in parts:
        clear(part)
    incomplete = [folder for folder in _removable(run_folder) if is_begun(folder)]
    for folder in incomplete:
        _remove(folder)
    return parts + incomplete


def _remove(folder: Path) -> None:
    """Under another name first: a kill in between leaves no checkpoint that looks whole, or somebody else's."""
    part = folder.rename(folder.with_name(folder.name + PART))
    shutil.rmtree(part)


def write_marker(folder: Path, state: dict[str, Any]) -> None:
    """Mark a checkpoint complete, with the state that is the same on every rank, once all of it is on disk. Atomic.

    Raises:
        OSError: a file cannot be read or brought to disk, or the marker cannot be written.
    """
    sync_folder(folder)
    files = inventory(folder, without=(CHECKPOINT_MARKER, CHECKPOINT_BEGUN))
    sync(folder.parent)  # the folder's own name
    marker = {"format": FORMAT, **state, "files": files}
    write_at_once(folder / CHECKPOINT_MARKER, json.dumps(marker | {"xxh3_128": _checksum(marker)}, indent=2))
    (folder / CHECKPOINT_BEGUN).unlink(missing_ok=True)
    sync(folder)


def read_marker(folder: Path) -> dict[str, Any]:
    """The state `write_marker` wrote; "files" lists what must be there, and is missing in format 1.

    Raises:
        CheckpointError: no marker (interrupted write, or not one of ours), a damaged one, or one of a newer format.
    """
    if not is_complete(folder):
        raise CheckpointError(
            f"{folder} has no {CHECKPOINT_MARKER}: its writing was interrupted, or it is no checkpoint of equipoise"
        )
    try:
        state = json_object(folder / CHECKPOINT_MARKER)
        form = state.get("format")
        if type(form) is not int or form < 1:
            raise ValueError(f"format must be a whole number from 1 to {FORMAT}, got {shortened(form)}")
        newer = form > FORMAT
        if not newer:
            _check_marker(state)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT_MARKER} is damaged: {error}; use another checkpoint") from error
    if newer:
        raise CheckpointError(
            f"{folder / CHECKPOINT_MARKER} is of a newer format than this version of equipoise reads ({FORMAT})"
        )
    return {name: value for name, value in state.items() if name not in ("format", "xxh3_128")}


def _check_marker(marker: dict[str, Any]) -> None:
    """Refuses a marker that is not as it was written.

    Raises:
        ValueError: saying what is wrong.
        TypeError, AttributeError: its parts are of other types.
    """
    if any((name in marker) != (marker["format"] == FORMAT) for name in _CHECKED):
        raise ValueError(f"it has no {' and no '.join(_CHECKED)}, or another format")
    if any(set(entry) != {"bytes", "xxh3_128"} for entry in marker.get("files", {}).values()):
        raise ValueError("its list of files is none")
    if marker["format"] == FORMAT:
        rest = {name: value for name, value in marker.items() if name != "xxh3_128"}
        if _checksum(rest) != marker["xxh3_128"]:
            raise ValueError("it has another checksum than when it was written")


def _checksum(marker: dict[str, Any]) -> str:
    """Of plain data, whatever the order of its keys."""
    return xxhash.xxh3_128(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def check_whole(folder: Path, *, contents: bool = True) -> dict[str, Any]:
    """The state of the marker of a checkpoint that holds all that it was marked with.

    Args:
        folder: of the checkpoint.
        contents: compare checksums too, which reads everything.

    Raises:
        CheckpointError: as `read_marker`, or a file that is missing or not as it was written. It names the newest
            whole checkpoint of the run.
    """
    state = read_marker(folder)
    if "files" not in state:
        missing = next((name for name in _needed(folder, state) if not any(folder.glob(name))), None)
        if missing is not None:
            raise CheckpointError(f"{folder} is not whole: {missing} is missing. {_offered(folder)}")
        json_object(folder / HOST_STATE, "checkpoint file")
        _tell_old(folder)
        return state
    found = fault(folder, state["files"], contents=contents)
    if found is not None:
        raise CheckpointError(f"{folder} is not whole: {found}. {_offered(folder)}")
    return state


def _needed(folder: Path, state: dict[str, Any]) -> tuple[str, ...]:
    """Patterns of what a run cannot go on without as it was, where no list tells: the host would go on all the same."""
    if not state.get("resumable", True):  # its weights alone were to be saved
        return ()
    always = (HOST_STATE, "rng_state*.pth")
    return always if sharding_of(folder) else (*always, "optimizer.pt", "scheduler.pt")


@functools.cache  # a run that goes on looks twice
def _tell_old(folder: Path) -> None:
    logger.warning("%s was written by an older version, without a list of its files: it is not checked.", folder)


def _offered(damaged: Path) -> str:
    """What to resume from in place of a damaged checkpoint."""
    for other in reversed(checkpoint_folders(damaged.parent)):
        if not same_place(other, damaged) and is_complete(other):
            with suppress(CheckpointError):
                if _is_whole(other):
                    return f"The newest whole checkpoint is {other}: resume from that one"
    return f"There is no whole checkpoint in {damaged.parent}: start the run again"


def _is_whole(folder: Path) -> bool:
    state = read_marker(folder)
    if "files" in state:
        return fault(folder, state["files"]) is None
    return all(any(folder.glob(name)) for name in _needed(folder, state))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns whatever the host raises while it reads a checkpoint into one line that names the folder.

    A checkpoint of ours has been compared with its list before; this is for those of another trainer.

    Raises:
        CheckpointError: in place of any other error of the block.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"checkpoint {folder} cannot be read: {cause}; use another checkpoint") from error


def rotate(run_folder: str | Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints of equipoise; the newest and the best one always. No limit: None or <= 0."""
    complete = [folder for folder in _removable(run_folder) if is_complete(folder)]
    if not complete or limit is None or limit <= 0:
        return
    kept = {complete[-1], *(folder for folder in complete if best and same_place(folder, best))}
    others = [folder for folder in complete if folder not in kept]
    for folder in others[: max(len(complete) - max(limit, len(kept)), 0)]:
        with suppress(OSError):
            _remove(folder)


def keep_only(run_folder: str | Path, best: str) -> None:
    """Remove the checkpoints of equipoise but the best, as transformers does at the end of a run that may keep one."""
    for folder in _removable(run_folder):
        if is_complete(folder) and not same_place(folder, best):
            with suppress(OSError):
                _remove(folder)


def set_later_aside(checkpoint: Path) -> None:
    """Rename the checkpoints of the run that come after this one: the run goes on from here, and nothing is lost."""
    discard_incomplete(checkpoint.parent)
    folders = checkpoint_folders(checkpoint.parent)
    later = folders[folders.index(checkpoint) + 1 :] if checkpoint in folders else []
    for folder in later:
        logger.warning("%s comes after %s: it is kept as %s.", folder, checkpoint.name, set_aside(folder).name)


def _removable(run_folder: str | Path) -> list[Path]:
    """Checkpoints that are folders of the run themselves: what a link leads to belongs to somebody else."""
    return [folder for folder in checkpoint_folders(run_folder) if not folder.is_symlink()]
