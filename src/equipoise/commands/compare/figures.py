"""What a study found, in pictures.

OUT/differences-BASELINE.png  paired differences to a baseline with their intervals
OUT/conditions.png            every measure against the condition
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.commands.compare.results import Row, differences, evaluation_measures, measures, shared_conditions
from equipoise.commands.compare.study import Study
from equipoise.diagnostics.figure import COLORS

MARKERS = "osD^vPX*<>hp"


def differences_figure(study: Study, rows: Sequence[Row], path: Path, *, baseline: str) -> None:
    """One panel per measure and condition: each method minus the baseline, paired by seed, with 95% intervals.

    The last column is one setting over all conditions that every method ran under. Nothing is drawn where the baseline
    ran alone.
    """
    methods = [m for m in study.methods if m != baseline]
    ran = {(run.condition, run.method) for run in study.runs}
    conditions: list[tuple[str, list[str]]] = [
        (c, [c]) for c in study.conditions if (c, baseline) in ran and any((c, m) in ran for m in methods)
    ]
    if not conditions:
        return
    if len(shared_conditions(study)) > 1:
        conditions.append(("all that every method ran under", shared_conditions(study)))
    shown = [m for m in methods if any((c, m) in ran for _, chosen in conditions for c in chosen)]
    cells = [(measure, title, chosen) for measure in evaluation_measures(study) for title, chosen in conditions]
    # Measures below each other; side by side where there is one condition.
    num_columns = len(conditions) if len(conditions) > 1 else len(cells)
    num_rows = len(cells) // num_columns
    size = (max(3.5 + 2.5 * num_columns, 10), 1.2 + (0.6 + 0.3 * len(shown)) * num_rows)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for panel, (measure, title, chosen) in zip(panels.ravel(), cells, strict=True):
        _intervals(panel, [differences(rows, m, baseline, measure, chosen) for m in shown])
        panel.set_title("\n".join([measure, *textwrap.wrap(title, 34)]), fontsize=9)
    for panel in panels[:, 0]:
        panel.set_yticks(range(len(shown)), [textwrap.fill(m, 40) for m in shown], fontsize=8)
    panels[0, 0].invert_yaxis()
    figure.suptitle(f"{study.title}: minus {baseline}, paired by seed, 95% intervals", fontsize=11)
    figure.savefig(path)


def _intervals(panel: Axes, found: Sequence) -> None:
    panel.axvline(0, color="gray", linewidth=0.8)
    for place, d in enumerate(found):
        color = COLORS[0] if d.low > 0 else COLORS[1] if d.high < 0 else "gray"
        panel.plot([d.low, d.high], [place, place], color=color, linewidth=1.6)
        panel.plot(d.mean, place, "o", color=color, markersize=4)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def conditions_figure(study: Study, rows: Sequence[Row], path: Path) -> None:
    """One panel per measure: the mean over seeds of every method against the condition, with its standard error."""
    shown = [m for m in measures(study) if any(np.isfinite(r.values[m]) for r in rows)]
    columns = 4
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(15, 3.3 * lines + 1), layout="constrained", dpi=110)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, measure in zip(panels, shown, strict=False):
        for number, method in enumerate(study.methods):
            _against_conditions(panel, study, rows, method, measure, number)
        panel.set_title(measure, fontsize=10)
        panel.set_xticks(range(len(study.conditions)), study.conditions, fontsize=7, rotation=20)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if "gradient" in measure and any(r.values[measure] > 0 for r in rows):
            panel.set_yscale("log")
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(study.title)
    figure.savefig(path)


def _against_conditions(panel: Axes, study: Study, rows: Sequence[Row], method: str, measure: str, number: int) -> None:
    points = []
    for place, condition in enumerate(study.conditions):
        chosen = [r.values[measure] for r in rows if (r.run.condition, r.run.method) == (condition, method)]
        finite = np.array([v for v in chosen if np.isfinite(v)])
        if len(finite):
            error = finite.std(ddof=1) / len(finite) ** 0.5 if len(finite) > 1 else 0.0
            # Methods side by side: intervals on one place would hide each other.
            points.append((place + 0.03 * (number - len(study.methods) / 2), finite.mean(), error))
    if points:
        x, mean, error = np.array(points).T
        color, style = COLORS[number % len(COLORS)], "-" if number < len(COLORS) else "--"
        panel.errorbar(
            x, mean, error, fmt=style, marker=MARKERS[number % len(MARKERS)], color=color, label=method,
            markersize=4, linewidth=1.2, elinewidth=0.8,
        )  # fmt: skip
