"""`equipoise report`: one page of run folders, or the page of a run in progress."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from equipoise.diagnostics.report import serve, write_report
from equipoise.errors import InputError, require
from equipoise.progress import progress_bar


@dataclass(frozen=True)
class LiveOptions:
    """A run in progress."""

    live: bool = field(default=False, metadata={"help": "Serve the page on this machine instead, and keep it fresh."})
    port: int = field(default=8765, metadata={"help": "Of the server."})
    refresh: float = field(default=10.0, metadata={"help": "Seconds between two readings."})

    def __post_init__(self) -> None:
        require("--refresh", self.refresh, ">= 1 and <= 1e6", 1 <= self.refresh <= 1e6)
        require("--port", self.port, "in [0, 65535]", 0 <= self.port <= 65535)


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML file that opens without network: curves with bands over seeds, bounds, flows, distributions, and,
    of runs with record_tokens, every token coloured by what it did to the entropy.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN …", help_behavior_hint="")] = field(
        metadata={"help": "Run folders; seeds of equal settings are one band."}
    )
    output: Annotated[Path, arg(aliases=("-o",))] = field(default=Path("report.html"), metadata={"help": "The file."})
    title: str | None = field(default=None, metadata={"help": "Of the page; unset: the names of the runs."})
    force: bool = field(default=False, metadata={"help": "Overwrite the output."})
    live: LiveOptions = LiveOptions()

    def __post_init__(self) -> None:
        live, usual = self.live, LiveOptions()
        if live.live and self.force:
            raise InputError("--live writes no file: leave --force out")
        for name in ("port", "refresh"):
            if not live.live and getattr(live, name) != getattr(usual, name):
                raise InputError(f"--{name} is of the server: give --live too, or leave it out")


def report(options: ReportOptions) -> Path | None:
    """Write the page and return its path, or serve it until interrupted.

    Raises:
        InputError: a folder that is no run, or an output or port that cannot be used.
    """
    runs, live = list(options.runs), options.live
    if live.live:
        serve(runs, title=options.title, port=live.port, seconds=live.refresh)
        return None
    write_report(runs, options.output, title=options.title, force=options.force, progress=_progress)
    print(f"Done: {options.output}")
    return options.output


def _progress(row_groups: list) -> Iterator:
    with progress_bar("token records", len(row_groups), "block", shown=len(row_groups) >= 8) as bar:
        for group in row_groups:
            yield group
            bar.update()
