"""PAPO's closed loop: from the measured entropy to one weight per branch of polarity.

The paper (arXiv 2605.11775, abstract) uses the empirical entropy trajectory as an online phase signal to reallocate
the pressure between expanding and contracting updates. The form of the signal and its constants are our reading.
"""

import math
import warnings
from typing import Any

from equipoise.polarity import BranchWeights

SATURATION_PATIENCE = 20
"""Updates in a row that the demanded authority may exceed the strength before a warning is due."""


class PolarityController:
    """Holds the entropy at a reference by weighting expanding against contracting tokens: w± = 1 ± strength * phase.

    The phase is the reference gap of the smoothed entropy H~ (token mean over the whole update):

        phase = clip((H_ref - H~) / (width * H_ref), -1, 1)        two-sided
        phase = clip((H_ref - H~) / (width * H_ref),  0, 1)        one-sided (default): only ever favours expansion

    Zero during the warm-up. H_ref is fixed in nats, or a fraction of the mean entropy over the warm-up. The predicted
    flow is w+ P - w- N with P and N the expanding and contracting flow, so the entropy can be held only while
    strength * phase >= b* = (N - P) / (N + P): `demanded_authority`.

    Takes and gives plain numbers, once per optimizer update, from globally reduced sums. State goes through JSON.

    Args:
        strength: largest deviation of a weight from 1, in [0, 1).
        reference_entropy: H_ref in nats, > 0; None takes it from the warm-up.
        reference_fraction: H_ref as a fraction of the mean warm-up entropy, > 0; used when reference_entropy is None.
        width: relative gap at which the phase saturates, > 0.
        smoothing: weight of the past in the moving average of the entropy, in [0, 1).
        warmup_updates: updates observed with phase 0; at least 1 when the reference comes from the warm-up.
        two_sided: also favour contraction while the entropy is above the reference.

    Raises:
        ValueError: a setting outside its range, by name.
    """

    def __init__(
        self,
        *,
        strength: float = 0.5,
        reference_entropy: float | None = None,
        reference_fraction: float = 0.4,
        width: float = 0.25,
        smoothing: float = 0.9,
        warmup_updates: int = 5,
        two_sided: bool = False,
    ):
        _check("strength", strength, "in [0, 1)", 0 <= strength < 1)
        _check("width", width, "> 0", 0 < width < math.inf)
        _check("smoothing", smoothing, "in [0, 1)", 0 <= smoothing < 1)
        _check("warmup_updates", warmup_updates, ">= 0", warmup_updates >= 0)
        if reference_entropy is None:
            _check("reference_fraction", reference_fraction, "> 0", 0 < reference_fraction < math.inf)
            _check("warmup_updates", warmup_updates, ">= 1 when reference_entropy is not given", warmup_updates >= 1)
        else:
            _check("reference_entropy", reference_entropy, "> 0 nats", 0 < reference_entropy < math.inf)
        self.strength, self.width, self.smoothing = strength, width, smoothing
        self.reference_fraction, self.warmup_updates, self.two_sided = reference_fraction, warmup_updates, two_sided
        self._given_reference = reference_entropy
        self.reference_entropy = reference_entropy
        self.smoothed_entropy: float | None = None
        self.demanded_authority = 0.0
        self.num_updates = 0
        self._warmup_total = 0.0
        self._saturated_updates = 0

    @property
    def phase(self) -> float:
        """phi in [-1, 1], or [0, 1] one-sided; 0 during the warm-up."""
        if self.num_updates < max(self.warmup_updates, 1):
            return 0.0
        assert self.reference_entropy is not None and self.smoothed_entropy is not None
        gap = (self.reference_entropy - self.smoothed_entropy) / (self.width * self.reference_entropy)
        return min(max(gap, -1.0 if self.two_sided else 0.0), 1.0)

    @property
    def weights(self) -> BranchWeights:
        """w+ = 1 + strength * phase on expanding tokens, w- = 1 - strength * phase on contracting ones."""
        lean = self.strength * self.phase
        return BranchWeights.of_branches(1 + lean, 1 - lean)

    def observe(self, *, entropy: float, expanding_flow: float, contracting_flow: float) -> None:
        """Take in one finished update; the weights it leads to are those of the next.

        Args:
            entropy: token mean over the whole update, in nats.
            expanding_flow: P, sum of the positive predicted entropy changes of the update, before reweighting.
            contracting_flow: N, sum of the magnitudes of the negative ones.

        Raises:
            ValueError: a value that is not finite, or a negative flow.
        """
        for name, value in (("entropy", entropy), ("expanding_flow", expanding_flow)):
            _check(name, value, "finite and >= 0", 0 <= value < math.inf)
        _check("contracting_flow", contracting_flow, "finite and >= 0", 0 <= contracting_flow < math.inf)
        past = entropy if self.smoothed_entropy is None else self.smoothed_entropy
        self.smoothed_entropy = self.smoothing * past + (1 - self.smoothing) * entropy
        self.demanded_authority = balance_authority(expanding_flow, contracting_flow)
        self.num_updates += 1
        if self._given_reference is None and self.num_updates <= self.warmup_updates:
            self._warmup_total += entropy
            # A warm-up without any entropy leaves nothing to hold; the floor keeps the gap defined.
            mean = self._warmup_total / self.num_updates
            self.reference_entropy = max(self.reference_fraction * mean, 1e-12)
        self._watch_saturation()

    def _watch_saturation(self) -> None:
        short = abs(self.phase) >= 1 and self.demanded_authority * self.phase > self.strength
        self._saturated_updates = self._saturated_updates + 1 if short else 0
        if self._saturated_updates == SATURATION_PATIENCE:
            warnings.warn(
                f"polarity control is saturated: for {SATURATION_PATIENCE} updates holding the entropy has needed an "
                f"authority b* beyond the strength (now b*={self.demanded_authority:.3f}, strength={self.strength}). "
                f"Raise the strength, lower the learning rate, or accept another reference entropy.",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """All that `observe` changes, as plain JSON values."""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: keys missing or unknown.
        """
        if set(state) != set(self._STATE):
            raise ValueError(f"controller state must have the keys {sorted(self._STATE)}, got {sorted(state)}")
        for name, value in state.items():
            setattr(self, name, value)

    _STATE = (
        "reference_entropy",
        "smoothed_entropy",
        "demanded_authority",
        "num_updates",
        "_warmup_total",
        "_saturated_updates",
    )


def balance_authority(expanding_flow: float, contracting_flow: float) -> float:
    """b* = (N - P) / (N + P) in [-1, 1]: the strength * phase at which the predicted net flow is 0; 0 without flow."""
    total = expanding_flow + contracting_flow
    return (contracting_flow - expanding_flow) / total if total > 0 else 0.0


def _check(name: str, value: float, rule: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {name}={value}")
