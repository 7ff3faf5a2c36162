"""How much of what others wrote a page shows, so that no run folder makes one that is too large to open."""

from collections.abc import Sequence
from typing import Any

MOST_TEXT = 5_000_000
"""Characters of the page that the texts of all tokens take, and again the prompts of all rollouts."""

MOST_NOTES, LONGEST_NOTE = 40, 300
"""Gaps of a run that are told."""

_ESCAPED = 6
"""Characters of the page for one that is written as \\uXXXX."""


def bounded_text(text: str, limit: int) -> str:
    """The text, or its beginning and a mark; at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def bounded_texts(texts: Sequence[str], most: int = MOST_TEXT) -> list[str]:
    """Texts that take no more than `most` characters of a page together: all are cut at the length that suffices."""
    longest = max(map(len, texts), default=0)
    limit = longest
    while limit > 1 and _ESCAPED * sum(min(len(text), limit) for text in texts) > most and _taken(texts, limit) > most:
        limit = (limit + 1) // 2
    return list(texts) if limit == longest else [bounded_text(text, limit) for text in texts]


def _taken(texts: Sequence[str], limit: int) -> int:
    """Characters of a page that the beginnings of these texts take."""
    beginnings = (text[:limit] for text in texts)
    return sum(len(text) + (_ESCAPED - 1) * sum(c < " " or c in "<>&" or c > "~" for c in text) for text in beginnings)


def bounded_rollouts(records: dict[str, Any] | None, share: float, gaps: list[str]) -> None:
    """Cut the prompts of a run's rollouts to its share of `MOST_TEXT`, and say so."""
    if records is None:
        return
    prompts = [rollout["prompt"] or "" for rollout in records["rollouts"]]
    cut = bounded_texts(prompts, int(share * MOST_TEXT))
    if cut != prompts:
        gaps.append(f"prompts are cut to {max(map(len, cut)):,} characters")
    for rollout, prompt in zip(records["rollouts"], cut, strict=True):
        rollout["prompt"] = None if rollout["prompt"] is None else prompt


def first_notes(notes: Sequence[str]) -> list[str]:
    """As many notes as a page tells, each of a length that one reads."""
    shown = [bounded_text(note, LONGEST_NOTE) for note in notes[:MOST_NOTES]]
    return shown if len(notes) <= MOST_NOTES else [*shown, f"and {len(notes) - MOST_NOTES:,} more"]
