"""One optimizer update in progress: what is in force, and what its micro-batches add up to, reduced once."""

from collections.abc import Callable

import torch
from torch import Tensor

from equipoise.balance import BoundGrid, BoundsSearch, BoundsSelection, Contribution, Measure
from equipoise.polarity import BranchWeights
from equipoise.steering.measures import UpdateMeasures
from equipoise.steering.micro_batch import SUMS, MicroBatch
from equipoise.steering.staleness import STALENESS_BUCKETS
from equipoise.types import ClipBounds

UNCLIPPED = ClipBounds(1e-12, float("inf"))
CONTROLLED = "controlled_tokens"
"""The sum of the tokens that another method of entropy control has acted on."""


class Update:
    """One optimizer update in progress: its bounds and branch weights, and the sums measured so far.

    Args:
        number: optimizer updates before it.
        weights: branch weights, constant within the update; None without PAPO.
        grid: the grid the contributions are binned on; None when the loss has no bounds to measure shares at.
        measure: the measure that steers the search.
        selection: bounds that are known before the first micro-batch; None until they are found.
        needs_preview: all micro-batches must be seen (`Steering.preview`) before the first one is steered.
    """

    def __init__(
        self,
        number: int,
        weights: BranchWeights | None,
        grid: BoundGrid | None,
        measure: Measure,
        selection: BoundsSelection | BoundsSearch | None,
        *,
        needs_preview: bool = False,
    ):
        self.number, self.weights, self.grid, self.selection = number, weights, grid, selection
        self.measure: Measure = measure
        self.needs_preview = needs_preview
        self.marks: list[Tensor] = []  # of entropy_control, for the micro-batches that are still to come
        self._sums: Tensor | None = None
        self._contribution: Contribution | None = None

    @property
    def needs_search(self) -> bool:
        """Whether its bounds are still to be found."""
        return self.grid is not None and self.selection is None

    @property
    def bounds(self) -> ClipBounds:
        """The clip bounds in force."""
        return UNCLIPPED if self.selection is None else self.selection.bounds

    def add(self, micro_batch: MicroBatch, part: Contribution | None, controlled: Tensor | None = None) -> None:
        """Measure one micro-batch.

        Args:
            micro_batch: that is steered.
            part: its contribution on the grid, if there is one.
            controlled: tokens that another method of entropy control has acted on, as a number on the device.
        """
        sums = micro_batch.sums(self.bounds)
        controlled = sums.new_zeros(1) if controlled is None else controlled.double().view(1)
        sums = torch.cat([sums, controlled])
        self._sums = sums if self._sums is None else self._sums + sums
        if part is not None:
            self._contribution = part if self._contribution is None else self._contribution + part

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> UpdateMeasures:
        """The measures of the whole update: one call of `all_reduce`, one vector that is brought to the host."""
        assert self._sums is not None, "an update without micro-batches"
        parts = [self._sums] if self._contribution is None else [self._sums, self._contribution.vector]
        total = all_reduce(torch.cat(parts))
        found = [self.selection.vector] if isinstance(self.selection, BoundsSearch) else []
        host = torch.cat([total, *found]).cpu()
        total, search = host[: total.numel()], host[total.numel() :]
        sums, contributed = total[: self._sums.numel()], total[self._sums.numel() :]
        named, by_staleness, by_ratio, controlled = sums.tensor_split(
            [len(SUMS), len(SUMS) + len(STALENESS_BUCKETS), sums.numel() - 1]
        )
        return UpdateMeasures(
            dict(zip((*SUMS, CONTROLLED), [*named.tolist(), *controlled.tolist()], strict=True)),
            by_staleness,
            by_ratio,
            None if self._contribution is None else self._contribution.with_vector(contributed),
            self.selection.read(search) if isinstance(self.selection, BoundsSearch) else self.selection,
        )
