"""What a report is made of: run folders as they are, with a line for everything that is missing or broken."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from equipoise.diagnostics.records import RecordFiles, record_files
from equipoise.diagnostics.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RECORDS_FOLDER, RESOLVED_FILE
from equipoise.diagnostics.runs import RunRecord, read_run
from equipoise.errors import InputError
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
        return json.dumps({k: v for k, v in self.given.items() if k not in NOT_A_SETTING}, sort_keys=True, default=str)

    @property
    def task(self) -> str | None:
        """What the run was trained on; None where it does not tell."""
        told = [str(self.given[key]) for key in TASK_KEYS if self.given.get(key) is not None]
        return ", ".join(told) or None


def read_sources(folders: list[Path]) -> list[Source]:
    """The run folders of a report.

    Raises:
        InputError: a folder that is no run, or that was given twice, or records of a newer schema.
    """
    resolved = [folder.resolve() for folder in folders]
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


def _source(folder: Path, name: str) -> Source:
    has_metrics, has_records = (folder / METRICS_FILE).is_file(), (folder / RECORDS_FOLDER).is_dir()
    if not has_metrics and not has_records:
        raise InputError(f"{folder} is no run folder: it has neither {METRICS_FILE} nor {RECORDS_FOLDER}/")
    gaps = []
    record = RunRecord(name, [], [])
    if has_metrics:
        record = read_run(folder, unfinished=True)
        if (folder / METRICS_FILE).stat().st_size and not (folder / METRICS_FILE).read_bytes().endswith(b"\n"):
            gaps.append(f"the last line of {METRICS_FILE} is cut off")
        if not record.evaluations:
            gaps.append("no evaluations on held-out data")
    else:
        gaps.append(f"no {METRICS_FILE}: no curves over the updates")
    records = _records(folder, gaps)
    given, resolved = (_mapping(folder / file, yaml.safe_load, gaps) for file in (CONFIG_FILE, RESOLVED_FILE))
    environment = _mapping(folder / ENVIRONMENT_FILE, json.loads, gaps)
    return Source(name, folder, record, records, given, resolved, environment, gaps)


def _records(folder: Path, gaps: list[str]) -> RecordFiles:
    if not (folder / RECORDS_FOLDER).is_dir():
        gaps.append("no token records: train with record_tokens")
        return RecordFiles([], [], 0)
    records = record_files(folder)
    gaps += [line.removeprefix(f"{folder}/") for line in records.unreadable]
    if not records.readable:
        gaps.append("no token records that can be read")
    return records


def _mapping(path: Path, load, gaps: list[str]) -> dict[str, Any]:
    try:
        loaded = load(path.read_text())
    except FileNotFoundError:
        gaps.append(f"no {path.name}")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        gaps.append(f"{path.name} cannot be read: {' '.join(str(error).split())[:100]}")
        return {}
    return redacted(loaded) if isinstance(loaded, dict) else {}  # older versions wrote what they were given
