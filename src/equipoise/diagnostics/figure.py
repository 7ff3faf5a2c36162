"""One picture of what happened in a few runs: every panel shows all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.diagnostics.runs import RunRecord

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart with any kind of colour vision."""

SMOOTHING_UPDATES = 24


def comparison_figure(runs: Sequence[RunRecord], path: str | Path, *, title: str) -> None:
    """Reward, held-out pass@k, entropy, clip bounds, share of positive contributions and polarity flows, as a PNG.

    Thin lines are the logged values, thick ones their moving average over 24 updates; bands are 95% intervals over
    held-out prompts. Updates in which no bound changes anything (the first after a rollout) have no bounds to show.

    Args:
        runs: drawn in this order, each with its own colour.
        path: of the PNG.
        title: above the panels.
    """
    figure = Figure(figsize=(13, 7.4), layout="constrained", dpi=110)
    panels = figure.subplots(2, 3).ravel()
    drawings = (_reward, _pass_at_k, _entropy, _bounds, _share, _flows)
    for panel, draw in zip(panels, drawings, strict=True):
        for run, color in zip(runs, COLORS, strict=False):
            draw(panel, run, color)
        if draw is not _flows:
            panel.set_ylim(bottom=0)  # after all runs: it ends the automatic choice of the top
        panel.set_xlabel("update")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        # Between the bounds there is room; elsewhere matplotlib finds it.
        panel.legend(loc="center right" if draw is _bounds else "best", fontsize=8, framealpha=0.8, edgecolor="none")
    figure.suptitle(title)
    figure.savefig(path)


def _smoothed(values: np.ndarray) -> np.ndarray:
    window = min(SMOOTHING_UPDATES, len(values))
    if window == 0:
        return values
    counts = np.convolve(np.ones(len(values)), np.ones(window))[: len(values)]
    return np.convolve(values, np.ones(window))[: len(values)] / counts


def _line(panel: Axes, points: tuple[np.ndarray, np.ndarray], color: str, label: str | None, style: str = "-") -> None:
    updates, values = points
    panel.plot(updates, values, color=color, alpha=0.2, linewidth=0.6)
    panel.plot(updates, _smoothed(values), style, color=color, label=label, linewidth=1.8)


def _reward(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("reward of the rollouts")
    _line(panel, run.curve("equipoise/rollout_reward"), color, run.name)


def _pass_at_k(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("held-out pass@k")
    ks = sorted({int(k) for e in run.evaluations for k in e["pass_at"]})
    for k, style in zip(ks, ("-", "--", ":"), strict=False):
        updates, mean, low, high = run.evaluation_curve("pass_at", str(k))
        panel.plot(updates, mean, style, color=color, marker=".", label=f"{run.name}, pass@{k}")
        panel.fill_between(updates, low, high, color=color, alpha=0.12, linewidth=0)


def _entropy(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("entropy (nats per token)")
    _line(panel, run.curve("equipoise/entropy"), color, run.name)
    updates, reference = run.curve("equipoise/reference_entropy")
    if len(updates):
        panel.plot(updates, reference, ":", color=color, linewidth=1.2, label=f"{run.name}, reference")


def _bounds(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("clip bounds of the ratio")
    _line(panel, _active(run, "equipoise/bounds_high"), color, f"{run.name}, high")
    _line(panel, _active(run, "equipoise/bounds_low"), color, f"{run.name}, low", "--")


def _share(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("share of positive contributions")
    _line(panel, _active(run, "equipoise/share_gradient_after"), color, f"{run.name}, within its bounds")
    if any(m.get("equipoise/bounds_inactive") for m in run.metrics):
        before = _active(run, "equipoise/share_gradient_before")
        _line(panel, before, color, f"{run.name}, before the search", ":")


def _active(run: RunRecord, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The curve without the updates in which no bound changes anything."""
    updates, values = run.curve(key)
    inactive_updates, inactive = run.curve("equipoise/bounds_inactive")
    keep = ~np.isin(updates, inactive_updates[inactive == 1])
    return updates[keep], values[keep]


def _flows(panel: Axes, run: RunRecord, color: str) -> None:
    panel.set_title("polarity flow per token (up: expanding)")
    _line(panel, run.curve("equipoise/expanding_flow"), color, run.name)
    updates, contracting = run.curve("equipoise/contracting_flow")
    _line(panel, (updates, -contracting), color, None)
    panel.axhline(0, color="gray", linewidth=0.8)
