"""The lines of a run's metrics and evaluations as diagnostics use them, and a word on what they cannot use."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from equipoise.diagnostics.metric_names import HOSTS, OURS
from equipoise.errors import InputError, shortened
from equipoise.inputs.json_text import JsonError, json_lines

LARGEST = 1e38
"""Numbers beyond it, which float32 does not hold either, are taken for infinities: their squares and sums would be."""

MOST_UPDATES = 2**31
"""Above every number of an update."""

MOST_KS = 64
"""Estimates of one family in an evaluation: the k of pass@k."""

_READ = frozenset(name for names in HOSTS.values() for name in names.values())
_FAMILIES = ("pass_at", "distinct_correct_at")

Line = dict[str, Any]


class LeftOut:
    """What could not be used of a run's files: a note for each kind, with its first place and how many there were.

    Args:
        strict: refuse the first one in place of noting it.
    """

    def __init__(self, *, strict: bool = False):
        self.strict = strict
        self._notes: dict[str, list[Any]] = {}

    def note(self, text: str, kind: str | None = None) -> None:
        """Note one thing; `text` names file, line, rule and value, `kind` groups it with others.

        Raises:
            InputError: with `strict`.
        """
        if self.strict:
            raise InputError(text)
        self._notes.setdefault(kind or text, [text, 0])[1] += 1

    @property
    def notes(self) -> list[str]:
        """All notes, in order."""
        return [
            text if count == 1 else f"{text} (and {count - 1:,} more like it)" for text, count in self._notes.values()
        ]


def usable_lines(
    path: Path, left_out: LeftOut, usable: Callable[[Line, str, LeftOut], Line | None], *, merged: bool = False
) -> list[Line]:
    """The lines of a file by their updates, each as `usable` leaves it.

    Args:
        path: of the file; without one there are no lines.
        left_out: is told what is left out.
        usable: of an object and its place, for notes: the line that is kept, or None.
        merged: lines of one update are one line (a host may log an update in parts); else the later one counts, with a
            note.

    Raises:
        InputError: with a strict `left_out`.
    """
    kept: list[Line] = []
    try:
        for number, line in json_lines(path):
            place = f"{path}, line {number}"
            if isinstance(line, JsonError):
                left_out.note(f"{place} {line}", f"{path} no object")
                continue
            line = usable(line, place, left_out)
            if line is not None and _has_update(line, place, left_out):
                kept.append(line)
    except FileNotFoundError:
        pass
    except OSError as error:
        left_out.note(f"{path} cannot be read: {error.strerror or error}")
    return _in_order(kept, path, left_out, merged)


def _has_update(line: Line, place: str, left_out: LeftOut) -> bool:
    update = line.get("update")
    if isinstance(update, int) and not isinstance(update, bool) and 0 <= update < MOST_UPDATES:
        return True
    given = "none" if "update" not in line else shortened(update)
    left_out.note(f"{place}: update must be a whole number >= 0, got {given}", f"{place.rpartition(',')[0]} update")
    return False


def _in_order(lines: list[Line], path: Path, left_out: LeftOut, merged: bool) -> list[Line]:
    by_update: dict[int, Line] = {}
    last = -1
    for line in lines:
        update = line["update"]
        if update <= last and not merged:
            left_out.note(
                f"{path}: updates must grow from line to line, got {update} after {last}; they are put in order, and of"
                " two lines of one update the later one counts",
                f"{path} order",
            )
        by_update[update] = by_update.get(update, {}) | line if merged else line
        last = update
    return [by_update[update] for update in sorted(by_update)]


def metric_line(line: Line, place: str, left_out: LeftOut) -> Line:
    """A line of metrics with its numbers alone; null stays, which stands for what was not measured."""
    return {sys.intern(name): value for name, value in line.items() if _is_metric(name, value, place, left_out)}


def _is_metric(name: str, value: Any, place: str, left_out: LeftOut) -> bool:
    if value is None or name == "update":
        return True
    file = place.rpartition(",")[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        if name.startswith(OURS) or name in _READ:
            left_out.note(f"{place}: {name[:100]} must be a number, got {shortened(value)}", f"{file} number")
        return False
    if not abs(value) <= LARGEST:
        left_out.note(f"{place}: {name[:100]} must be finite, got {_size(value)}", f"{file} finite")
        return False
    return True


def _size(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"a number of {len(str(abs(value)))} digits"


def evaluation_line(line: Line, place: str, left_out: LeftOut) -> Line:
    """A line of evaluations with the estimates that are whole, {"greedy": …, "pass_at": {k: …}, …}; others are None."""
    kept = {name: value for name, value in line.items() if name not in ("greedy", *_FAMILIES)}
    if "greedy" in line:
        kept["greedy"] = _estimate(line["greedy"], f"{place}: greedy", left_out)
    for family in _FAMILIES:
        estimates = line.get(family)
        if estimates is None:
            continue
        if not isinstance(estimates, dict):
            left_out.note(f"{place}: {family} must be a mapping, got {shortened(estimates)}", family)
            continue
        kept[family] = {
            k: _estimate(e, f"{place}: {family}, {k}", left_out) for k, e in _of_k(estimates, place, left_out)
        }
    return kept


def _of_k(estimates: Line, place: str, left_out: LeftOut) -> list[tuple[str, Any]]:
    known = [(k, e) for k, e in estimates.items() if k.isascii() and k.isdecimal() and len(k) <= 6][:MOST_KS]
    if len(known) < len(estimates):
        left_out.note(
            f"{place}: the k of an estimate must be a whole number, at most {MOST_KS} of them are read, got "
            f"{shortened(list(estimates))}",
            "k",
        )
    return known


def _estimate(value: Any, place: str, left_out: LeftOut) -> dict[str, float] | None:
    """Mean and interval, all finite; None for what was not asked for."""
    if value is None:
        return None
    parts = [value.get(name) if isinstance(value, dict) else None for name in ("mean", "low", "high")]
    if all(_is_finite(part) for part in parts):
        return dict(zip(("mean", "low", "high"), map(float, parts), strict=True))  # pyright: ignore
    left_out.note(f"{place} must have finite numbers mean, low and high, got {shortened(value)}", "estimate")
    return None


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) <= LARGEST
    )
