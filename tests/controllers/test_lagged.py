"""Bounds from the update before: skipped where nothing was learnt, and the same after an interruption."""

import json

import pytest
import torch

from equipoise import BoundGrid, ClipBounds, contribution, select_bounds
from equipoise.controllers import LaggedBounds

GRID = BoundGrid()
RATIO = torch.tensor([0.50, 0.70, 0.85, 1.00, 1.10, 1.30, 1.70, 2.50, 0.65, 0.95])
ADVANTAGE = torch.tensor([-1.0, -1, -1, 1, -1, 1, 1, 1, -1, -1])
MASK = torch.ones(10, dtype=torch.bool)
STALE = contribution(RATIO, ADVANTAGE, MASK, GRID)


def test_the_start_until_something_was_seen_then_what_it_would_have_chosen():
    lagged = LaggedBounds(GRID, target_share=0.5)
    assert lagged.selection.bounds == ClipBounds(0.6, 1.2)
    lagged.observe(STALE)
    assert lagged.selection == select_bounds(STALE, GRID, target_share=0.5)
    assert lagged.selection.bounds == ClipBounds(0.6, 2.55)


def test_an_update_on_policy_says_nothing():
    lagged = LaggedBounds(GRID, target_share=0.5)
    lagged.observe(STALE)
    lagged.observe(contribution(torch.ones(10), ADVANTAGE, MASK, GRID))
    assert lagged.selection.bounds == ClipBounds(0.6, 2.55)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.99])
def test_state_goes_through_json(target):
    lagged, resumed = (LaggedBounds(GRID, target_share=target) for _ in range(2))
    lagged.observe(STALE)
    resumed.load_state_dict(json.loads(json.dumps(lagged.state_dict())))
    assert resumed.selection.bounds == lagged.selection.bounds
    assert (resumed.selection.steps, resumed.selection.exhausted) == (
        lagged.selection.steps,
        lagged.selection.exhausted,
    )


@pytest.mark.parametrize("steps", [-1, 52])
def test_a_position_off_the_grid_is_refused(steps):
    with pytest.raises(ValueError, match="steps must be a position on the grid"):
        LaggedBounds(GRID, target_share=0.5).load_state_dict({"steps": steps, "exhausted": False})
