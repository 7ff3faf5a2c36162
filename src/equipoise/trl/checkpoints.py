"""Checkpoints that are whole or not there: a marker is written last, and only a marked checkpoint is resumed.

An interrupted or failed write leaves the previous checkpoint in place; older ones are removed only after the new one is
marked.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

from equipoise.diagnostics.run_folder import CHECKPOINT_MARKER, checkpoint_folders, is_complete
from equipoise.errors import InputError
from equipoise.files import write_at_once

FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint could not be written or read; the message names the folder, the cause and what is still usable."""


def sharding_of(folder: Path) -> str | None:
    """Who saved the model and the optimizer in parts, or in a form, that only it reads: "FSDP", "DeepSpeed" or None."""
    if any(folder.glob("pytorch_model_fsdp*")):
        return "FSDP"
    return "DeepSpeed" if any(folder.glob("global_step*")) else None


def discard_incomplete(run_folder: str | Path) -> list[Path]:
    """Remove checkpoints whose writing was interrupted; returns them."""
    incomplete = [folder for folder in checkpoint_folders(run_folder) if not is_complete(folder)]
    for folder in incomplete:
        shutil.rmtree(folder)
    return incomplete


def write_marker(folder: Path, state: dict[str, Any]) -> None:
    """Mark a checkpoint complete, with the state that is the same on every rank. Atomic."""
    write_at_once(folder / CHECKPOINT_MARKER, json.dumps({"format": FORMAT, **state}, indent=2))


def read_marker(folder: Path) -> dict[str, Any]:
    """The state `write_marker` wrote.

    Raises:
        CheckpointError: no marker (interrupted write, or not one of ours), or a marker of a newer format.
    """
    if not is_complete(folder):
        raise CheckpointError(
            f"{folder} has no {CHECKPOINT_MARKER}: its writing was interrupted, or it is no checkpoint of equipoise"
        )
    state = json.loads((folder / CHECKPOINT_MARKER).read_text())
    if state.pop("format") > FORMAT:
        raise CheckpointError(
            f"{folder / CHECKPOINT_MARKER} is of a newer format than this version of equipoise reads ({FORMAT})"
        )
    return state


def rotate(run_folder: str | Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints and the best one."""
    rotate_checkpoints(output_dir=str(run_folder), save_total_limit=limit, best_model_checkpoint=best, use_mtime=False)
