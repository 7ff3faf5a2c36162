"""The arithmetic of a rollout batch: micro-batches, updates, groups; and the rule that updates are whole."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutBatch:
    """How a rollout batch is cut into micro-batches and updates, on one process.

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
        return self.micro_batches * self.passes / self.accumulated

    def replayed_groups(self, fraction: float) -> int:
        """Stored groups of a rollout batch, once there are as many."""
        return math.floor(fraction * self.groups + 1e-9)

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
        rollout = self.micro_batches * self.passes
        if rollout % self.accumulated == 0 or (may_span and self.accumulated % rollout == 0):
            return
        raise ValueError(
            f"{needed_by} needs whole updates within a rollout batch: gradient_accumulation_steps={self.accumulated} "
            f"must divide steps_per_generation * num_iterations = {self.micro_batches} * {self.passes} = {rollout}"
            + (", or be a multiple of it" if may_span else "")
            + (f"; {instead}" if instead else "")
        )
