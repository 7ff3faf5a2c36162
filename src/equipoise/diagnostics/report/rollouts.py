"""The rollouts a page shows in full: a bounded sample, chosen so that it holds those that moved the entropy most."""

import math
from typing import Any

import numpy as np

from equipoise.diagnostics.previews import answer_of, beginning, ending, question_of
from equipoise.diagnostics.records import RecordFiles, RecordsError
from equipoise.diagnostics.report.rows import NEEDED, NO_VERSION, RowReader, Rows, row_groups
from equipoise.diagnostics.report.tokens import Segments

MOST_UPDATES = 24
MOST_TOKENS_OF_A_ROLLOUT = 1500
LEAST_COST = 20
"""Tokens that a shorter rollout counts for: it has a prompt and numbers of its own."""

PREVIEW_TOKENS, PREVIEW = 40, 60
"""Tokens of a completion that are looked at for a preview, and characters that question and answer have in it."""

SHOWN = ("token_id", "prompt", "old_logprob", "behavior_logprob")
"""Columns of a rollout on the page beside those that are summed."""


def sampled_rollouts(
    files: RecordFiles, segments: Segments, vocabulary: dict[str, int], *, token_budget: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Rollouts of at most about `token_budget` tokens, in the form the page reads.

    Of up to 24 evenly spaced updates, half are those with the greatest |sum of predicted changes|, half are chosen by
    chance, and those of them that are in another of these updates too come with their other uses.

    Args:
        files: the records.
        segments: where each rollout lies.
        vocabulary: text -> number, shared by all rollouts of a page; new texts are added.
        token_budget: tokens of all rollouts together; no rollout counts for less than `LEAST_COST`.
        seed: of the chance.
    """
    if not segments.pieces:
        return []
    table, rollout = _merged(segments.table())
    chosen = _chosen(table, token_budget, seed)
    wanted = np.isin(rollout, chosen)
    pieces = {name: values[wanted] for name, values in segments.table().items()}
    parts = _parts(files, pieces, rollout[wanted], vocabulary)
    texts = list(vocabulary)
    return [
        _rollout(parts[i], change=float(table["change"][i]), expanding=float(table["expanding"][i]), texts=texts)
        for i in chosen.tolist()
        if i in parts
    ]


def _parts(
    files: RecordFiles, pieces: dict[str, np.ndarray], number: np.ndarray, vocabulary: dict[str, int]
) -> dict[int, list[dict[str, Any]]]:
    """The rows of each rollout's pieces. A file may have been replaced since: a piece that is gone is passed over."""
    paths = {(file, group): path for file, group, path in row_groups(files)}
    parts: dict[int, list[dict[str, Any]]] = {}
    by_place: dict[tuple[int, int], list[int]] = {}
    for piece, place in enumerate(zip(pieces["file"].tolist(), pieces["row_group"].tolist(), strict=True)):
        by_place.setdefault(place, []).append(piece)
    with RowReader() as reader:
        for place in sorted(by_place):
            try:
                rows = reader.rows(paths[place], place[1], (*NEEDED, *SHOWN))
            except RecordsError:
                continue
            for piece in by_place[place]:
                start, end = int(pieces["start"][piece]), int(pieces["end"][piece])
                if end <= len(rows) and rows["update"][start] == pieces["update"][piece]:
                    parts.setdefault(int(number[piece]), []).append(_columns(rows, slice(start, end), vocabulary))
    return parts


def _merged(pieces: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rollouts from their pieces, and the number of the rollout of each piece."""
    count = len(pieces["update"])
    known = pieces["sample"] >= 0
    # A sample without a number cannot be found again: each of its pieces stands alone.
    sample = np.where(known, pieces["sample"], -1 - np.arange(count))
    _, first, rollout = np.unique(
        np.stack([pieces["update"].astype(np.int64), sample]), axis=1, return_index=True, return_inverse=True
    )
    rollout = rollout.reshape(-1)
    length = pieces["end"] - pieces["start"]
    sums = {"change": pieces["change"], "expanding": pieces["expanding"], "tokens": length}
    table = {name: np.bincount(rollout, weights=values, minlength=len(first)) for name, values in sums.items()}
    return table | {"update": pieces["update"][first], "sample": sample[first]}, rollout


def _chosen(table: dict[str, np.ndarray], token_budget: int, seed: int) -> np.ndarray:
    """Numbers of the chosen rollouts, by update."""
    updates = np.unique(table["update"])
    if len(updates) > MOST_UPDATES:
        updates = updates[np.linspace(0, len(updates) - 1, MOST_UPDATES).round().astype(int)]
    shown = np.minimum(table["tokens"], MOST_TOKENS_OF_A_ROLLOUT)
    shown = np.maximum(shown, LEAST_COST)
    budget = token_budget / len(updates)
    quota = max(int(budget / shown.mean()), 2)
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for update in updates:
        members = np.flatnonzero(table["update"] == update)
        moved = members[np.argsort(-np.abs(table["change"][members]), kind="stable")]
        most = _within(moved[: (quota + 1) // 2], shown, budget)
        rest = moved[len(most) :]
        again = rest[np.isin(table["sample"][rest], table["sample"][np.concatenate([np.zeros(0, int), *chosen])])]
        again = again[: quota // 4]
        others = np.setdiff1d(rest, again)
        spare = min(quota - len(most) - len(again), len(others))
        by_chance = np.concatenate([again, generator.choice(others, max(spare, 0), replace=False)])
        chosen.append(np.concatenate([most, _within(by_chance, shown, budget)]))
    return np.concatenate(chosen)


def _within(rollouts: np.ndarray, shown: np.ndarray, budget: float) -> np.ndarray:
    """The first of these rollouts, as many as the tokens of one update allow; one at least."""
    fitting = int((np.cumsum(shown[rollouts]) <= budget).sum())
    return rollouts[: max(fitting, 1)]


def _columns(rows: Rows, span: slice, vocabulary: dict[str, int]) -> dict[str, Any]:
    columns = {name: values[span] for name, values in rows.columns.items()}
    columns["weight"] = rows.weight[span]
    columns["token"] = np.array([vocabulary.setdefault(rows.texts[i], len(vocabulary)) for i in columns["token"]])
    return columns


def _rollout(parts: list[dict[str, Any]], change: float, expanding: float, texts: list[str]) -> dict[str, Any]:
    """One rollout for the page: short names, few digits, a single number where all tokens share it."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["position"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    tokens = len(order)
    columns = {name: values[:MOST_TOKENS_OF_A_ROLLOUT] for name, values in columns.items()}
    chosen, trained = columns["action_mask"], columns["loss_mask"]
    state = np.select([~chosen, ~trained, columns["clipped_low"], columns["clipped_high"]], [4, 3, 1, 2], 0)
    advantage = columns["advantage"]
    weight = columns["weight"]
    version = columns["policy_version"]
    prompts = [text for text in columns["prompt"] if text is not None]
    return {
        "update": int(columns["update"][0]),
        "sample": int(columns["sample"][0]),
        "group": int(columns["group"][0]),
        "reward": _shared(columns["reward"][:1]),
        "prompt": prompts[0] if prompts else None,
        "question": ending(question_of(prompts[0]), PREVIEW) if prompts else None,
        "answer": beginning(answer_of(texts[i] for i in columns["token"][:PREVIEW_TOKENS].tolist()), PREVIEW),
        "tokens": tokens,
        "change": _digits([change])[0],
        "expanding": _digits([expanding])[0],
        "version": _shared(np.where(version == NO_VERSION, np.nan, version)),
        "position": int(columns["position"][0]),
        "t": columns["token"].tolist(),
        "id": columns["token_id"].tolist(),
        "A": _shared(advantage),
        "w": _shared(weight),
        "lp": _digits(columns["logprob"]),
        "old": _unless_equal(columns["old_logprob"], columns["logprob"]),
        "mu": _unless_equal(columns["behavior_logprob"], columns["old_logprob"]),
        "H": _digits(columns["entropy"]),
        "P": _digits(columns["polarity"]),
        "r": _shared(columns["ratio"]),
        "c": _shared(state),
    }


def _shared(values: np.ndarray) -> Any:
    """One number where all are equal (None for NaN), else a list."""
    numbers = _digits(values)
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _unless_equal(values: np.ndarray, others: np.ndarray) -> list | None:
    """None where the page can take the other column."""
    return None if np.array_equal(values, others, equal_nan=True) else _digits(values)


def _digits(values: Any) -> list[float | int | None]:
    """Four significant digits; None for what JSON does not have."""
    numbers = np.asarray(values, float).tolist()
    return [None if not math.isfinite(v) else int(v) if v == int(v) else float(f"{v:.4g}") for v in numbers]
