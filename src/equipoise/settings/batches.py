"""The arithmetic of a rollout batch: micro-batches, updates, groups; and the rule that updates are whole.

Everything here is of one process; with several, completions and groups are as many times more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RolloutBatch:
    """How a rollout batch is cut into micro-batches and updates.

    Attributes:
        rows: completions of a micro-batch (`per_device_train_batch_size`).
        micro_batches: of a rollout batch (`steps_per_generation`).
        passes: over the rollout batch (`num_iterations`).
        accumulated: micro-batches of one update (`gradient_accumulation_steps`).
        group_size: completions of one prompt (`num_generations`).
    """

    rows: int
    micro_batches: int
    passes: int
    accumulated: int
    group_size: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RolloutBatch":
        """From keys by name, with the defaults of TRL where they are missing or None."""
        accumulated = values.get("gradient_accumulation_steps") or 1
        return cls(
            rows=values.get("per_device_train_batch_size") or 8,
            micro_batches=values.get("steps_per_generation") or accumulated,
            passes=values.get("num_iterations") or 1,
            accumulated=accumulated,
            group_size=values.get("num_generations") or 8,
        )

    @property
    def trained_micro_batches(self) -> int:
        """Micro-batches that are trained on per rollout batch, over all passes."""
        return self.micro_batches * self.passes

    @property
    def completions_per_update(self) -> int:
        """Of an optimizer update."""
        return self.rows * self.accumulated

    @property
    def completions(self) -> int:
        """Of a rollout batch."""
        return self.rows * self.micro_batches

    @property
    def groups(self) -> int:
        """Whole groups of a rollout batch."""
        return self.completions // self.group_size

    @property
    def updates(self) -> float:
        """Optimizer updates on one rollout batch: how stale its last one is."""
        return self.trained_micro_batches / self.accumulated

    def replayed_groups(self, fraction: float) -> int:
        """Stored groups of a rollout batch, once there are as many."""
        return math.floor(fraction * self.groups + 1e-9)

    def has_whole_updates(self, *, may_span: bool = False) -> bool:
        """Whether every update lies within a rollout batch; with `may_span`, or takes several whole ones."""
        rollout = self.trained_micro_batches
        return rollout % self.accumulated == 0 or (may_span and self.accumulated % rollout == 0)

    def require_whole_groups(self, needed_by: str) -> None:
        """Refuse groups that are spread over processes.

        Raises:
            ValueError: naming the keys, the rule and the values.
        """
        if self.completions % self.group_size:
            raise ValueError(
                f"{needed_by} needs whole groups on every process: num_generations={self.group_size} must divide "
                f"per_device_train_batch_size * steps_per_generation = {self.rows} * {self.micro_batches} = "
                f"{self.completions}"
            )

    def require_whole_updates(self, needed_by: str, *, may_span: bool = False, instead: str = "") -> None:
        """Refuse an update that begins in one rollout batch and ends in another.

        What looks at a whole update before its first backward pass needs all of its data then.

        Args:
            needed_by: what needs it, as the user wrote it.
            may_span: an update of several whole rollout batches is accepted as well.
            instead: what else could be done, after a semicolon.

        Raises:
            ValueError: naming the keys, the rule and the values.
        """
        if self.has_whole_updates(may_span=may_span):
            return
        raise ValueError(
            f"{needed_by} needs whole updates within a rollout batch: gradient_accumulation_steps={self.accumulated} "
            f"must divide steps_per_generation * num_iterations = {self.micro_batches} * {self.passes} = "
            f"{self.trained_micro_batches}"
            + (", or be a multiple of it" if may_span else "")
            + (f"; {instead}" if instead else "")
        )
