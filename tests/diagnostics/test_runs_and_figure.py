"""Run folders read back, and the picture drawn from them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from equipoise.diagnostics.figure import comparison_figure
from equipoise.diagnostics.runs import read_run
from equipoise.errors import InputError


def write_run(folder, scale=1.0, balanced=False, updates=30):
    folder.mkdir()
    estimate = {"mean": 0.3 * scale, "low": 0.2 * scale, "high": 0.4 * scale}
    metrics = [
        {
            "update": i + 1,
            "equipoise/rollout_reward": scale * i / updates,
            "equipoise/entropy": scale * (1 - i / updates),
            "equipoise/bounds_low": 0.8,
            "equipoise/bounds_high": 1.2 + balanced * i / 10,
            "equipoise/bounds_inactive": float(balanced and i % 8 == 0),
            "equipoise/share_gradient_before": 0.4,
            "equipoise/share_gradient_after": 0.5,
            "equipoise/expanding_flow": 0.01 * scale,
            "equipoise/contracting_flow": 0.02 * scale,
            "equipoise/reference_entropy": 0.4 if balanced else None,
        }
        for i in range(updates)
    ]
    evaluations = [{"update": u, "greedy": estimate, "pass_at": {"1": estimate, "8": estimate}} for u in (0, updates)]
    for name, lines in (("metrics", metrics), ("evaluation", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_skip_what_was_not_measured(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    updates, values = run.curve("equipoise/entropy")
    assert updates.tolist() == list(range(1, 31))
    assert values[0] == 1.0
    assert [len(x) for x in run.curve("equipoise/reference_entropy")] == [0, 0]
    assert [x.tolist() for x in run.evaluation_curve("pass_at", "8")] == [[0, 30], [0.3, 0.3], [0.2, 0.2], [0.4, 0.4]]
    assert [len(x) for x in run.evaluation_curve("pass_at", "64")] == [0, 0, 0, 0]


def test_every_panel_shows_both_runs_whole(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path)))
    runs = [read_run(write_run(tmp_path / "plain")), read_run(write_run(tmp_path / "other", scale=3.0, balanced=True))]
    comparison_figure(runs, tmp_path / "picture.png", title="two runs")
    picture = imread(tmp_path / "picture.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 0
    panels = drawn[0].axes
    assert len(panels) == 6
    for panel in panels:
        colors = {line.get_color() for line in panel.get_lines()} - {"gray"}
        assert len(colors) == 2
        top = max(np.nanmax(line.get_ydata()) for line in panel.get_lines() if len(line.get_ydata()))
        assert panel.get_ylim()[1] >= top


def test_updates_in_which_no_bound_matters_have_no_bounds(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: drawn.append(self))
    comparison_figure([read_run(write_run(tmp_path / "a", balanced=True))], tmp_path / "p.png", title="")
    bounds = next(panel for panel in drawn[0].axes if "bounds" in panel.get_title())
    assert not {1, 9, 17, 25} & set(bounds.get_lines()[0].get_xdata())


def test_a_folder_that_is_no_run_and_a_broken_line_are_named(tmp_path):
    with pytest.raises(InputError, match="is no run folder: it has no metrics.jsonl"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "a", updates=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "equi')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 3 is no JSON"):
        read_run(folder)
