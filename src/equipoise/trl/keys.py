"""The keys of a run on TRL: what there is, of what type, and the settings they make."""

import dataclasses
import functools
import logging
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import InputError
from equipoise.redaction import REDACTED, is_redacted
from equipoise.settings import reading
from equipoise.settings.presets import with_preset
from equipoise.settings.run import RunSettings
from equipoise.tasks.datasets import one_line
from equipoise.trl.beginning import raised_by_host
from equipoise.trl.config import EquipoiseConfig

logger = logging.getLogger("equipoise")


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


def with_secrets(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The keys without those whose secret was taken out when they were written, as the host finds such a secret itself.

    A token of the hub is then that of the environment (HF_TOKEN) or of a login.

    Args:
        values: checked keys, over which flags have been laid already.
        origin: where they are from, for messages.

    Raises:
        InputError: a secret that is nowhere else, such as the password in an address, or a token for `push_to_hub`.
    """
    kept = _without_secrets(values, origin, "")
    if values.get("push_to_hub") and is_redacted(values.get("hub_token")):
        from huggingface_hub import get_token

        if get_token() is None:
            raise InputError(f"{origin} holds no hub_token, which push_to_hub needs: give --hub_token, or set HF_TOKEN")
    return kept


def _without_secrets(values: Mapping[str, Any], origin: str, within: str) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _without_secrets(value, origin, within or str(key))
        elif value == REDACTED and str(key).endswith("token"):
            logger.warning("%s holds no %s, as it is a secret: that of the environment is taken, if any.", origin, key)
        elif is_redacted(value):
            raise InputError(f"{origin} holds no {key}, as it is or has a secret: give --{within or key} again")
        else:
            kept[key] = value
    return kept


def build(values: dict[str, Any]) -> tuple[RunSettings, EquipoiseConfig]:
    """Settings from checked keys.

    Raises:
        InputError: values out of range, missing or excluding each other.
    """
    given, values = values, {"logging_steps": 1} | with_preset(values)  # report and studies want every update
    own = {f.name for f in dataclasses.fields(RunSettings)}
    run = RunSettings(**{k: v for k, v in values.items() if k in own})
    if not values.get("output_dir"):
        raise InputError("output_dir is required: the run folder (--output_dir)")
    if values.get("resume_from_checkpoint"):
        raise InputError("resume_from_checkpoint has no effect here: continue a run with --resume RUN")
    try:
        return run, EquipoiseConfig(**{k: v for k, v in values.items() if k not in own})
    except (ValueError, ImportError) as error:
        raise InputError(_with_keys(" ".join(str(error).split()), given)) from error
    except Exception as error:  # of values that the hosts do not check: a file that is not there, a number too large
        if not raised_by_host(error):
            raise
        raise InputError(_with_keys(f"the settings cannot be used: {one_line(error)}", given)) from error


def _with_keys(message: str, values: Mapping[str, Any]) -> str:
    """A host's words, with the keys whose value they quote where they name none; with all that were given if none.

    A host may have renamed a key, and names that one; an empty text it quotes as nothing.
    """
    words = set(re.findall(r"\w+", message))
    if not words.isdisjoint(values):
        return message
    quoted = [key for key, value in values.items() if not isinstance(value, bool) and _quotes(message, str(value))]
    if not quoted and not words.isdisjoint(known_keys()):
        return message
    return f"{message} (of the keys {', '.join(quoted or values)})"


def _quotes(message: str, value: str) -> bool:
    """Whether the value, or how Python writes it, may stand in the message by itself, not within a word or number."""
    forms = "|".join({re.escape(value), re.escape(repr(value)[1:-1])})
    return not value or bool(re.search(rf"(?<![\w.])({forms})(?!\w|\.\w)", message))
