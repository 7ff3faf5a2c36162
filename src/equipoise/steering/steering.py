"""The steering of optimizer updates: open, preview, steer, close; on plain tensors, for any host.

A host opens an update, lets it be steered micro-batch by micro-batch, and closes it before the optimizer steps:

    update = steering.open(step, moved=…, several=…)
    if update.needs_preview:
        steering.preview(update, [a MicroBatch without gradients for each that will come])
    for each micro-batch:
        steered = steering.steer(update, micro_batch)    # what the loss reads: bounds, advantages
    metrics = steering.close(update, progress=…)

Bounds and branch weights are constant within an update, and the same for any split of it into micro-batches and ranks.
No call but `close` waits for the device, and that once (a method of entropy control that selects tokens over the whole
update waits where it selects).
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from equipoise.balance import BoundGrid, BoundsSearch, BoundsSelection, Contribution, search_bounds
from equipoise.errors import InputError
from equipoise.polarity import BranchWeights, branch_only, entropy_polarity, reweight_by_polarity
from equipoise.settings.polarity import PolaritySettings
from equipoise.settings.steering import SteeringSettings
from equipoise.steering.measures import UpdateMeasures
from equipoise.steering.micro_batch import MicroBatch
from equipoise.steering.ranks import Ranks
from equipoise.steering.token_control import Steered, TokenControl
from equipoise.steering.update import CONTROLLED, Update
from equipoise.steering.watches import IdleWatch, RatioWatch
from equipoise.types import ClipBounds


class DivergedError(InputError):
    """The policy gives NaN or infinities: nothing that is trained further can be used."""


class Steering:
    """What steers the updates of a run, and the state that it keeps between them.

    Attributes:
        controller: PAPO's; None without.
        lagged_bounds: bounds from the update before; None where each has its own.
        token_control: another method of entropy control; None without.
        last_entropy: of the update before, nats; NaN before the first.

    Args:
        settings: of clipping, polarity and entropy control.
        fixed_bounds: of the host's clip, for `clipping="fixed"`; None for a loss that does not clip from both sides.
        ranks: that share an update.
        seed: of what is drawn.
        learning_rate: for messages.
    """

    def __init__(
        self,
        settings: SteeringSettings,
        *,
        fixed_bounds: ClipBounds | None,
        ranks: Ranks | None = None,
        seed: int = 0,
        learning_rate: float = math.nan,
    ):
        self.settings, self.fixed_bounds, self.learning_rate = settings, fixed_bounds, learning_rate
        self.ranks = Ranks() if ranks is None else ranks
        self.controller = settings.polarity_controller()
        self.lagged_bounds = settings.lagged_bounds()
        control = settings.token_control()
        self.token_control = None if control is None else TokenControl(control, self.ranks, seed)
        self.watches = (IdleWatch(), RatioWatch(learning_rate))
        self.last_entropy = math.nan

    def open(self, number: int, *, moved: bool, several: bool) -> Update:
        """The update that begins, with all that is known before its first forward pass.

        Args:
            number: optimizer updates before it.
            moved: the policy may differ from the one that sampled the data. If not, every ratio is 1 up to rounding,
                and no bound matters.
            several: it has more than one micro-batch on some rank.
        """
        weights = self.controller.weights if self.controller else None
        grid, selection = self._known_bounds(moved)
        control = self.token_control
        marks_ahead = control is not None and control.needs_preview
        searches = grid is not None and selection is None
        # The only micro-batch of an update tells all: its own forward pass comes before its backward pass.
        preview = several and (searches or marks_ahead)
        return Update(number, weights, grid, self.settings.measure, selection, needs_preview=preview)

    def _known_bounds(self, moved: bool) -> tuple[BoundGrid | None, BoundsSelection | None]:
        if self.settings.clipping == "fixed":
            if self.fixed_bounds is None:
                return None, None
            grid = BoundGrid.fixed(self.fixed_bounds)
            return grid, _start_of(grid, inactive=False)
        grid = self.settings.bound_grid()
        if not moved:
            return grid, _start_of(grid, inactive=True)
        return grid, None if self.lagged_bounds is None else self.lagged_bounds.selection

    def preview(self, update: Update, batches: Sequence[MicroBatch]) -> None:
        """Find what must be known over the whole update: bounds, and the marks of a method of entropy control.

        Args:
            update: `needs_preview`.
            batches: all micro-batches of this rank, measured without gradients.
        """
        if update.grid is not None and update.needs_search:
            first, *others = (batch.contribution(update.grid, update.measure) for batch in batches)
            update.selection = self._search(sum(others, start=first))
        if self.token_control is not None and self.token_control.needs_preview:
            update.marks = self.token_control.marks(batches, update.number)
        update.needs_preview = False

    def steer(self, update: Update, batch: MicroBatch) -> Steered:
        """Measure a micro-batch, and say what its loss has to read.

        Args:
            update: that is open.
            batch: the next of its micro-batches.

        Raises:
            RuntimeError: the update needs a preview and was given none: its bounds would be those of one micro-batch.
        """
        if update.needs_preview:
            raise RuntimeError("the update needs a preview of all its micro-batches first (Steering.preview)")
        part = None if update.grid is None else batch.contribution(update.grid, update.measure)
        if part is not None and update.needs_search:
            update.selection = self._search(part)
        advantage = advantage_by_polarity(self.settings, update.weights, batch)
        steered, controlled = Steered(update.bounds, advantage), None
        if self.token_control is not None:
            update.marks = update.marks or self.token_control.marks([batch], update.number)
            steered, controlled = self.token_control.steer(batch, advantage, update.marks.pop(0), update.bounds)
        update.add(batch, part, controlled)
        return steered

    def _search(self, local: Contribution) -> BoundsSearch:
        """The bounds that balance what this rank and the others contribute; one all-reduce."""
        whole = local.with_vector(self.ranks.all_reduce(local.vector))
        return search_bounds(whole, local.grid, target_share=self.settings.bapo_target_share)

    def close(self, update: Update, *, progress: float) -> dict[str, float]:
        """Reduce what was measured, let the controllers observe it, and give the scalars of the update by name.

        Args:
            update: all of whose micro-batches have been steered.
            progress: fraction of the run's updates that is done with this one, in [0, 1].

        Raises:
            DivergedError: on all ranks alike, before the optimizer steps: of a ratio, advantage or statistic that is
                not finite.
        """
        measures = update.reduce(self.ranks.all_reduce)
        if measures.sums["nonfinite"]:
            raise diverged(update.number, self.learning_rate)
        values = measures.metrics()
        if math.isfinite(change := measures.entropy - self.last_entropy):
            values["entropy_change"] = change
        self.last_entropy = measures.entropy
        if self.ranks.rank == 0:  # of what is the same on all, one speaks
            for watch in self.watches:
                watch.observe(measures, update.number + 1)
        if self.lagged_bounds is not None and measures.contribution is not None and measures.num_tokens:
            self.lagged_bounds.observe(measures.contribution)
        if self.controller is not None:
            values |= self._observed(measures, progress)
        if self.token_control is not None:
            touched, tokens = measures.sums[CONTROLLED], measures.num_tokens
            values["controlled_fraction"] = touched / tokens if tokens else 0.0
        return values

    def _observed(self, measures: UpdateMeasures, progress: float) -> dict[str, float]:
        """Phase and weights that were in force in the update; those of the next follow from observing it, here."""
        controller = self.controller
        assert controller is not None
        in_force = {"phase": controller.phase}
        in_force |= {f"weight_{name}": value for name, value in vars(controller.weights).items()}
        if measures.num_tokens:  # an update of truncated, masked completions says nothing about the entropy
            controller.observe(
                entropy=measures.entropy,
                expanding_flow=measures.expanding_flow,
                contracting_flow=measures.contracting_flow,
                expanding_positive_flow=measures.mean("expanding_positive_flow"),
                contracting_positive_flow=measures.mean("contracting_positive_flow"),
                progress=progress,
            )
        return in_force | {
            "reference_entropy": controller.reference_entropy or math.nan,
            "demanded_authority": controller.demanded_authority,
            "papo_saturated": float(controller.saturated),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the controllers, the same on every rank, as plain JSON values."""
        return {
            "polarity_controller": self.controller.state_dict() if self.controller else None,
            "lagged_bounds": self.lagged_bounds.state_dict() if self.lagged_bounds else None,
        }

    def load_state_dict(self, state: dict[str, Any], *, progress: float) -> None:
        """Continue exactly where `state_dict` was taken; a controller that had no state then begins anew.

        Args:
            state: of `state_dict`.
            progress: as of `close`; the length of the run may have changed since.
        """
        if self.controller is not None and state.get("polarity_controller") is not None:
            self.controller.load_state_dict(state["polarity_controller"])
            self.controller.progress = progress
        if self.lagged_bounds is not None and state.get("lagged_bounds") is not None:
            self.lagged_bounds.load_state_dict(state["lagged_bounds"])


def advantage_by_polarity(
    settings: PolaritySettings, weights: BranchWeights | None, batch: MicroBatch
) -> Float[Tensor, "batch time"]:
    """A': reweighted by PAPO, kept on one branch by the ablations, A itself when polarity is off. Detached."""
    if settings.polarity == "off":
        return batch.advantage
    polarity = entropy_polarity(batch.statistics, batch.advantage)
    if settings.polarity == "positive_only":
        return branch_only(batch.advantage, polarity, "positive")
    if settings.polarity == "negative_only":
        return branch_only(batch.advantage, polarity, "negative")
    assert weights is not None, "PAPO without a controller"
    return reweight_by_polarity(batch.advantage, polarity, weights, tendency_scale=settings.papo_tanh_scale)


def diverged(number: int, learning_rate: float) -> DivergedError:
    """The error of a run whose policy gives no finite probabilities any more.

    Args:
        number: optimizer updates before the one that failed.
        learning_rate: of the run.
    """
    return DivergedError(
        f"update {number + 1}: training has diverged, the policy gives probabilities that are not finite; start again "
        f"with a lower learning_rate (now {learning_rate})"
    )


def _start_of(grid: BoundGrid, *, inactive: bool) -> BoundsSelection:
    """The first point of the grid, without a search; shares are measured with the update."""
    return BoundsSelection(grid.path_bounds(0), math.nan, math.nan, steps=0, exhausted=False, inactive=inactive)
