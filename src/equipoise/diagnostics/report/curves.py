"""Curves over the updates: per run, and per group of seeds with mean and range."""

import math
from typing import Any

import numpy as np

from equipoise.diagnostics.metric_names import LEARNING_RATE
from equipoise.diagnostics.report.sources import Source

MOST_POINTS = 600
"""Longer curves are means over equal stretches of updates, so that the page stays small."""

METRICS = {
    "reward": "equipoise/rollout_reward",
    "entropy": "equipoise/entropy",
    "reference_entropy": "equipoise/reference_entropy",
    "bounds_low": "equipoise/bounds_low",
    "bounds_high": "equipoise/bounds_high",
    "share_before": "equipoise/share_gradient_before",
    "share_after": "equipoise/share_gradient_after",
    "expanding_flow": "equipoise/expanding_flow",
    "contracting_flow": "equipoise/contracting_flow",
    "balance_authority": "equipoise/balance_authority",
    "phase": "equipoise/phase",
    "weight_expanding": "equipoise/weight_expanding_positive",
    "clip_fraction_low": "equipoise/clip_fraction_low",
    "clip_fraction_high": "equipoise/clip_fraction_high",
    "ratio_std": "equipoise/ratio_std",
    "ratio_tail_fraction": "equipoise/ratio_tail_fraction",
    "staleness": "equipoise/staleness",
}
MOST_ESTIMATES = 40
"""Kinds of held-out estimates (greedy, pass@8, …) of a run."""

MOST_PAIRS = 2000
"""Updates of the scatter of predicted and realised changes, evenly spaced."""

WITHOUT_INACTIVE = {"bounds_low", "bounds_high", "share_before", "share_after"}
"""Curves that leave out updates in which no bound changes anything: the policy has not moved since the rollout."""


def groups_of(sources: list[Source]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but seed, model and place: {"name", "runs": [index, …]}, in the order given."""
    members: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        members.setdefault(source.settings_key, []).append(index)
    return [{"name": _group_name([sources[i].name for i in runs]), "runs": runs} for runs in members.values()]


def _group_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = names[0]
    while not all(name.startswith(start) for name in names):
        start = start[:-1]
    start = start.rstrip("-_./ ").removesuffix("seed").rstrip("-_./ ")
    return f"{start or names[0]} ({len(names)} seeds)"


def run_curves(source: Source) -> dict[str, dict[str, list]]:
    """Every curve of a run that has a finite value: name -> {"x": updates, "y": values}."""
    inactive_updates, inactive = source.record.curve("equipoise/bounds_inactive")
    idle = inactive_updates[inactive == 1]
    curves = {}
    for name, key in METRICS.items():
        x, y = source.record.curve(key)
        if name in WITHOUT_INACTIVE:
            keep = ~np.isin(x, idle)
            x, y = x[keep], y[keep]
        if len(x):
            x, y = thinned(x, y)
            curves[name] = {"x": _updates(x), "y": _numbers(y)}
    return curves


def thinned(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most `MOST_POINTS` points: means over stretches of equally many, at their mean update."""
    if len(columns[0]) <= MOST_POINTS:
        return columns
    parts = np.linspace(0, len(columns[0]), MOST_POINTS + 1).astype(int)
    counts = np.diff(parts)
    return tuple(np.add.reduceat(column, parts[:-1]) / counts for column in columns)


def evaluation_curves(source: Source) -> dict[str, dict[str, list]]:
    """Held-out estimates by name ("greedy", "pass@8", "distinct correct of 8"), with their 95% intervals."""
    paths: dict[tuple[str, ...], str] = {("greedy",): "greedy"}
    for evaluation in source.record.evaluations:
        for family, label in (("pass_at", "pass@{}"), ("distinct_correct_at", "distinct correct of {}")):
            for k in evaluation.get(family) or {}:
                if len(paths) < MOST_ESTIMATES:
                    paths[family, k] = label.format(k)
    curves = {}
    for path, label in paths.items():
        if label == "distinct correct of 1":
            continue  # that is pass@1
        x, mean, low, high = thinned(*source.record.evaluation_curve(*path))
        if len(x):
            curves[label] = {"x": _updates(x), "y": _numbers(mean), "low": _numbers(low), "high": _numbers(high)}
    return curves


def bands(curves: list[dict[str, dict[str, list]]]) -> dict[str, dict[str, list]]:
    """Mean, lowest and highest value over several runs, at the updates that all runs with this curve have."""
    result = {}
    for name in dict.fromkeys(name for run in curves for name in run):
        members = [run[name] for run in curves if name in run]
        shared = set.intersection(*(set(member["x"]) for member in members))
        if not shared:
            continue
        values = np.array([[y for x, y in zip(m["x"], m["y"], strict=True) if x in shared] for m in members])
        result[name] = {
            "x": sorted(shared),
            "y": _numbers(values.mean(axis=0)),
            "low": _numbers(values.min(axis=0)),
            "high": _numbers(values.max(axis=0)),
            "runs": len(members),
        }
    return result


def predicted_and_realised(source: Source) -> dict[str, Any] | None:
    """Predicted direction of every update against the change of the measured entropy to the next one.

    Predicted: learning rate x (w+ P - w- N), the net flow after reweighting in nats per token and unit step. Realised:
    H(u + 1) - H(u), each on the tokens of its own update: other samples, and other states when a new rollout batch
    begins. The optimizer's own scaling is in neither, so only shape and sign compare, not size.

    Returns:
        {"x": predicted, "y": realised, "update", "correlation", "same_sign"}, or None with fewer than 8 pairs.
    """
    rows = {int(m["update"]): m for m in source.record.metrics}
    pairs = []
    for update, row in rows.items():
        following = rows.get(update + 1)
        now, then = row.get("equipoise/entropy"), (following or {}).get("equipoise/entropy")
        expanding, contracting = row.get("equipoise/expanding_flow"), row.get("equipoise/contracting_flow")
        if now is None or then is None or expanding is None or contracting is None:
            continue
        plus, minus = _weight(row, "expanding"), _weight(row, "contracting")
        rate = row.get(LEARNING_RATE)
        net = (1.0 if rate is None else rate) * (plus * expanding - minus * contracting)
        pairs.append((update, net, then - now))
    if len(pairs) < 8:
        return None
    update, x, y = np.array(pairs, dtype=float).T
    shown = np.linspace(0, len(x) - 1, min(len(x), MOST_PAIRS)).round().astype(int)
    return {
        "update": _updates(update[shown]),
        "x": _numbers(x[shown]),
        "y": _numbers(y[shown]),
        "correlation": _correlation(x, y),
        "same_sign": float((np.sign(x) == np.sign(y)).mean()),
        "bins": _binned(x, y),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    with np.errstate(all="ignore"):  # of values so small that their squares vanish there is none
        correlation = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else math.nan
    return correlation if math.isfinite(correlation) else None


def _weight(row: dict[str, Any], branch: str) -> float:
    """The branch weight in force; the mean of both signs of the advantage where they differ."""
    weights = [row.get(f"equipoise/weight_{branch}_{sign}") for sign in ("positive", "negative")]
    known = [w for w in weights if w is not None]
    return sum(known) / len(known) if known else 1.0


def _binned(x: np.ndarray, y: np.ndarray, count: int = 10) -> dict[str, list]:
    """Means of y, with standard errors, in `count` bins of equally many x."""
    order = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(order, count) if len(part) > 1]
    error = [y[part].std(ddof=1) / math.sqrt(len(part)) for part in parts]
    return {
        "x": _numbers([x[part].mean() for part in parts]),
        "y": _numbers([y[part].mean() for part in parts]),
        "error": _numbers(error),
    }


def _updates(values: np.ndarray) -> list[float]:
    """Updates, and means of some, without losing which they are."""
    return [round(v, 3) for v in values.tolist()]


def _numbers(values: Any) -> list[float]:
    """Numbers with five significant digits: more cannot be seen."""
    return [float(f"{v:.5g}") for v in np.asarray(values, dtype=float)]
