"""What a run that is resumed may have changed, keeps of its beginning, and would run of its folder."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from equipoise.diagnostics.run_folder import RESOLVED_FILE
from equipoise.errors import InputError
from equipoise.redaction import is_redacted, redacted
from equipoise.settings.reading import read_yaml
from equipoise.trl import checkpoints
from equipoise.trl.config import EquipoiseConfig

logger = logging.getLogger("equipoise")

RESUMABLE_CHANGES = {
    "max_steps", "num_train_epochs", "save_steps", "save_total_limit", "report_to", "disable_tqdm", "output_dir",
    "dataloader_num_workers", "log_completions", "run_name", "record_tokens", "record_tokens_fraction", "hub_token",
    "print_samples",
}  # fmt: skip
"""How a run is watched and stored, and how long it goes on. Any other change would make it another run."""


def check_changes(folder: Path, values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Refuse a change that would make it another run.

    Args:
        folder: of the run.
        values: its own keys.
        changes: keys that are given now.

    Raises:
        InputError: naming the key and both values.
    """
    for key, value in changes.items():
        is_same = value == values.get(key) or (is_redacted(values.get(key)) and redacted(value, key) == values[key])
        if key not in RESUMABLE_CHANGES and not is_same:
            shown, had = redacted(value, key), redacted(values.get(key), key)
            raise InputError(
                f"flag --{key}={shown!r} would make {folder} another run (it has {had!r}); "
                f"start one with another --output_dir"
            )


def unpickled(checkpoint: Path) -> list[str]:
    """What the host reads of a checkpoint as pickles, which may hold code: the parts of sharded ones."""
    sharding = checkpoints.sharding_of(checkpoint)
    return [] if sharding is None else [f"pickles in {checkpoint.name}, as {sharding} reads them"]


def former_defaults(folder: Path, values: dict[str, Any], config: EquipoiseConfig) -> dict[str, Any]:
    """Keys of equipoise that were not given and had another default, or preset, in the version that began the run."""
    if not (folder / RESOLVED_FILE).is_file():
        return {}
    then, now = read_yaml(folder / RESOLVED_FILE), json.loads(config.to_json_string())
    own = {f.name for f in dataclasses.fields(EquipoiseConfig)} - {f.name for f in dataclasses.fields(GRPOConfig)}
    former = {name: then[name] for name in own if name in then and name not in values and then[name] != now[name]}
    for name, value in sorted(former.items()):
        logger.warning("%s began with %s=%r and keeps it; now the default is %r.", folder, name, value, now[name])
    return former
