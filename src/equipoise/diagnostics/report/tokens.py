"""What all token records of a run add up to, in one pass over their files; no more than a row group in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.diagnostics.records import RecordFiles, RecordsError
from equipoise.diagnostics.report.rows import RowReader, Rows, row_groups

LOG_PROBABILITY = np.linspace(-4, 0, 41)  # decimal: probabilities from 1e-4
ENTROPY = np.linspace(0, 3, 31)  # nats
LOG_RATIO = np.linspace(-2, 2, 81)  # binary: ratios from 1/4 to 4
MOST_STALENESS = 64

UPDATE_SUMS = (
    "tokens", "samples", "positive_samples", "negative_samples", "reward", "entropy", "ratio", "ratio_square",
    "clipped_low", "clipped_high", "expanding_positive", "expanding_negative", "contracting_positive",
    "contracting_negative", "reweighted_expanding", "reweighted_contracting", "probability",
)  # fmt: skip


@dataclass
class Segments:
    """The rollouts of all records: a rollout is the rows of one sample in one update, wherever they lie.

    Each piece is (file, row group, first row, end); `sums` of pieces are added up by `rollouts`.
    """

    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, rows: Rows, file: int, group: int) -> None:
        """Cut a row group where update or sample changes, or the position does not grow."""
        update, sample, position = rows["update"], rows["sample"], rows["position"]
        begins = np.flatnonzero(
            np.append(True, (np.diff(update) != 0) | (np.diff(sample) != 0) | (np.diff(position) <= 0))
        )
        change = rows.change.astype(np.float64)
        self.pieces.append(
            {
                "file": np.full(len(begins), file),
                "row_group": np.full(len(begins), group),
                "start": begins,
                "end": np.append(begins[1:], len(rows)),
                "update": update[begins],
                "sample": sample[begins],
                "change": np.add.reduceat(change, begins),
                "expanding": np.add.reduceat(np.maximum(change, 0), begins),
            }
        )

    def table(self) -> dict[str, np.ndarray]:
        """All pieces, column by column."""
        return {name: np.concatenate([piece[name] for piece in self.pieces]) for name in self.pieces[0]}


class Totals:
    """Sums over all token records of a run; a sum of a value that some token does not have is NaN.

    Attributes:
        left_out: one line for each thing in the files that could not be used.
    """

    def __init__(self):
        self.left_out: list[str] = []
        self.num_tokens = 0
        self.updates: dict[int, np.ndarray] = {}
        shape = (len(LOG_PROBABILITY) - 1, len(ENTROPY) - 1)
        self.map_change = {sign: np.zeros(shape) for sign in ("positive", "negative")}
        self.map_count = {sign: np.zeros(shape) for sign in ("positive", "negative")}
        self.ratios = {sign: np.zeros(len(LOG_RATIO) - 1) for sign in ("positive", "negative")}
        self.staleness = np.zeros((MOST_STALENESS + 1, 3))  # tokens, log ratio, its square
        self.tokens = _TokenTable()
        self.segments = Segments()

    def add(self, rows: Rows, file: int, group: int) -> None:
        """Add a row group."""
        if not len(rows):
            return
        self.segments.add(rows, file, group)
        chosen = rows["action_mask"]
        self.num_tokens += int(chosen.sum())
        self._add_updates(rows, chosen)
        self._add_map(rows)
        self._add_ratios(rows, chosen)
        self.tokens.add(rows, chosen)

    def _add_updates(self, rows: Rows, chosen: np.ndarray) -> None:
        updates, index = np.unique(rows["update"], return_inverse=True)
        change, advantage = rows.change, rows["advantage"]
        weight = rows.weight
        reweighted = change * weight
        first = rows["position"] == 0
        values = {
            "tokens": chosen,
            "samples": first,
            "positive_samples": first & (advantage > 0),
            "negative_samples": first & (advantage < 0),
            "reward": np.where(first, rows["reward"], 0),
            "entropy": np.where(chosen, rows["entropy"], 0),
            "ratio": np.where(chosen, rows["ratio"], 0),
            "ratio_square": np.where(chosen, rows["ratio"] ** 2, 0),
            "clipped_low": rows["clipped_low"],
            "clipped_high": rows["clipped_high"],
            "expanding_positive": np.where(advantage > 0, np.maximum(change, 0), 0),
            "expanding_negative": np.where(advantage < 0, np.maximum(change, 0), 0),
            "contracting_positive": np.where(advantage > 0, np.maximum(-change, 0), 0),
            "contracting_negative": np.where(advantage < 0, np.maximum(-change, 0), 0),
            "reweighted_expanding": np.maximum(reweighted, 0),
            "reweighted_contracting": np.maximum(-reweighted, 0),
            "probability": np.where(chosen, rows.probability, 0),
        }
        sums = np.stack([np.bincount(index, weights=values[name], minlength=len(updates)) for name in UPDATE_SUMS])
        for update, column in zip(updates.tolist(), sums.T, strict=True):
            self.updates[update] = self.updates.get(update, 0) + column

    def _add_map(self, rows: Rows) -> None:
        for sign, mask in (("positive", rows["advantage"] > 0), ("negative", rows["advantage"] < 0)):
            mask = mask & rows["loss_mask"] & np.isfinite(rows["logprob"]) & np.isfinite(rows["entropy"])
            x = np.clip(rows["logprob"][mask] / np.log(10), LOG_PROBABILITY[0], -1e-9)
            y = np.clip(rows["entropy"][mask], 0, ENTROPY[-1] - 1e-9)
            place = _bins(x, LOG_PROBABILITY) * (len(ENTROPY) - 1) + _bins(y, ENTROPY)
            shape, size = self.map_change[sign].shape, self.map_change[sign].size
            self.map_change[sign] += np.bincount(place, weights=rows.change[mask], minlength=size).reshape(shape)
            self.map_count[sign] += np.bincount(place, minlength=size).reshape(shape)

    def _add_ratios(self, rows: Rows, chosen: np.ndarray) -> None:
        log_ratio = np.log2(np.maximum(rows["ratio"], 1e-12))
        known = chosen & np.isfinite(log_ratio)
        for sign, mask in (("positive", rows["advantage"] > 0), ("negative", rows["advantage"] < 0)):
            inside = np.clip(log_ratio[mask & known], LOG_RATIO[0], LOG_RATIO[-1] - 1e-9)
            self.ratios[sign] += np.bincount(_bins(inside, LOG_RATIO), minlength=len(LOG_RATIO) - 1)
        stale = rows["update"] - 1 - rows["policy_version"]
        known &= stale >= 0  # a version that was not recorded is far in the future
        place = np.minimum(stale[known], MOST_STALENESS)
        for column, weights in enumerate((None, log_ratio[known], log_ratio[known] ** 2)):
            self.staleness[:, column] += np.bincount(place, weights=weights, minlength=MOST_STALENESS + 1)


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Index of the bin of each value; the edges are equally far apart."""
    return ((values - edges[0]) * ((len(edges) - 1) / (edges[-1] - edges[0]))).astype(np.int64)


class _TokenTable:
    """Sums by text of the token."""

    def __init__(self):
        self.places: dict[str, int] = {}
        self.sums = np.zeros((5, 0))  # count, change, |change|, entropy, probability

    def add(self, rows: Rows, chosen: np.ndarray) -> None:
        places = np.array([self.places.setdefault(t, len(self.places)) for t in rows.texts], dtype=np.int64)
        index = places[rows["token"]]
        size = len(self.places)
        if self.sums.shape[1] < size:
            self.sums = np.pad(self.sums, ((0, 0), (0, size - self.sums.shape[1])))
        values = (None, rows.change, np.abs(rows.change), rows["entropy"], rows.probability)
        for row, weights in enumerate(values):
            part = None if weights is None else weights[chosen]
            self.sums[row] += np.bincount(index[chosen], weights=part, minlength=size)

    def top(self, count: int) -> dict[str, list[dict[str, Any]]]:
        """The tokens with the greatest summed change in either direction."""
        if not self.places:
            return {"expanding": [], "contracting": []}
        texts, change = list(self.places), self.sums[1]
        order = np.argsort(change, kind="stable")
        both = {"contracting": order[:count], "expanding": order[::-1][:count]}
        signs = {"contracting": -1, "expanding": 1}
        return {
            branch: [self._entry(texts[i], i) for i in chosen.tolist() if change[i] * signs[branch] > 0]
            for branch, chosen in both.items()
        }

    def _entry(self, text: str, place: int) -> dict[str, Any]:
        count, change, moved, entropy, probability = self.sums[:, place].tolist()
        return {
            "text": text,
            "count": int(count),
            "change": change,
            "moved": moved,
            "entropy": entropy / max(count, 1),
            "probability": probability / max(count, 1),
        }


def totals(files: RecordFiles, progress: Callable[[list], Iterator] = iter) -> Totals:
    """The sums over all records of a run. A file that is damaged is left out from there on, and named.

    Args:
        files: to read.
        progress: wraps the list of row groups, to show how far it is.
    """
    result = Totals()
    damaged = set()
    with RowReader() as reader:
        for number, group, path in progress(row_groups(files)):
            if number in damaged:
                continue
            try:
                result.add(reader.rows(path, group), number, group)
            except RecordsError as error:
                damaged.add(number)
                result.left_out.append(f"{error}; the file is left out from there on")
        result.left_out += reader.left_out
    return result
