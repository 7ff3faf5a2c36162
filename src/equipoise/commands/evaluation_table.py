"""Evaluations of several models on several benchmarks as one table: on the terminal, as CSV and as Markdown."""

import csv
import io
from typing import Any

from rich.console import Console
from rich.table import Table

Evaluations = dict[str, dict[str, dict[str, Any]]]
"""Model -> benchmark -> `Evaluation.as_dict()`."""

PIPED_WIDTH, UNLIMITED = 80, 10_000
"""Columns of what is no terminal, and so many that nothing is folded."""

INTERVALS = ("low", "high")


def table_rows(evaluations: Evaluations) -> list[dict[str, Any]]:
    """One row per model and benchmark; an estimate has two columns more, NAME_low and NAME_high.

    "avg@n" is the mean accuracy of n samples per prompt, which is the estimate of pass@1; pass@k is the unbiased
    estimate for k of the n samples (arXiv 2107.03374).
    """
    return [
        {"model": model, "benchmark": benchmark, "prompts": e["num_prompts"], "samples": e["num_samples"],
         "temperature": e["temperature"]} | _estimates(e) | _numbers(e)
        for model, benchmarks in evaluations.items()
        for benchmark, e in benchmarks.items()
    ]  # fmt: skip


def _estimates(e: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {"greedy": e["greedy"], f"avg@{e['num_samples']}": e["average"]}
    named |= {f"pass@{k}": estimate for k, estimate in e["pass_at"].items() if k != "1"}
    largest = max(e["distinct_correct_at"], key=int)
    named[f"distinct correct of {largest}"] = e["distinct_correct_at"][largest]
    columns = {}
    for name, estimate in named.items():
        columns[name] = None if estimate is None else estimate["mean"]
        columns |= {f"{name}_{end}": None if estimate is None else estimate[end] for end in INTERVALS}
    return columns


def _numbers(e: dict[str, Any]) -> dict[str, Any]:
    return {"entropy": e["mean_entropy"], "length": e["mean_length"], "truncated": e["truncated_fraction"]} | {
        f"verdict {name}": count for name, count in e["verdicts"].items()
    }


def as_csv(evaluations: Evaluations) -> str:
    """The rows with all their columns."""
    rows = table_rows(evaluations)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(evaluations: Evaluations) -> str:
    """The rows as people read them, intervals in brackets."""
    headings, rows = _shown(evaluations)
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)], *rows]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return f"{text}\n{_caption(evaluations)}\n"


def print_evaluations(evaluations: Evaluations) -> None:
    """The table on stdout; where it is too wide, in 80 columns or those of the terminal, every row as a list."""
    headings, rows = _shown(evaluations)
    console = Console(width=None if Console().is_terminal else PIPED_WIDTH)
    table = Table(title=_caption(evaluations))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum <= console.width:
        console.print(table)
        return
    for model, benchmark, *values in rows:
        console.print(f"{model} on {benchmark}", markup=False, highlight=False)
        numbers = Table.grid(padding=(0, 0, 0, 2))
        for heading, value in zip(headings[2:], values, strict=True):
            numbers.add_row(heading, value)
        console.print(numbers)
    console.print(_caption(evaluations), markup=False, highlight=False)


def _shown(evaluations: Evaluations) -> tuple[list[str], list[list[str]]]:
    rows = table_rows(evaluations)
    hidden = ("samples", "temperature")
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [n for n in names if n not in hidden and not n.endswith(("_low", "_high")) and not n.startswith("verdict ")]
    # Benchmarks may have been sampled differently often: the numbers of tokens come last all the same.
    last = ("entropy", "length", "truncated")
    names = [n for n in names if n not in last] + list(last)
    return names, [[_cell(row, name) for name in names] for row in rows]


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    if f"{name}_low" in row:
        return f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return f"{value:.1f}" if name == "length" else f"{value:.3f}"


def _caption(evaluations: Evaluations) -> str:
    e = next(e for benchmarks in evaluations.values() for e in benchmarks.values())
    return (
        f"{e['num_samples']} samples per prompt at temperature {e['temperature']:g}; 95% intervals over prompts; "
        f"entropy in nats per token"
    )
