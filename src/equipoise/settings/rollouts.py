"""The keys of sample replay and partial rollouts."""

import math
from dataclasses import dataclass, field

from equipoise.errors import require
from equipoise.rollouts.replay import SAMPLING
from equipoise.settings.batches import RolloutBatch
from equipoise.settings.clipping import require_choice


@dataclass
class RolloutSettings:
    """Sample replay and partial rollouts."""

    replay_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the groups of a rollout batch that are stored ones, in [0, 1); 0: no replay."},
    )
    replay_capacity: int = field(default=256, metadata={"help": "Groups the replay buffer of a process holds."})
    replay_max_age: int | None = field(
        default=None,
        metadata={"help": "Updates after which a stored group is dropped; unset: those of four rollout batches."},
    )
    replay_sampling: str = field(
        default="uniform",
        metadata={
            "help": "How stored groups are drawn: 'uniform', 'age' (weight 1 / (1 + age)) or 'advantage' (mean |A|)."
        },
    )
    rollout_token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Tokens by which a completion may grow per rollout batch; a longer one is stored and continued by "
            "a later policy. Unset: completions are sampled whole."
        },
    )

    @property
    def off_policy(self) -> bool:
        """Whether rollouts go through a store: sample replay or partial rollouts."""
        return self.replay_fraction > 0 or self.rollout_token_budget is not None

    @property
    def off_policy_key(self) -> str:
        """The key that turned it on, for messages."""
        return "replay_fraction" if self.replay_fraction else "rollout_token_budget"

    def check_rollouts(self, batch: RolloutBatch) -> None:
        """Refuse values out of range and batches that cannot be replayed into; set `replay_max_age` where it is unset.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        require("replay_fraction", self.replay_fraction, "in [0, 1)", 0 <= self.replay_fraction < 1)
        require("replay_capacity", self.replay_capacity, ">= 1", self.replay_capacity >= 1)
        age, budget = self.replay_max_age, self.rollout_token_budget
        require("replay_max_age", age, ">= 1", age is None or age >= 1)
        require_choice("replay_sampling", self.replay_sampling, tuple(SAMPLING))
        require("rollout_token_budget", budget, ">= 1", budget is None or budget >= 1)
        if self.off_policy:
            batch.require_whole_groups(self.off_policy_key)
        if self.replay_fraction:
            self._check_replay(batch)

    def _check_replay(self, batch: RolloutBatch) -> None:
        if batch.groups < 2:
            raise ValueError(
                f"replay_fraction={self.replay_fraction} needs at least 2 groups per rollout batch on a process, got "
                f"{batch.groups}: raise per_device_train_batch_size or steps_per_generation"
            )
        if batch.replayed_groups(self.replay_fraction) < 1:
            raise ValueError(
                f"replay_fraction={self.replay_fraction} of the {batch.groups} groups of a rollout batch on a process "
                f"is less than one group: use at least {1 / batch.groups:.4g}, or more groups"
            )
        versions = max(1, math.ceil(batch.updates))  # by which the policy moves from one rollout batch to the next
        if self.replay_max_age is None:
            self.replay_max_age = 4 * versions
        if self.replay_max_age < versions:
            raise ValueError(
                f"replay_max_age={self.replay_max_age} would keep nothing: the policy moves by {versions} versions "
                f"(updates) from one rollout batch to the next"
            )
