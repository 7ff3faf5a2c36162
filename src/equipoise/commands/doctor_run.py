"""What `equipoise doctor` reads of a run folder: all that can be used of its files, and a word on what cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.diagnostics.doctor import Finding, warning
from equipoise.diagnostics.log_lines import LeftOut
from equipoise.diagnostics.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RESOLVED_FILE,
    is_run_folder,
)
from equipoise.diagnostics.runs import RunRecord, read_log, read_run
from equipoise.errors import InputError, shortened
from equipoise.inputs.json_text import json_object
from equipoise.inputs.yaml_text import yaml_mapping
from equipoise.settings.reading import converted, type_in_words
from equipoise.trl.keys import checked_keys, known_keys

COUNTS = (
    "num_generations", "per_device_train_batch_size", "steps_per_generation", "num_iterations",
    "gradient_accumulation_steps", "max_completion_length",
)  # fmt: skip
SETTINGS = (
    *COUNTS, "clipping", "polarity", "bapo_target_share", "papo_strength", "papo_warmup_updates",
    "papo_reference_entropy", "mask_truncated_completions", "replay_fraction", "rollout_token_budget", "use_peft",
    "use_vllm", "top_p", "top_k", "min_p", "repetition_penalty", "temperature", "bf16", "learning_rate",
)  # fmt: skip
"""Settings in force that checks look at."""

MOST_TOLD = 8
"""Kinds of things that could not be read which one finding tells."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder tells.

    Attributes:
        record: what was measured.
        given: the keys that were given, checked.
        resolved: the settings in force that checks look at, of their types.
        environment: "host", "device" and "world_size", where they are told.
        left_out: one line for each thing that could not be used.
    """

    record: RunRecord
    given: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    left_out: list[str]


def read_run_files(path: Path) -> RunFiles:
    """All that can be used of a run folder, or of the log of a host.

    Raises:
        InputError: there is nothing: no metrics, and where none of their lines can be used no settings either.
    """
    if path.is_file():
        record = read_log(path, leave_out=True)
        return RunFiles(record, {}, {}, {}, record.left_out)
    record, left_out = read_run(path, leave_out=True), LeftOut()
    given = _given(path, left_out) if is_run_folder(path) else {}
    resolved = _resolved(path, left_out)
    environment = _environment(path, left_out)
    if not record.metrics and (not record.left_out or not (given or resolved)):
        raise InputError(*record.left_out[:1] or [f"its {METRICS_FILE} is empty: no update has been logged"])
    return RunFiles(record, given, resolved, environment, record.left_out + left_out.notes)


def check_files(left_out: list[str]) -> list[Finding]:
    """A finding that names what could not be read; none where everything could."""
    if not left_out:
        return []
    told = "; ".join(shortened_line(line) for line in left_out[:MOST_TOLD])
    if len(left_out) > MOST_TOLD:
        told += f"; and {len(left_out) - MOST_TOLD:,} more"
    return [
        warning(
            "files of the run",
            told,
            "What could not be read is left out of every check below: they speak of the rest.",
            "See who else writes into the folder, and whether its disk is full; a run that goes on may be in the middle"
            " of its last line.",
        )
    ]


def shortened_line(line: str, limit: int = 300) -> str:
    """The line, or its beginning and a mark."""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _read(read: Callable[..., dict[str, Any]], path: Path, left_out: LeftOut) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read(path, "")
    except InputError as error:
        left_out.note(str(error))
        return {}


def _given(folder: Path, left_out: LeftOut) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, value in _read(yaml_mapping, folder / CONFIG_FILE, left_out).items():
        try:
            given |= checked_keys({key: value}, f"{folder / CONFIG_FILE}: ")
        except InputError as error:
            left_out.note(str(error))
    return given


def _resolved(folder: Path, left_out: LeftOut) -> dict[str, Any]:
    values = _read(yaml_mapping, folder / RESOLVED_FILE, left_out)
    resolved, hints = {}, known_keys()
    for key in SETTINGS:
        if key not in values:
            continue
        rule = type_in_words(hints[key])
        try:
            resolved[key] = converted(values[key], hints[key])
            if key in COUNTS and resolved[key] is not None and not 1 <= resolved[key] <= 10**9:
                rule = "from 1 to 1,000,000,000"
                raise ValueError
        except ValueError:
            resolved.pop(key, None)
            left_out.note(f"{folder / RESOLVED_FILE}: {key} must be {rule}, got {shortened(values[key])}")
    return resolved


def _environment(folder: Path, left_out: LeftOut) -> dict[str, Any]:
    values = _read(json_object, folder / ENVIRONMENT_FILE, left_out)
    environment = {}
    for key, kind, rule in (("host", str, "text"), ("device", str, "text"), ("world_size", int, "a whole number >= 1")):
        if key not in values:
            continue
        value = values[key]
        in_range = isinstance(value, str) or (type(value) is int and 1 <= value <= 10**6)
        if isinstance(value, kind) and in_range:
            environment[key] = value
        else:
            left_out.note(f"{folder / ENVIRONMENT_FILE}: {key} must be {rule}, got {shortened(value)}")
    return environment
