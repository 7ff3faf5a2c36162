"""From data to a single HTML file: script, style and data inside, nothing loaded from elsewhere."""

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from equipoise.diagnostics.report.data import Progress, report_data
from equipoise.errors import InputError
from equipoise.files import write_at_once, writing

_ASSETS = files("equipoise.diagnostics.report") / "assets"
SCRIPTS = ("base.js", "charts.js", "rollouts.js", "report.js")

_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What could end the script element, and halves of characters, which UTF-8 does not have."""


def write_report(
    folders: list[Path], output: Path, *, title: str | None = None, force: bool = False, progress: Progress = iter
) -> dict[str, Any]:
    """Write the report of run folders to a file; returns its data.

    The file appears when it is whole.

    Raises:
        InputError: a folder that is no run, records of a newer schema, an output that exists (without `force`) or that
            cannot be written.
    """
    check_output(output, force=force)
    data = report_data(folders, title=title, progress=progress)
    with writing(f"report {output}"):
        write_at_once(output, page(data))
    return data


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output before the work, not after it.

    Raises:
        InputError: it exists (without `force`), is a folder, or its folder is missing or cannot be written to.
    """
    if output.is_dir():
        raise InputError(f"report {output} cannot be written: it is a folder")
    if output.exists() and not force:
        raise InputError(f"report {output} exists; choose another -o, or overwrite it with --force")
    if not output.parent.is_dir():
        raise InputError(f"report {output} cannot be written: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"report {output} cannot be written: no permission in {output.parent}")


def page(data: dict[str, Any], *, refresh_seconds: float | None = None) -> str:
    """The HTML page of a report's data.

    Args:
        data: of `report_data`.
        refresh_seconds: how often the page asks its server for new data; None for a page that stands alone.
    """
    from plotly.offline import get_plotlyjs

    template = (_ASSETS / "report.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (_ASSETS / "report.css").read_text(encoding="utf-8"),
        "DATA": embedded(data),
        "REFRESH": json.dumps(refresh_seconds),
        "SCRIPTS": "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "PLOTLY": get_plotlyjs(),
    }
    # Cut at the marks once: what is put in may itself look like a mark.
    pieces = template.split("@@")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: no text of a token can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
