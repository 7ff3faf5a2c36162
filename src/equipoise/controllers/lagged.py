"""Clip bounds from the update before: what balanced clipping costs when it may cost nothing."""

import math
from typing import Any

from equipoise.balance import BoundGrid, BoundsSelection, Contribution, select_bounds
from equipoise.errors import require


class LaggedBounds:
    """The bounds that the previous update would have chosen for itself, from sums it has reduced anyway.

    Until something has been observed: the start of the grid. An update in which no bound changes anything (the first
    after a rollout) says nothing and is passed over.

    Args:
        grid: of the search.
        target_share: of the search, in (0, 1).
    """

    def __init__(self, grid: BoundGrid, *, target_share: float):
        self.grid, self.target_share = grid, target_share
        self.selection = BoundsSelection(
            grid.path_bounds(0), math.nan, math.nan, steps=0, exhausted=False, inactive=False
        )

    def observe(self, contribution: Contribution) -> None:
        """Take the contribution of a finished update, summed over its micro-batches and ranks."""
        selection = select_bounds(contribution, self.grid, target_share=self.target_share)
        if not selection.inactive:
            self.selection = selection

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {"steps": self.selection.steps, "exhausted": self.selection.exhausted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as if there had been no interruption.

        Raises:
            ValueError: a position that is not on this grid, or values of other types.
        """
        steps, exhausted = state["steps"], state["exhausted"]
        num_points = len(self.grid.low_points) + len(self.grid.high_points) - 1
        on_grid = type(steps) is int and 0 <= steps < num_points
        require("steps", steps, f"a position on the grid {self.grid}", on_grid)
        require("exhausted", exhausted, "true or false", isinstance(exhausted, bool))
        self.selection = BoundsSelection(
            self.grid.path_bounds(steps), math.nan, math.nan, steps=steps, exhausted=exhausted, inactive=False
        )
