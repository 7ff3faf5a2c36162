"""The keys of a run on TRL: what there is, of what type, and the settings they make."""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import InputError
from equipoise.settings import reading
from equipoise.settings.presets import with_preset
from equipoise.settings.run import RunSettings
from equipoise.tasks.datasets import one_line
from equipoise.trl.beginning import raised_by_host
from equipoise.trl.config import EquipoiseConfig


@functools.cache
def known_keys() -> dict[str, Any]:
    """Every key of a run with its type: those of `RunSettings`, and those of `EquipoiseConfig` with all of TRL's."""
    hints = typing.get_type_hints(RunSettings) | typing.get_type_hints(EquipoiseConfig)
    names = [f.name for cls in (RunSettings, EquipoiseConfig) for f in dataclasses.fields(cls) if f.init]
    return {name: hints[name] for name in names}


def checked_keys(values: Mapping[str, Any], origin: str, *, beside: Iterable[str] = ()) -> dict[str, Any]:
    """Values of known keys, converted to their types.

    Args:
        values: as read.
        origin: what the message calls them: "config FILE: key" or "flag --".
        beside: what else an unknown name may have been meant for: the command's own options.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of the wrong type.
    """
    return reading.checked_keys(values, origin, known_keys(), beside=beside)


def read_config(path: str | Path) -> dict[str, Any]:
    """The checked keys of a configuration file.

    Raises:
        InputError: a file that cannot be read, or as `checked_keys`.
    """
    return checked_keys(reading.read_yaml(path), f"config {path}: ")


def build(values: dict[str, Any]) -> tuple[RunSettings, EquipoiseConfig]:
    """Settings from checked keys.

    Raises:
        InputError: values out of range, missing or excluding each other.
    """
    values = {"logging_steps": 1} | with_preset(values)  # the report and the studies want every update
    own = {f.name for f in dataclasses.fields(RunSettings)}
    run = RunSettings(**{k: v for k, v in values.items() if k in own})
    if not values.get("output_dir"):
        raise InputError("output_dir is required: the run folder (--output_dir)")
    if values.get("resume_from_checkpoint"):
        raise InputError("resume_from_checkpoint has no effect here: continue a run with --resume RUN")
    try:
        return run, EquipoiseConfig(**{k: v for k, v in values.items() if k not in own})
    except (ValueError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
    except Exception as error:  # of values that the hosts do not check: a file that is not there, a number too large
        if not raised_by_host(error):
            raise
        raise InputError(f"the settings cannot be used: {one_line(error)}") from error
