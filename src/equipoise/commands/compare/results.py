"""What a study found, in numbers: a row per run, and tables of means and paired differences.

OUT/runs.csv  one row per run: final evaluation, entropy, gradient norms, ratio tails, bounds, error
OUT/table.md  per condition and over all of them: means, and paired differences to the baselines
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from equipoise.commands.compare.runs import is_finished
from equipoise.commands.compare.study import Study, StudyRun
from equipoise.diagnostics.metric_names import GRADIENT_NORM
from equipoise.diagnostics.paired import PairedDifference, paired_difference
from equipoise.diagnostics.runs import RunRecord, read_run
from equipoise.files import file_at_once
from equipoise.settings.run import EvaluationSettings

LAST_FRACTION = 1 / 8
"""Of a run's updates, over which what it ends with is averaged."""


def _end(curve: np.ndarray) -> float:
    return float(curve[-max(1, round(len(curve) * LAST_FRACTION)) :].mean())


TRAINING: dict[str, tuple[str, Callable[[np.ndarray], float]]] = {
    "entropy": ("equipoise/entropy", _end),
    "gradient norm": (GRADIENT_NORM, lambda x: float(np.median(x))),
    "largest gradient norm": (GRADIENT_NORM, lambda x: float(x.max())),
    "ratio tail": ("equipoise/ratio_tail_fraction", lambda x: float(x.mean())),
    "lower bound": ("equipoise/bounds_low", _end),
    "upper bound": ("equipoise/bounds_high", _end),
    "exhausted": ("equipoise/bounds_exhausted", lambda x: float(x.mean())),
}
"""Entropy and bounds are means over the last eighth of the updates, the gradient norm is the median and the maximum of
the run, the ratio tail (outside [0.5, 2]) and exhausted are means over it."""


def evaluation_measures(study: Study) -> tuple[str, ...]:
    """Of the final evaluation on held-out prompts: greedy, pass@k for every k of `evaluate_k`, distinct answers."""
    ks = sorted({k for run in study.runs for k in run.keys.get("evaluate_k", EvaluationSettings().evaluate_k)})
    return ("greedy", *(f"pass@{k}" for k in ks), f"distinct of {ks[-1]}")


def measures(study: Study) -> tuple[str, ...]:
    """All that is measured of a run of the study."""
    return (*evaluation_measures(study), *TRAINING)


@dataclass(frozen=True)
class Row:
    """What one run measured; NaN where it failed or has no such measure."""

    run: StudyRun
    values: dict[str, float]
    error: str


def rows_of(study: Study, output: Path, failures: dict[StudyRun, str] | None = None) -> list[Row]:
    """A row for every finished run and every failed one."""
    failures = failures or {}
    rows = []
    for run in study.runs:
        if is_finished(run, output):
            found = measures_of(read_run(run.folder(output)))
            rows.append(Row(run, {name: found.get(name, math.nan) for name in measures(study)}, ""))
        elif run in failures:
            rows.append(Row(run, dict.fromkeys(measures(study), math.nan), failures[run]))
    return rows


def measures_of(record: RunRecord) -> dict[str, float]:
    """All measures of a finished run."""
    final: dict[str, Any] = record.evaluations[-1] if record.evaluations else {}

    def estimate(value: dict[str, float] | None) -> float:
        return math.nan if value is None else value["mean"]

    values = {"greedy": estimate(final.get("greedy"))}
    values |= {f"pass@{k}": estimate(value) for k, value in final.get("pass_at", {}).items()}
    values |= {f"distinct of {k}": estimate(value) for k, value in final.get("distinct_correct_at", {}).items()}
    for name, (key, summary) in TRAINING.items():
        _, curve = record.curve(key)
        values[name] = summary(curve) if len(curve) else math.nan
    return values


def differences(
    rows: Sequence[Row], method: str, baseline: str, measure: str, conditions: Sequence[str]
) -> PairedDifference:
    """method - baseline, paired by seed; over several conditions each seed counts once, with its mean difference.

    A seed that lacks one of the runs is left out: a mean over other conditions would not be the same quantity.
    """
    values = {(r.run.condition, r.run.method, r.run.seed): r.values[measure] for r in rows}
    seeds = sorted({r.run.seed for r in rows})
    nan = math.nan
    a = [fmean(values.get((c, baseline, s), nan) for c in conditions) for s in seeds]
    b = [fmean(values.get((c, method, s), nan) for c in conditions) for s in seeds]
    return paired_difference(a, b)


def shared_conditions(study: Study) -> list[str]:
    """Conditions under which every method runs: those that can be averaged for a comparison with one setting."""
    ran = {(run.condition, run.method) for run in study.runs}
    return [c for c in study.conditions if all((c, m) in ran for m in study.methods)]


def write_rows(study: Study, rows: Sequence[Row], path: Path) -> None:
    """runs.csv, whole or not at all."""
    with file_at_once(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["condition", "method", "seed", *measures(study), "error"])
        for row in rows:
            numbers = [f"{row.values[m]:.6g}" if math.isfinite(row.values[m]) else "" for m in measures(study)]
            writer.writerow([row.run.condition, row.run.method, row.run.seed, *numbers, row.error])


def markdown(study: Study, rows: Sequence[Row], names: Sequence[str] | None = None) -> str:
    """The tables: one per condition, one over the conditions that all methods share; of all measures, or of `names`."""
    num_seeds = len({row.run.seed for row in rows})
    parts = [f"# {study.title}", f"Means over {num_seeds} seeds."]
    shown = [m for m in names or measures(study) if any(math.isfinite(r.values[m]) for r in rows)]
    for condition in study.conditions:
        methods = [m for m in study.methods if any((r.run.condition, r.run.method) == (condition, m) for r in rows)]
        if methods:
            parts += [f"## {condition}" if condition else "## Results", _means(rows, methods, shown, [condition])]
            if len(methods) > 1:
                parts.append(_paired(study, rows, methods, [condition]))
    shared = shared_conditions(study)
    if len(shared) > 1 and rows:
        parts += [f"## One setting over {', '.join(shared)}", _means(rows, study.methods, shown, shared)]
        parts.append(_paired(study, rows, study.methods, shared))
    failed = [row for row in rows if row.error]
    if failed:
        parts += ["## Runs that failed", "\n".join(f"- {r.run.folder(Path())}: {r.error}" for r in failed)]
    return "\n\n".join(parts) + "\n"


def _means(rows: Sequence[Row], methods: Sequence[str], names: Sequence[str], conditions: Sequence[str]) -> str:
    lines = [["method", *names, "runs"]]
    for method in methods:
        chosen = [r for r in rows if r.run.method == method and r.run.condition in conditions and not r.error]
        lines.append([method, *(_mean([r.values[m] for r in chosen]) for m in names), str(len(chosen))])
    return _table(lines)


def _paired(study: Study, rows: Sequence[Row], methods: Sequence[str], conditions: Sequence[str]) -> str:
    tables = []
    for baseline in study.baselines:
        if baseline not in methods:
            continue
        compared = evaluation_measures(study)
        lines = [[f"minus {baseline}", *compared]]
        for method in methods:
            if method != baseline:
                cells = [_difference(differences(rows, method, baseline, m, conditions)) for m in compared]
                lines.append([method, *cells])
        tables.append(_table(lines))
    return "Paired differences, mean [95% interval] (seeds in which it is higher):\n\n" + "\n\n".join(tables)


def _mean(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{fmean(finite):.3g}" if finite else "–"


def _difference(d: PairedDifference) -> str:
    if not d.num_pairs:
        return "–"
    interval = "" if math.isnan(d.low) else f" [{d.low:+.3f}, {d.high:+.3f}]"
    mark = "**" if d.low > 0 or d.high < 0 else ""
    return f"{mark}{d.mean:+.3f}{mark}{interval} ({d.num_positive}/{d.num_pairs})"


def _table(lines: list[list[str]]) -> str:
    head, *body = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))
