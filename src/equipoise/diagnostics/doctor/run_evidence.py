"""What a run left behind, as the checks of it read it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.diagnostics.runs import RunRecord

MIN_UPDATES = 4
"""Updates below which a share over updates says nothing."""


@dataclass(frozen=True)
class RunEvidence:
    """What a run left behind.

    Attributes:
        record: its metrics and evaluations.
        settings: every setting in force (resolved.yaml); empty when unknown.
    """

    record: RunRecord
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_balanced(self) -> bool:
        """Whether clipping was balanced; where no settings are known, by whether the bounds moved."""
        if "clipping" in self.settings:
            return self.settings["clipping"] == "balanced"
        return len(set(self.values("equipoise/bounds_high"))) > 1

    @property
    def has_papo(self) -> bool:
        """Whether a controller was at work; where no settings are known, by whether it logged a phase."""
        if "polarity" in self.settings:
            return self.settings["polarity"] == "papo"
        return len(self.values("equipoise/phase")) > 0

    def values(self, key: str) -> np.ndarray:
        """The logged, finite values of a metric, in order."""
        return self.record.curve(key)[1]

    def together(self, *keys: str) -> np.ndarray:
        """[updates, keys]: rows of the updates in which all of them were logged."""
        rows = [[m.get(key) for key in keys] for m in self.record.metrics]
        kept = [row for row in rows if None not in row]
        return np.array(kept, dtype=float).reshape(-1, len(keys))

    def late(self, key: str) -> np.ndarray:
        """The last quarter of a metric, at least `MIN_UPDATES` values: how the run is now."""
        values = self.values(key)
        return values[-max(len(values) // 4, MIN_UPDATES) :]
