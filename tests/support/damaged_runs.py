"""What a report makes of a run folder of any kind: data that fit into a page, and gaps that name what is missing."""

import json

from equipoise.diagnostics.report import report_data
from equipoise.diagnostics.report.page import embedded

MOST_PAGE = 30_000_000
"""Characters of a page of one hostile folder, with the library that draws it."""


def shown(folder):
    """The run of a report on one folder, which must also fit into a page."""
    data = report_data([folder])
    text = embedded(data)  # refuses NaN
    assert len(text) < MOST_PAGE
    assert "<" not in text
    text.encode()
    run = json.loads(text)["runs"][0]
    assert all("\n" not in gap and len(gap) <= 300 for gap in run["gaps"])
    return run


def gaps_of(folder):
    return "; ".join(shown(folder)["gaps"])
