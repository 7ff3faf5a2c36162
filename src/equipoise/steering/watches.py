"""What is said aloud when a run goes nowhere: no advantage to learn from, or importance ratios that cannot be right."""

import logging

from equipoise.steering.measures import UpdateMeasures

logger = logging.getLogger("equipoise")

IDLE_UPDATES = 10
"""Updates in a row without any advantage before the warning is due."""

DEGENERATE_UPDATES = 3
"""Stale updates with ratios of 1 before the warning is due: a learning rate that starts at 0 makes one."""


class IdleWatch:
    """Counts updates in a row whose advantages are all zero, and says so once per such stretch."""

    def __init__(self) -> None:
        self.idle_updates = 0

    def observe(self, measures: UpdateMeasures, update: int) -> None:
        """Take in one finished update."""
        if not measures.num_tokens:  # every completion was truncated and masked: nothing is known of the rewards
            return
        self.idle_updates = 0 if measures.sums["nonzero_advantage"] else self.idle_updates + 1
        if self.idle_updates == IDLE_UPDATES:
            logger.warning(
                f"Update {update}: all advantages have been zero for {IDLE_UPDATES} updates: within every group the "
                f"responses have equal rewards, so there is nothing to learn. Check the reward, or take harder or "
                f"easier prompts or a larger num_generations."
            )


class RatioWatch:
    """Counts stale updates in which the policy seems not to have moved, and says so once per such stretch.

    Args:
        learning_rate: for the message.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate, self.degenerate_updates = learning_rate, 0

    def observe(self, measures: UpdateMeasures, update: int) -> None:
        """Take in one finished update."""
        if measures.sums["moved"] > 0:
            self.degenerate_updates = 0
        if not measures.degenerate:
            return
        self.degenerate_updates += 1
        if self.degenerate_updates == DEGENERATE_UPDATES:
            logger.warning(
                f"Update {update}: the data is {measures.mean('staleness'):g} updates old, but every importance ratio "
                f"is exactly 1. Either the policy does not move (learning_rate {self.learning_rate:g}), or behaviour "
                f"log-probs were replaced by the current policy's."
            )
