"""Everything a page shows, as plain data: what is aggregated, what is sampled, and what is missing."""

import datetime
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import equipoise
from equipoise.diagnostics.report import tokens as token_sums
from equipoise.diagnostics.report.curves import bands, evaluation_curves, groups_of, predicted_and_realised, run_curves
from equipoise.diagnostics.report.page_bounds import bounded_rollouts, bounded_text, bounded_texts, first_notes
from equipoise.diagnostics.report.rollouts import MOST_TOKENS_OF_A_ROLLOUT, sampled_rollouts
from equipoise.diagnostics.report.sources import NOT_A_SETTING, Source, read_sources
from equipoise.diagnostics.run_folder import CONFIG_FILE, RESOLVED_FILE
from equipoise.errors import shortened
from equipoise.inputs.yaml_text import Number

TOKEN_BUDGET = 60_000
"""Tokens of all rollouts that a page shows in full."""

TOP_TOKENS = 25

MOST_UPDATES = 1000
"""Updates of the token records that a page lists, evenly spaced."""

MOST_KEYS, LONGEST_KEY, LONGEST_VALUE = 500, 100, 300
"""Of the settings of a run: how many, and the characters of each on the page."""

MOST_OF_ENVIRONMENT = 60
"""Versions and facts of the machine of a run."""

Progress = Callable[[list], Iterator]


def report_data(folders: list[Path], *, title: str | None = None, progress: Progress = iter) -> dict[str, Any]:
    """The data of a report on these run folders.

    What a page shows is bounded, whatever the folders hold, and what is cut is said among the gaps.

    Raises:
        InputError: a folder that is no run.
    """
    sources = read_sources(folders)
    groups = groups_of(sources)
    curves = [run_curves(source) for source in sources]
    evaluations = [evaluation_curves(source) for source in sources]
    vocabulary: dict[str, int] = {}
    num_recorded = max(sum(bool(source.records.readable) for source in sources), 1)
    budget = TOKEN_BUDGET // num_recorded
    runs = []
    for source, run, evaluation in zip(sources, curves, evaluations, strict=True):
        runs.append(
            {
                "name": source.name,
                "folder": str(source.folder),
                "updates": int(source.record.metrics[-1]["update"]) if source.record.metrics else 0,
                "curves": run,
                "evaluation": evaluation,
                "predicted": predicted_and_realised(source),
                "records": _records(source, vocabulary, budget, progress),
            }
        )
        bounded_rollouts(runs[-1]["records"], 1 / num_recorded, source.gaps)
    settings = _settings(sources)
    for source, run in zip(sources, runs, strict=True):
        run["gaps"] = first_notes(source.gaps)
    for group in groups:
        members = group["runs"]
        group["bands"] = bands([curves[i] for i in members])
        group["evaluation"] = bands([evaluations[i] for i in members])
    return {
        "title": bounded_text(title or " · ".join(group["name"] for group in groups), LONGEST_VALUE),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": equipoise.__version__,
        "groups": groups,
        "runs": runs,
        "vocabulary": bounded_texts(list(vocabulary)),
        "settings": settings,
        "warnings": _warnings(sources),
        "edges": {
            "log_probability": token_sums.LOG_PROBABILITY.round(6).tolist(),
            "entropy": token_sums.ENTROPY.round(6).tolist(),
            "log_ratio": token_sums.LOG_RATIO.round(6).tolist(),
        },
    }


def _records(source: Source, vocabulary: dict[str, int], budget: int, progress: Progress) -> dict[str, Any] | None:
    if not source.records.num_rows:
        return None
    total = token_sums.totals(source.records, progress)
    source.gaps.extend(line.replace(f"{source.folder}/", "") for line in total.left_out)
    if not total.updates:
        return None
    updates = sorted(total.updates)
    if len(updates) > MOST_UPDATES:
        source.gaps.append(f"{MOST_UPDATES:,} of the {len(updates):,} updates with token records are listed")
        updates = [updates[i] for i in np.linspace(0, len(updates) - 1, MOST_UPDATES).round().astype(int)]
    rollouts = sampled_rollouts(source.records, total.segments, vocabulary, token_budget=budget)
    last_stale = max((i for i, row in enumerate(total.staleness) if row[0]), default=-1)
    return {
        "rows": source.records.num_rows,
        "tokens": total.num_tokens,
        "updates": [
            {"update": update}
            | dict(zip(token_sums.UPDATE_SUMS, (_short(v) for v in total.updates[update].tolist()), strict=True))
            for update in updates
        ],
        "map": {
            sign: {
                "change": [[_short(v) for v in row] for row in total.map_change[sign].tolist()],
                "count": total.map_count[sign].astype(int).tolist(),
            }
            for sign in ("positive", "negative")
        },
        "ratios": {sign: counts.astype(int).tolist() for sign, counts in total.ratios.items()},
        "staleness": [_spread(row) for row in total.staleness[: last_stale + 1].tolist()],
        "top": {
            branch: [{k: v if isinstance(v, str) else _short(v) for k, v in entry.items()} for entry in entries]
            for branch, entries in total.tokens.top(TOP_TOKENS).items()
        },
        "rollouts": rollouts,
        "first_tokens": MOST_TOKENS_OF_A_ROLLOUT,
        "all_rollouts": int(sum(total.updates[u][1] for u in total.updates)),
    }


def _spread(row: list[float]) -> dict[str, float | None]:
    """Tokens of one staleness, and the standard deviation of their log2 ratio."""
    count, log_ratio, square = row
    if not count:
        return {"tokens": 0, "spread": None}
    return {"tokens": int(count), "spread": _short(math.sqrt(max(square / count - (log_ratio / count) ** 2, 0)))}


def _settings(sources: list[Source]) -> dict[str, Any]:
    """Settings that differ between runs first, then all; how each run was made."""
    given = [_first_keys(source.given, CONFIG_FILE, source.gaps) for source in sources]
    resolved = [_first_keys(source.resolved, RESOLVED_FILE, source.gaps) for source in sources]
    in_force = [all_keys | own for all_keys, own in zip(resolved, given, strict=True)]
    keys = sorted(set().union(*in_force)) if in_force else []
    values = {key: [_text(run.get(key)) if run else None for run in in_force] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1 and key not in ("output_dir", "run_name")]
    first = [key for key in differing if key not in NOT_A_SETTING]
    return {
        "differing": {key: values[key] for key in first + [key for key in differing if key in NOT_A_SETTING]},
        "given": {key: values[key] for key in sorted(set().union(*given)) if key not in differing} if given else {},
        "in_force": {key: column for key, column in values.items() if len(set(column)) == 1},
        "environment": [_environment(source.environment) for source in sources],
    }


def _first_keys(settings: dict[str, Any], file: str, gaps: list[str]) -> dict[str, Any]:
    """As many keys as a page shows, each of a length that it shows."""
    if len(settings) > MOST_KEYS:
        gaps.append(f"{MOST_KEYS} of the {len(settings):,} keys of {file} are shown")
    return {bounded_text(key, LONGEST_KEY): value for key, value in list(settings.items())[:MOST_KEYS]}


def _environment(environment: dict[str, Any]) -> dict[str, str]:
    versions = environment.get("versions")
    names = ("seed", "device", "world_size", "threads", "machine", "python")
    shown = {name: environment[name] for name in names if name in environment}
    shown |= versions if isinstance(versions, dict) else {"versions": versions} if versions else {}
    return {bounded_text(k, LONGEST_KEY): _text(v) for k, v in list(shown.items())[:MOST_OF_ENVIRONMENT]}


def _text(value: Any) -> str:
    """A value as it is shown, of at most `LONGEST_VALUE` characters."""
    if value is None or isinstance(value, str | Number):
        return "—" if value is None else bounded_text(str(value), LONGEST_VALUE)
    return shortened(value, LONGEST_VALUE)


def _warnings(sources: list[Source]) -> list[str]:
    tasks: dict[str, list[str]] = {}
    for source in sources:
        tasks.setdefault(source.task or "a task that is not told", []).append(source.name)
    if len(tasks) < 2:
        return []
    told = bounded_text("; ".join(f"{', '.join(names)}: {task}" for task, names in tasks.items()), 2 * LONGEST_VALUE)
    return [f"These runs are of different tasks, their rewards and evaluations do not compare ({told})."]


def _short(value: float) -> float | int | None:
    """Five significant digits; None for what is not known."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
