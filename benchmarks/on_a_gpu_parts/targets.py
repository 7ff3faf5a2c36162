"""What we aim at, beside what was measured. Nothing here is ever asserted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from on_a_gpu_parts import LIGER, OURS, PARTS, TRL

EVERYTHING, LAGGED = "balanced, papo, records", "balanced, papo, records, lagged"


class Target(NamedTuple):
    """A figure beside its target."""

    what: str
    aim: str
    figure: float
    met: bool


def targets(parts: dict[str, dict[str, Any]]) -> list[Target]:
    """Of all parts that have the figures."""
    versions = parts.get("head", {}).get("setting", {}).get("versions", {})
    liger = "Liger" if versions.get("nvidia-cutlass-dsl", "absent") != "absent" else "Liger without its Hopper kernels"
    found = list(of_head(rows(parts, "head"), liger))
    for name in ("step-0.5b", "step-1.5b"):
        found += of_step(name, rows(parts, name))
    return found


NEEDED = {
    "head": {"contender", "mode", "to_equipoise", "tokens", "hidden", "vocabulary"},
    "step": {"trainer", "micro_batches", "to_trl", "peak_to_trl", "own_syncs_in_micro_batch"},
}


def rows(parts: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Of a part; without those that an older script wrote in another form."""
    found = parts.get(name, {}).get("figures", {}).get("rows", [])
    return [row for row in found if NEEDED[PARTS[name].module] <= row.keys()]


def of_head(table: list[dict[str, Any]], liger: str) -> Iterator[Target]:
    for row in table:
        if (row["contender"], row["mode"]) == (LIGER, "trained") and row["to_equipoise"]:
            shape = f"({row['tokens']}, {row['hidden']}, {row['vocabulary']})"
            ratio = round(1 / row["to_equipoise"]["median"], 4)
            yield Target(f"{OURS} / {liger}, trained head, {shape}", "< 1", ratio, ratio < 1)


def of_step(part: str, table: list[dict[str, Any]]) -> Iterator[Target]:
    aims = {(EVERYTHING, 1): 1.02, (EVERYTHING, 4): 1.15, (LAGGED, 1): 1.02, (LAGGED, 4): 1.02}
    for row in table:
        name = f"{part}: {row['trainer']}, {row['micro_batches']} micro-batches"
        aim = aims.get((row["trainer"], row["micro_batches"]))
        if aim and row["to_trl"]:
            ratio = row["to_trl"]["median"]
            yield Target(f"{name}, time / {TRL}'s", f"≤ {aim}", ratio, ratio <= aim)
        if aim and row["peak_to_trl"]:
            # Two runs of one trainer differ by the allocator's rounding.
            peak = row["peak_to_trl"]
            yield Target(f"{name}, peak memory / {TRL}'s", "≤ 1.00", peak, peak < 1.005)
        if aim and row["own_syncs_in_micro_batch"] is not None:
            waits = row["own_syncs_in_micro_batch"]
            yield Target(f"{name}, our device waits inside micro-batches", "0", waits, waits == 0)
