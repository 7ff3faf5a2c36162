"""Reading run folders back, without the trainer that wrote them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from equipoise.diagnostics.log_lines import LeftOut, evaluation_line, metric_line, usable_lines
from equipoise.diagnostics.metric_names import OURS, of_verls_log, translated
from equipoise.diagnostics.run_folder import EVALUATION_FILE, METRICS_FILE
from equipoise.errors import InputError


@dataclass(frozen=True)
class RunRecord:
    """What a run measured.

    Attributes:
        name: of the folder.
        metrics: one mapping per logged update, in order, with our names of a host's metrics (`metric_names`).
        evaluations: one mapping per evaluation on held-out data, in order.
        left_out: one line for each kind of thing that could not be read: file, line, rule and value.
    """

    name: str
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    left_out: list[str] = field(default_factory=list)

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


def read_run(folder: str | Path, *, leave_out: bool = False) -> RunRecord:
    """The record of a run folder.

    Args:
        folder: of the run.
        leave_out: what cannot be read is left out, and named in `RunRecord.left_out`, in place of an error.

    Raises:
        InputError: the folder holds no metrics; without `leave_out` also a line of its files that cannot be used, with
            its number.
    """
    folder, left_out = Path(folder), LeftOut(strict=not leave_out)
    if not os.path.lexists(folder / METRICS_FILE):
        raise InputError(f"{folder} is no run folder: it has no {METRICS_FILE}")
    metrics = usable_lines(folder / METRICS_FILE, left_out, metric_line)
    evaluations = usable_lines(folder / EVALUATION_FILE, left_out, evaluation_line)
    return RunRecord(folder.name, [translated(line) for line in metrics], evaluations, left_out.notes)


def read_log(path: Path, *, leave_out: bool = False) -> RunRecord:
    """The record that a host's own log holds, a file of JSON lines: that of verl's file logger, or a metrics.jsonl.

    Args:
        path: of the file.
        leave_out: as in `read_run`.

    Raises:
        InputError: the file holds no scalars of equipoise; without `leave_out` also as in `read_run`.
    """
    left_out = LeftOut(strict=not leave_out)
    metrics = usable_lines(path, left_out, _log_line, merged=True)
    if not any(name.startswith(OURS) for line in metrics for name in line):
        reason = "".join(f" ({note})" for note in left_out.notes[:1])
        raise InputError(f"{path} has no scalars of equipoise: was the run started with it?{reason}")
    return RunRecord(path.stem, [translated(line) for line in metrics], [], left_out.notes)


def _log_line(line: dict[str, Any], place: str, left_out: LeftOut) -> dict[str, Any] | None:
    known = of_verls_log(line) or (line if "update" in line else None)
    if known is None:
        left_out.note(f"{place} is no line of metrics: it has neither step and data nor update", "no metrics")
        return None
    return metric_line(known, place, left_out)
