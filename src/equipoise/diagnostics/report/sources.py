"""What a report is made of: run folders as they are, with a line for everything that is missing or broken."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.diagnostics.records import RecordFiles, record_files
from equipoise.diagnostics.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RECORDS_FOLDER, RESOLVED_FILE
from equipoise.diagnostics.runs import RunRecord, read_run
from equipoise.errors import InputError, shortened
from equipoise.inputs.json_text import json_object
from equipoise.inputs.yaml_text import yaml_mapping
from equipoise.redaction import redacted

NOT_A_SETTING = frozenset(
    {"seed", "data_seed", "output_dir", "model", "run_name", "report_to", "disable_tqdm", "logging_dir", "project"}
)
"""Keys in which seeds of the same settings may differ."""

TASK_KEYS = ("task", "eval_task", "reward")


@dataclass(frozen=True)
class Source:
    """One run folder.

    Attributes:
        name: of the folder, made unique among the runs of a report.
        record: metrics and evaluations; empty where the folder has none.
        records: files of token records.
        given: the keys the run was started with (config.yaml).
        resolved: every setting in force (resolved.yaml).
        environment: versions, machine, command.
        gaps: one line for each thing that is missing or cannot be read.
    """

    name: str
    folder: Path
    record: RunRecord
    records: RecordFiles
    given: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    gaps: list[str] = field(default_factory=list)

    @property
    def settings_key(self) -> str:
        """Equal for seeds of the same settings; the folder itself for a run that does not tell its settings."""
        if not self.given:
            return str(self.folder)
        settings = {k: v for k, v in self.given.items() if k not in NOT_A_SETTING}
        return json.dumps(_with_text_keys(settings), sort_keys=True, default=str)

    @property
    def task(self) -> str | None:
        """What the run was trained on; None where it does not tell."""
        told = [
            self.given[key] if isinstance(self.given[key], str) else shortened(self.given[key])
            for key in TASK_KEYS
            if self.given.get(key) is not None
        ]
        return ", ".join(told) or None


def read_sources(folders: list[Path]) -> list[Source]:
    """The run folders of a report.

    Raises:
        InputError: a folder that is no run, or that was given twice.
    """
    resolved = [Path(os.path.realpath(folder)) for folder in folders]  # of links in a circle too
    twice = [str(folder) for number, folder in enumerate(folders) if resolved[number] in resolved[:number]]
    if twice:
        raise InputError(f"run folder {twice[0]} is given twice")
    names = _unique_names(resolved)
    return [_source(folder, name) for folder, name in zip(folders, names, strict=True)]


def _unique_names(folders: list[Path]) -> list[str]:
    names = [folder.name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{folder.parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]


def _with_text_keys(value: Any) -> Any:
    """Keys that can be sorted: in YAML they may be numbers as well."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


def _source(folder: Path, name: str) -> Source:
    has_metrics, has_records = os.path.lexists(folder / METRICS_FILE), (folder / RECORDS_FOLDER).is_dir()
    if not has_metrics and not has_records:
        raise InputError(f"{folder} is no run folder: it has neither {METRICS_FILE} nor {RECORDS_FOLDER}/")
    gaps = []
    record = RunRecord(name, [], [])
    if has_metrics:
        record = read_run(folder, leave_out=True)
        gaps += record.left_out
        if not record.metrics:
            gaps.append(f"no update in {METRICS_FILE}: no curves")
        if not record.evaluations:
            gaps.append("no evaluations on held-out data")
    else:
        gaps.append(f"no {METRICS_FILE}: no curves over the updates")
    records = _records(folder, gaps)
    given, resolved = (_mapping(folder / file, yaml_mapping, gaps) for file in (CONFIG_FILE, RESOLVED_FILE))
    environment = _mapping(folder / ENVIRONMENT_FILE, json_object, gaps)
    gaps = [line.replace(f"{folder}/", "") for line in gaps]
    return Source(name, folder, record, records, given, resolved, environment, gaps)


def _records(folder: Path, gaps: list[str]) -> RecordFiles:
    if not (folder / RECORDS_FOLDER).is_dir():
        gaps.append("no token records: train with record_tokens")
        return RecordFiles([], [], 0)
    records = record_files(folder)
    gaps += records.unreadable
    if not records.readable:
        gaps.append("no token records that can be read")
    return records


def _mapping(path: Path, read: Callable[..., dict[str, Any]], gaps: list[str]) -> dict[str, Any]:
    if not os.path.lexists(path):
        gaps.append(f"no {path.name}")
        return {}
    try:
        return redacted(read(path, ""))  # older versions wrote what they were given
    except InputError as error:
        gaps.append(str(error))
        return {}
