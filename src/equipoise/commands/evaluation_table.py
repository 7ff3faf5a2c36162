"""Evaluations of several models on several benchmarks as one table: on the terminal, as CSV and as Markdown."""

import csv
import io
from typing import Any

from rich import box
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
    table = Table(title=_caption(evaluations))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    labels = [f"{model} on {benchmark}" for model, benchmark, *_ in rows]
    _print(table, labels, headings[2:], [values for _, _, *values in rows], _caption(evaluations))


def print_compared(evaluations: dict[str, dict[str, Any]]) -> None:
    """Greedy, pass@k and distinct correct answers of models on the same prompts, intervals below, as narrow as that.

    Args:
        evaluations: model -> `Evaluation.as_dict()`.
    """
    first = next(iter(evaluations.values()))
    ks = list(dict.fromkeys(k for e in evaluations.values() for k in e["pass_at"]))
    headings = ["greedy", *(f"pass@{k}" for k in ks), f"distinct correct of {ks[-1]}"]
    rows = [[e["greedy"], *(e["pass_at"].get(k) for k in ks), e["distinct_correct_at"].get(ks[-1])]
            for e in evaluations.values()]  # fmt: skip
    caption = (
        f"{first['num_prompts']} held-out prompts with 95% intervals, {first['num_samples']} samples each at "
        f"temperature {first['temperature']:g}"
    )
    table = Table(title=caption, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in headings:
        table.add_column(heading.replace("distinct ", "distinct\n"), justify="right")
    for name, row in zip(evaluations, rows, strict=True):
        table.add_row(name, *(_interval(estimate, "\n") for estimate in row))
    _print(table, list(evaluations), headings, [[_interval(e, " ") for e in row] for row in rows], caption)


def _interval(estimate: dict[str, float] | None, between: str) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['mean']:.3f}{between}[{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _print(table: Table, labels: list[str], headings: list[str], rows: list[list[str]], caption: str) -> None:
    """The table if it fits, else what it says as a list for each of its rows."""
    console = Console(width=None if Console().is_terminal else PIPED_WIDTH)
    table.title, title = None, table.title  # which may be folded
    wanted = console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum
    table.title = title
    if wanted <= console.width:
        console.print(table)
        return
    for label, values in zip(labels, rows, strict=True):
        console.print(label, markup=False, highlight=False)
        numbers = Table.grid(padding=(0, 0, 0, 2))
        for heading, value in zip(headings, values, strict=True):
            numbers.add_row(heading, value)
        console.print(numbers)
    console.print(caption, markup=False, highlight=False)


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
