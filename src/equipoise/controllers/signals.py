"""Phase signals: what was measured so far -> phi in [-1, 1]. Settings and a pure function; the controller holds state.

phi > 0 favours tokens that expand the entropy, phi < 0 those that contract it, 0 is the base method. The paper
(arXiv 2605.11775, abstract) names "the empirical entropy trajectory" as the signal; all four forms are our reading.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from equipoise.errors import require


@dataclass(frozen=True)
class Trajectory:
    """What a signal may read: the state of a run after its newest update.

    Attributes:
        entropy: H~, moving average of the token-mean entropy of whole updates, nats.
        slow: the same with more weight on the past.
        reference: H_ref, nats.
        authority: b* of the newest update, the strength * phase at which its predicted net flow is 0.
        strength: largest deviation of a weight from 1.
        progress: fraction of the updates of the run that is done, in [0, 1].
    """

    entropy: float
    slow: float
    reference: float
    authority: float
    strength: float
    progress: float


@runtime_checkable
class PhaseSignal(Protocol):
    """A phase signal: frozen settings and one pure function."""

    closed_loop: ClassVar[bool]
    """Whether the signal follows the entropy, so that a weight too small to hold it is worth a warning."""

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest phase it can take."""
        ...

    def phase(self, trajectory: Trajectory) -> float:
        """phi in [-1, 1]."""
        ...


@dataclass(frozen=True)
class ReferenceSignal:
    """phi = clip((H_ref - H~) / (width H_ref), 0, 1); two-sided: from -1. Holds the entropy at a reference.

    Raises:
        ValueError: a width that is not > 0.
    """

    width: float = 0.25
    two_sided: bool = False
    closed_loop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require("width", self.width, "> 0 and finite", 0 < self.width < math.inf)

    @property
    def extremes(self) -> tuple[float, float]:
        """[-1, 1] two-sided, else [0, 1]."""
        return (-1.0 if self.two_sided else 0.0, 1.0)

    def phase(self, trajectory: Trajectory) -> float:
        """The relative gap between reference and smoothed entropy."""
        gap = (trajectory.reference - trajectory.entropy) / (self.width * trajectory.reference)
        return min(max(gap, self.extremes[0]), 1.0)


@dataclass(frozen=True)
class TrendSignal:
    """phi = clip((H_slow - H_fast) / (width H_slow), -1, 1): brakes a falling entropy and a rising one. No reference.

    H_fast is the smoothed entropy H~. A steady entropy has phase 0, however low it is.

    Raises:
        ValueError: a width that is not > 0.
    """

    width: float = 0.25
    closed_loop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require("width", self.width, "> 0 and finite", 0 < self.width < math.inf)

    @property
    def extremes(self) -> tuple[float, float]:
        """Both directions."""
        return (-1.0, 1.0)

    def phase(self, trajectory: Trajectory) -> float:
        """The relative gap between slow and fast average; 0 where there is no entropy left."""
        if trajectory.slow <= 0:
            return 0.0
        return _clipped((trajectory.slow - trajectory.entropy) / (self.width * trajectory.slow))


@dataclass(frozen=True)
class BalanceSignal:
    """phi = clip(b* / strength, -1, 1): the predicted net flow is zero wherever the strength suffices."""

    closed_loop: ClassVar[bool] = True

    @property
    def extremes(self) -> tuple[float, float]:
        """Both directions."""
        return (-1.0, 1.0)

    def phase(self, trajectory: Trajectory) -> float:
        """The phase that the measured flows ask for; 0 at strength 0."""
        return _clipped(trajectory.authority / trajectory.strength) if trajectory.strength > 0 else 0.0


@dataclass(frozen=True)
class ScheduleSignal:
    """phi by training progress alone (open loop): `phases` at equal distances from start to end, linear between them.

    One number is a constant phase.

    Raises:
        ValueError: no phase, or one outside [-1, 1].
    """

    phases: tuple[float, ...] = (1.0,)
    closed_loop: ClassVar[bool] = False

    def __post_init__(self) -> None:
        holds = bool(self.phases) and all(-1 <= phase <= 1 for phase in self.phases)
        require("phases", list(self.phases), "one or more numbers in [-1, 1]", holds)

    @property
    def extremes(self) -> tuple[float, float]:
        """Of the phases given."""
        return (min(self.phases), max(self.phases))

    def phase(self, trajectory: Trajectory) -> float:
        """The phase at this progress."""
        place = min(max(trajectory.progress, 0.0), 1.0) * (len(self.phases) - 1)
        before = math.floor(place)
        after = min(before + 1, len(self.phases) - 1)
        return self.phases[before] + (place - before) * (self.phases[after] - self.phases[before])


def _clipped(gap: float) -> float:
    return min(max(gap, -1.0), 1.0)
