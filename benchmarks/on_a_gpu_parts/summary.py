"""summary.md: a table per part, from whatever parts there are."""

from collections.abc import Callable
from typing import Any

from on_a_gpu_parts import PARTS
from on_a_gpu_parts.targets import targets


def summary(parts: dict[str, dict[str, Any]]) -> str:
    """The text.

    Args:
        parts: what the file of each part holds, by its name.
    """
    sections = ["# Figures of a GPU", *settings(parts), table_of_parts(parts), table_of_targets(parts)]
    for name in PARTS:
        figures = parts.get(name, {}).get("figures", {})
        if figures.get("rows") or figures.get("notes"):
            sections += [f"## {name}: {PARTS[name].what}", *of_part(name, figures)]
    return "\n\n".join(section for section in sections if section) + "\n"


def of_part(name: str, figures: dict[str, Any]) -> list[str]:
    module, rows = PARTS[name].module, figures.get("rows", [])
    own: Callable[[list[dict[str, Any]]], str] = {"head": of_head, "step": of_step}.get(module, plain)
    try:
        sections = [own(rows)] if rows else []
    except (KeyError, TypeError):  # rows of an older script: as they are
        sections = [plain(rows)]
    sections += [places(row) for row in rows if row.get("sync_places")]
    return [*sections, "\n".join(f"- {note}" for note in figures.get("notes", []))]


def settings(parts: dict[str, dict[str, Any]]) -> list[str]:
    """One paragraph for each setting that a part was measured in."""
    found: dict[str, list[str]] = {}
    for name, part in parts.items():
        if "setting" in part:
            found.setdefault(in_words(part["setting"]), []).append(name)
    return [f"{', '.join(names)}: {words}" for words, names in found.items()]


def in_words(setting: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    changes = {True: " with changes", False: "", None: " (whether there were changes is not known)"}[setting["dirty"]]
    driver = f", driver {setting['driver']}, CUDA {setting['cuda']}" if "driver" in setting else ""
    small = "; **tiny shapes, no figures of anything**" if setting["small"] else ""
    code = f"commit {setting['commit']}{changes}, sources {setting['sources']}"
    return f"{setting['device']}{driver}, Python {setting['python']}, {versions}; {code}{small}."


def table_of_parts(parts: dict[str, dict[str, Any]]) -> str:
    lines = ["| part | state | seconds | |", "|---|---|---|---|"]
    for name in PARTS:
        part = parts.get(name, {"state": "not run"})
        reason = " ".join(str(part.get("reason", "")).split())[:200].replace("|", "/")
        lines.append(f"| {name} | {part['state']} | {part.get('seconds', '')} | {reason} |")
    return "\n".join(lines)


def table_of_targets(parts: dict[str, dict[str, Any]]) -> str:
    lines = [f"| {t.what} | {t.aim} | {t.figure:g} | {'met' if t.met else 'not met'} |" for t in targets(parts)]
    small = any(part.get("setting", {}).get("small") for part in parts.values())
    heading = "## Targets (some shapes were tiny: those say nothing)" if small else "## Targets"
    return "\n".join([heading, "", "| | target | measured | |", "|---|---|---|---|", *lines]) if lines else ""


def of_head(rows: list[dict[str, Any]]) -> str:
    lines = ["| tokens, hidden, vocabulary | head | | ms | time / equipoise's | scratch MB | rounds |"]
    lines.append("|---|---|---|---|---|---|---|")
    order = {"trained": 0, "frozen": 1, "forward": 2}
    for row in sorted(rows, key=lambda r: (-r["hidden"], order[r["mode"]], r["milliseconds"]["median"])):
        shape = f"{row['tokens']}, {row['hidden']}, {row['vocabulary']}"
        cells = [shape, row["mode"], row["contender"], middle(row["milliseconds"]), middle(row["to_equipoise"])]
        lines.append(line([*cells, row["scratch_mb"], row["rounds"]]))
    return "\n".join(lines)


def of_step(rows: list[dict[str, Any]]) -> str:
    lines = ["| micro-batches | trainer | s / update | time / TRL's | peak MB | / TRL's | rollout s | device waits |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        waits = row["syncs_per_update"]
        shown = "" if waits is None else ", ".join(f"{phase} {count:g}" for phase, count in waits.items()) or "none"
        cells = [row["micro_batches"], row["trainer"], middle(row["seconds"]), middle(row["to_trl"]), row["peak_mb"]]
        lines.append(line([*cells, row["peak_to_trl"], middle(row["rollout_seconds"]), shown]))
    return "\n".join(lines)


def places(row: dict[str, Any]) -> str:
    """Where a trainer waits for the device."""
    found = "\n".join(f"- {place}" for place in row["sync_places"])
    return f"Waits per update of {row['trainer']}, {row['micro_batches']} micro-batches:\n\n{found}"


def plain(rows: list[dict[str, Any]]) -> str:
    """Rows as they are."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [line(names), "|" + "---|" * len(names)]
    return "\n".join([*lines, *(line([shown(row.get(name)) for name in names]) for row in rows)])


def shown(value: Any) -> Any:
    if isinstance(value, dict):
        return middle(value) if "median" in value else str(value)
    return f"{value:.4g}" if isinstance(value, float) else value


def middle(values: dict[str, float] | None) -> str:
    """Median, quartiles in brackets."""
    if not values:
        return ""
    return f"{values['median']:.4g} ({values['quartile_1']:.4g}–{values['quartile_3']:.4g})"


def line(cells: list[Any]) -> str:
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"
