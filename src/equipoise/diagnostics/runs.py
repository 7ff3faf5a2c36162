"""Reading run folders back, without the trainer that wrote them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from equipoise.diagnostics.metric_names import OURS, of_verls_log, translated
from equipoise.diagnostics.run_folder import EVALUATION_FILE, METRICS_FILE
from equipoise.errors import InputError, shortened


@dataclass(frozen=True)
class RunRecord:
    """What a run measured.

    Attributes:
        name: of the folder.
        metrics: one mapping per logged update, in order, with our names of a host's metrics (`metric_names`).
        evaluations: one mapping per evaluation on held-out data, in order.
    """

    name: str
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    def curve(self, key: str) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """(updates, values) of a metric where it was logged and finite."""
        points = [(m["update"], m[key]) for m in self.metrics if m.get(key) is not None]
        return _columns(points, 2)

    def evaluation_curve(self, *path: str) -> tuple[Float[np.ndarray, " points"], ...]:
        """(updates, mean, low, high) of an estimate, such as ("pass_at", "8") or ("greedy",)."""
        points = []
        for evaluation in self.evaluations:
            estimate: Any = evaluation
            for key in path:
                estimate = (estimate or {}).get(key)
            if estimate is not None:
                points.append((evaluation["update"], estimate["mean"], estimate["low"], estimate["high"]))
        return _columns(points, 4)


def _columns(points: list[tuple], count: int) -> tuple:
    return tuple(np.array(points, dtype=float).reshape(-1, count).T)


def read_run(folder: str | Path, *, unfinished: bool = False) -> RunRecord:
    """The record of a run folder.

    Args:
        folder: of the run.
        unfinished: leave out a last line that is cut off, as a run in progress may have one.

    Raises:
        InputError: when the folder holds no metrics, or a line of its files is no JSON (with its number).
    """
    folder = Path(folder)
    if not (folder / METRICS_FILE).is_file():
        raise InputError(f"{folder} is no run folder: it has no {METRICS_FILE}")
    metrics = [translated(line) for line in _lines(folder / METRICS_FILE, unfinished)]
    return RunRecord(folder.name, metrics, _lines(folder / EVALUATION_FILE, unfinished))


def read_log(path: Path) -> RunRecord:
    """The record that a host's own log holds, a file of JSON lines: that of verl's file logger, or a metrics.jsonl.

    Raises:
        InputError: the file cannot be read, or holds no such lines.
    """
    try:
        lines = _lines(path, unfinished=False)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    metrics = []
    for number, line in enumerate(lines, start=1):
        known = of_verls_log(line) or (line if "update" in line else None)
        if known is None:
            raise InputError(f"{path}, line {number} is no line of metrics: it has neither step and data nor update")
        metrics.append(known)
    if not any(name.startswith(OURS) for line in metrics for name in line):
        raise InputError(f"{path} has no scalars of equipoise: was the run started with it?")
    return RunRecord(path.stem, [translated(line) for line in metrics], [])


def _lines(path: Path, unfinished: bool) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    text = path.read_text()
    if unfinished:
        text = text[: text.rfind("\n") + 1]
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is no JSON: {error.msg}") from error
        if not isinstance(records[-1], dict):
            raise InputError(f"{path}, line {number} must be a mapping, got {shortened(records[-1])}")
    return records
