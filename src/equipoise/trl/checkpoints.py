"""Checkpoints that are whole or not there: one that is begun says so, and a marker is written last.

An interrupted or failed write leaves the previous checkpoint in place; older ones are removed only after the new one is
marked. What another trainer has written into the same folder is never removed: not as unfinished, not as too old, and
not where a checkpoint of the same update takes its name.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from equipoise.diagnostics.run_folder import (
    CHECKPOINT_BEGUN,
    CHECKPOINT_MARKER,
    checkpoint_folders,
    is_begun,
    is_complete,
)
from equipoise.errors import InputError
from equipoise.files import set_aside, write_at_once

logger = logging.getLogger("equipoise")

FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint could not be written or read; the message names the folder, the cause and what is still usable."""


def sharding_of(folder: Path) -> str | None:
    """Who saved the model and the optimizer in parts, or in a form, that only it reads: "FSDP", "DeepSpeed" or None."""
    if any(folder.glob("pytorch_model_fsdp*")):
        return "FSDP"
    return "DeepSpeed" if any(folder.glob("global_step*")) else None


def begin(folder: Path) -> None:
    """Make the folder of a checkpoint, marked as begun. What an interrupted write has left beside it is removed.

    A folder of that name which equipoise did not write is moved aside, to the first free "found-N-NAME".

    Raises:
        OSError: it cannot be made.
    """
    discard_incomplete(folder.parent)
    if folder.exists() and not is_complete(folder):
        logger.warning("%s was not written by equipoise: it is kept as %s.", folder, set_aside(folder).name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINT_BEGUN).touch()  # first: from here on a complete checkpoint of the same update is none
    (folder / CHECKPOINT_MARKER).unlink(missing_ok=True)


def discard_incomplete(run_folder: str | Path) -> list[Path]:
    """Remove checkpoints that equipoise began and did not finish; returns them."""
    incomplete = [folder for folder in checkpoint_folders(run_folder) if is_begun(folder)]
    for folder in incomplete:
        shutil.rmtree(folder)
    return incomplete


def write_marker(folder: Path, state: dict[str, Any]) -> None:
    """Mark a checkpoint complete, with the state that is the same on every rank. Atomic."""
    write_at_once(folder / CHECKPOINT_MARKER, json.dumps({"format": FORMAT, **state}, indent=2))
    (folder / CHECKPOINT_BEGUN).unlink(missing_ok=True)


def read_marker(folder: Path) -> dict[str, Any]:
    """The state `write_marker` wrote.

    Raises:
        CheckpointError: no marker (interrupted write, or not one of ours), a damaged one, or one of a newer format.
    """
    if not is_complete(folder):
        raise CheckpointError(
            f"{folder} has no {CHECKPOINT_MARKER}: its writing was interrupted, or it is no checkpoint of equipoise"
        )
    try:
        state = json.loads((folder / CHECKPOINT_MARKER).read_text())
        newer = state.pop("format") > FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT_MARKER} is damaged: {error}; use another checkpoint") from error
    if newer:
        raise CheckpointError(
            f"{folder / CHECKPOINT_MARKER} is of a newer format than this version of equipoise reads ({FORMAT})"
        )
    return state


def rotate(run_folder: str | Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints of equipoise; the newest and the best one always. No limit: None or <= 0."""
    complete = [folder for folder in checkpoint_folders(run_folder) if is_complete(folder)]
    if not complete or limit is None or limit <= 0:
        return
    kept = {complete[-1], *(folder for folder in complete if best and folder.resolve() == Path(best).resolve())}
    others = [folder for folder in complete if folder not in kept]
    for folder in others[: max(len(complete) - max(limit, len(kept)), 0)]:
        shutil.rmtree(folder, ignore_errors=True)


def keep_only(run_folder: str | Path, best: str) -> None:
    """Remove the checkpoints of equipoise but the best, as transformers does at the end of a run that may keep one."""
    for folder in checkpoint_folders(run_folder):
        if is_complete(folder) and folder.resolve() != Path(best).resolve():
            shutil.rmtree(folder, ignore_errors=True)
