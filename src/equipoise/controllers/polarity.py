"""PAPO's closed loop: from the measured entropy to one weight per quadrant of polarity.

The paper (arXiv 2605.11775, abstract) uses the empirical entropy trajectory as an online phase signal to reallocate
the pressure between expanding and contracting updates. The form of the signal and its constants are our reading.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any

from equipoise.controllers.signals import PhaseSignal, ReferenceSignal, Trajectory
from equipoise.errors import require
from equipoise.polarity import BranchWeights, balance_authority

logger = logging.getLogger("equipoise")

SATURATION_PATIENCE = 20
"""Updates in a row that the demanded authority may exceed what the weights can give before a warning is due."""

QUADRANTS = tuple(field.name for field in fields(BranchWeights))
"""Expanding or contracting token x sign of its advantage."""

Flows = dict[str, float]


class PolarityController:
    """One weight per quadrant of polarity, w = 1 ± strength * phase: + on expanding tokens, - on contracting ones.

    The phase comes from a signal (`equipoise.controllers.signals`); by default the gap between the smoothed entropy and
    a reference. It is zero during the warm-up and, when `release_after` < 1, in the last part of the run. Quadrants
    that are not acted on keep weight 1.

    With P and N the expanding and contracting flow, P' and N' their parts in the quadrants acted on, the predicted net
    flow is P - N + strength * phase * (P' + N'), so the entropy is held only while strength * phase reaches
    b* = (N - P) / (P' + N'): `demanded_authority`, the familiar (N - P) / (N + P) when all quadrants are acted on.

    Takes and gives plain numbers, once per optimizer update, from globally reduced sums. State goes through JSON.

    Args:
        signal: where the phase comes from; default `ReferenceSignal()`.
        strength: largest deviation of a weight from 1, >= 0. It may be 1 or more where no weight reaches 0 by it:
            on expanding quadrants under a signal that never asks for contraction, or with `weight_bounds`.
        quadrants: those that are acted on, names of `BranchWeights`; all by default, which is PAPO.
        weight_bounds: least and largest weight, 0 < least <= 1 <= largest; weights are clipped to them.
        reference_entropy: H_ref in nats, > 0; None takes it from the warm-up.
        reference_fraction: H_ref as a fraction of the mean warm-up entropy, > 0; used when reference_entropy is None.
        smoothing: weight of the past in the moving average of the entropy, in [0, 1).
        slow_smoothing: the same for the slow average of the trend signal, in (smoothing, 1).
        warmup_updates: updates observed with phase 0; at least 1 when the reference comes from the warm-up.
        release_after: fraction of the run after which the phase is 0, in (0, 1]; 1 is never.

    Raises:
        ValueError: a setting outside its range, by name.
    """

    def __init__(
        self,
        *,
        signal: PhaseSignal | None = None,
        strength: float = 0.5,
        quadrants: Collection[str] = QUADRANTS,
        weight_bounds: Sequence[float] | None = None,
        reference_entropy: float | None = None,
        reference_fraction: float = 0.6,
        smoothing: float = 0.9,
        slow_smoothing: float = 0.99,
        warmup_updates: int = 5,
        release_after: float = 1.0,
    ):
        self.signal: PhaseSignal = ReferenceSignal() if signal is None else signal
        require("strength", strength, ">= 0 and finite", 0 <= strength < math.inf)
        require("smoothing", smoothing, "in [0, 1)", 0 <= smoothing < 1)
        require("slow_smoothing", slow_smoothing, f"in (smoothing={smoothing}, 1)", smoothing < slow_smoothing < 1)
        require("warmup_updates", warmup_updates, ">= 0", warmup_updates >= 0)
        require("release_after", release_after, "in (0, 1]", 0 < release_after <= 1)
        if reference_entropy is not None:
            require("reference_entropy", reference_entropy, "> 0 nats and finite", 0 < reference_entropy < math.inf)
        else:
            require("reference_fraction", reference_fraction, "> 0 and finite", 0 < reference_fraction < math.inf)
            needed = isinstance(self.signal, ReferenceSignal)
            rule = ">= 1 when reference_entropy is not given"
            require("warmup_updates", warmup_updates, rule, warmup_updates >= 1 or not needed)
        self.strength, self.smoothing, self.slow_smoothing = strength, smoothing, slow_smoothing
        self.reference_fraction, self.warmup_updates = reference_fraction, warmup_updates
        self.release_after = release_after
        self.quadrants = _checked_quadrants(quadrants)
        self.weight_bounds = (-math.inf, math.inf) if weight_bounds is None else _checked_bounds(weight_bounds)
        self._check_reach()
        self._given_reference = reference_entropy
        self.reference_entropy = reference_entropy
        self.smoothed_entropy: float | None = None
        self.slow_entropy: float | None = None
        self.demanded_authority = 0.0
        self.progress = 0.0
        self.num_updates = 0
        self.saturated = False
        self._warmup_total = 0.0
        self._saturated_updates = 0

    def _check_reach(self) -> None:
        """No phase that the signal can take may weight a quadrant 0 or less."""
        for phase in self.signal.extremes:
            for name in self.quadrants:
                weight = self._weight(name, phase)
                if weight <= 0:
                    raise ValueError(
                        f"strength must leave every weight > 0, got strength={self.strength}, which brings "
                        f"{name} to {weight:g}; keep it below 1, or act on other quadrants"
                    )

    @property
    def phase(self) -> float:
        """phi in [-1, 1]; 0 during the warm-up and after the release."""
        released = self.release_after < 1 and self.progress >= self.release_after
        if released or self.num_updates < self.warmup_updates:
            return 0.0
        if self.smoothed_entropy is None or self.slow_entropy is None:
            # Nothing is measured yet: only a signal that measures nothing has a phase.
            return 0.0 if self.signal.closed_loop else self.signal.phase(self._trajectory(0.0, 0.0))
        return self.signal.phase(self._trajectory(self.smoothed_entropy, self.slow_entropy))

    def _trajectory(self, entropy: float, slow: float) -> Trajectory:
        reference = math.nan if self.reference_entropy is None else self.reference_entropy
        return Trajectory(entropy, slow, reference, self.demanded_authority, self.strength, self.progress)

    @property
    def weights(self) -> BranchWeights:
        """1 + strength * phase on the expanding quadrants acted on, 1 - strength * phase on the contracting ones."""
        phase = self.phase
        return BranchWeights(**{name: self._weight(name, phase) for name in self.quadrants})

    def _weight(self, quadrant: str, phase: float) -> float:
        lean = self.strength * phase * (1 if quadrant.startswith("expanding") else -1)
        return min(max(1 + lean, self.weight_bounds[0]), self.weight_bounds[1])

    def observe(
        self,
        *,
        entropy: float,
        expanding_flow: float,
        contracting_flow: float,
        expanding_positive_flow: float | None = None,
        contracting_positive_flow: float | None = None,
        progress: float = 0.0,
    ) -> None:
        """Take in one finished update; the weights it leads to are those of the next.

        Args:
            entropy: token mean over the whole update, in nats.
            expanding_flow: P, sum of the positive predicted entropy changes of the update, before reweighting.
            contracting_flow: N, sum of the magnitudes of the negative ones.
            expanding_positive_flow: the part of P with a positive advantage; needed only where the quadrants acted on
                split the expanding branch.
            contracting_positive_flow: the part of N with a positive advantage, likewise.
            progress: fraction of the run's updates that is now done, in [0, 1].

        Raises:
            ValueError: a value that is not finite, a negative flow, a part that is missing or larger than its whole.
        """
        for name, value in (("entropy", entropy), ("expanding_flow", expanding_flow)):
            require(name, value, "finite and >= 0", 0 <= value < math.inf)
        require("contracting_flow", contracting_flow, "finite and >= 0", 0 <= contracting_flow < math.inf)
        require("progress", progress, "in [0, 1]", 0 <= progress <= 1)
        flows = self._flows("expanding", expanding_flow, expanding_positive_flow)
        flows |= self._flows("contracting", contracting_flow, contracting_positive_flow)
        past = entropy if self.smoothed_entropy is None else self.smoothed_entropy
        self.smoothed_entropy = self.smoothing * past + (1 - self.smoothing) * entropy
        past = entropy if self.slow_entropy is None else self.slow_entropy
        self.slow_entropy = self.slow_smoothing * past + (1 - self.slow_smoothing) * entropy
        acted_on = sum(flows[name] for name in self.quadrants)
        self.demanded_authority = balance_authority(expanding_flow, contracting_flow, acted_on)
        self.progress = progress
        self.num_updates += 1
        if self._given_reference is None and self.num_updates <= self.warmup_updates:
            self._warmup_total += entropy
            # A warm-up without any entropy leaves nothing to hold; the floor keeps the gap defined.
            mean = self._warmup_total / self.num_updates
            self.reference_entropy = max(self.reference_fraction * mean, 1e-12)
        self._watch_saturation(flows)

    def _flows(self, branch: str, whole: float, positive: float | None) -> Flows:
        """The flow of a branch by the sign of the advantage; where both parts are treated alike, the split is moot."""
        acted_on = [name in self.quadrants for name in (f"{branch}_positive", f"{branch}_negative")]
        if positive is None and acted_on[0] != acted_on[1]:
            raise ValueError(f"{branch}_positive_flow is needed: the quadrants acted on split the {branch} branch")
        part = whole if positive is None else positive
        # Sums in float64 of the same terms in another order may differ in their last bits.
        holds = 0 <= part <= whole * (1 + 1e-9)
        require(f"{branch}_positive_flow", part, f"in [0, {branch}_flow={whole}]", holds)
        return {f"{branch}_positive": part, f"{branch}_negative": max(whole - part, 0.0)}

    def _watch_saturation(self, flows: Flows) -> None:
        phase = self.phase
        net = sum(
            flow * (self._weight(name, phase) if name in self.quadrants else 1.0) * (1 if "expanding" in name else -1)
            for name, flow in flows.items()
        )
        # At its end the phase can do no more, and still the predicted flow goes the other way.
        self.saturated = self.signal.closed_loop and abs(phase) >= 1 and net * phase < 0
        self._saturated_updates = self._saturated_updates + 1 if self.saturated else 0
        if self._saturated_updates == SATURATION_PATIENCE:
            logger.warning(self._advice(phase))

    def _advice(self, phase: float) -> str:
        held = "raising" if phase > 0 else "lowering"
        reference = ("lower" if phase > 0 else "raise") + " the reference entropy"
        changes = ["raise the strength", "act on more quadrants"] if len(self.quadrants) < 4 else ["raise the strength"]
        changes += ["lower the learning rate"]
        changes += [reference] if isinstance(self.signal, ReferenceSignal) else []
        return (
            f"polarity control is saturated: for {SATURATION_PATIENCE} updates {held} the entropy has needed an "
            f"authority b* that its weights do not reach (now b*={self.demanded_authority:.3f}, "
            f"strength={self.strength}). Either {' or '.join(changes)}."
        )

    def state_dict(self) -> dict[str, Any]:
        """All that `observe` changes, as plain JSON values."""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: keys missing or unknown, or values that `state_dict` does not give.
        """
        if set(state) != set(self._STATE):
            raise ValueError(f"controller state must have the keys {sorted(self._STATE)}, got {sorted(state)}")
        for name, value in state.items():
            is_known = type(value) in self._STATE[name] and not (isinstance(value, float) and math.isnan(value))
            require(name, value, "as state_dict gives it", is_known)
        for name, value in state.items():
            setattr(self, name, value)

    _STATE: Mapping[str, tuple[type, ...]] = {
        "reference_entropy": (float, int, NoneType),
        "smoothed_entropy": (float, int, NoneType),
        "slow_entropy": (float, int, NoneType),
        "demanded_authority": (float, int),
        "progress": (float, int),
        "num_updates": (int,),
        "saturated": (bool,),
        "_warmup_total": (float, int),
        "_saturated_updates": (int,),
    }


def _checked_quadrants(quadrants: Collection[str]) -> tuple[str, ...]:
    unknown = [name for name in quadrants if name not in QUADRANTS]
    if isinstance(quadrants, str) or unknown or not quadrants or len(set(quadrants)) < len(quadrants):
        raise ValueError(f"quadrants must be one or more of {', '.join(QUADRANTS)}, each once, got {quadrants!r}")
    return tuple(quadrants)


def _checked_bounds(bounds: Sequence[float]) -> tuple[float, float]:
    holds = len(bounds) == 2 and 0 < bounds[0] <= 1 <= bounds[1] < math.inf
    require("weight_bounds", list(bounds), "two numbers [least, largest] with 0 < least <= 1 <= largest", holds)
    return (bounds[0], bounds[1])
