"""The keys of the clip: fixed bounds of the host's, or BAPO's, searched anew for every update."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast, get_args

from equipoise.balance import BoundGrid, Measure
from equipoise.controllers import LaggedBounds
from equipoise.errors import require

CLIPPINGS = ("fixed", "balanced")
SCOPES = ("update", "lagged")
TOKEN_WEIGHTS = ("uniform", "rollout")


@dataclass
class ClippingSettings:
    """Clipping."""

    clipping: str = field(
        default="fixed",
        metadata={
            "help": "'fixed': the bounds 1 - epsilon and 1 + epsilon_high. 'balanced': BAPO (arXiv 2510.18927), "
            "bounds searched anew for every update."
        },
    )
    bapo_low: list[float] = field(
        default_factory=lambda: [0.9, 0.98],
        metadata={
            "help": "Start and end of the lower bound, absolute ratios; equal values fix it. The paper's are 0.6 0.9 "
            "(preset bapo_paper); ours did better on stale data (docs/studies/staleness.md)."
        },
    )
    bapo_high: list[float] = field(
        default_factory=lambda: [1.2, 3.0],
        metadata={"help": "Start and end of the upper bound, absolute ratios (paper: 1.2 3.0). Equal values fix it."},
    )
    bapo_low_step: float = field(default=0.02, metadata={"help": "Step of the lower bound (paper: 0.02)."})
    bapo_high_step: float = field(default=0.05, metadata={"help": "Step of the upper bound (paper: 0.05)."})
    bapo_target_share: float = field(
        default=0.55,
        metadata={
            "help": "Share of positive contributions at which the search stops, in (0, 1). The paper's is 0.4, which "
            "group-normalised advantages exceed by themselves."
        },
    )
    bapo_measure: str = field(
        default="gradient",
        metadata={
            "help": "Which contributions are balanced. 'gradient': of the tokens whose gradient survives the clip "
            "(Eq. 5 and 7). 'surrogate': of the clipped objective (Eq. 8 as printed)."
        },
    )
    bapo_scope: str = field(
        default="update",
        metadata={
            "help": "What a search covers. 'update': all micro-batches and ranks of the update, exactly. 'lagged': the "
            "previous update, free of cost."
        },
    )
    bapo_token_weight: str = field(
        default="uniform",
        metadata={"help": "Weight of a token in the share: 'uniform', or 'rollout' probability (Eq. 8)."},
    )

    def check_clipping(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        require_choice("clipping", self.clipping, CLIPPINGS)
        require_choice("bapo_measure", self.bapo_measure, get_args(Measure))
        require_choice("bapo_scope", self.bapo_scope, SCOPES)
        require_choice("bapo_token_weight", self.bapo_token_weight, TOKEN_WEIGHTS)
        self.bound_grid()
        require("bapo_target_share", self.bapo_target_share, "in (0, 1)", 0 < self.bapo_target_share < 1)

    def bound_grid(self) -> BoundGrid:
        """The grid of balanced clipping."""
        for name in ("bapo_low", "bapo_high"):
            require(name, getattr(self, name), "two numbers [start, end]", len(getattr(self, name)) == 2)
        with prefixed("bapo_"):
            return BoundGrid(
                low=(self.bapo_low[0], self.bapo_low[1]),
                high=(self.bapo_high[0], self.bapo_high[1]),
                low_step=self.bapo_low_step,
                high_step=self.bapo_high_step,
            )

    def lagged_bounds(self) -> LaggedBounds | None:
        """A fresh controller of bounds that follow the previous update; None where each update has its own."""
        if self.clipping != "balanced" or self.bapo_scope != "lagged":
            return None
        return LaggedBounds(self.bound_grid(), target_share=self.bapo_target_share)

    @property
    def measure(self) -> Measure:
        """The measure that steers the search."""
        return cast(Measure, self.bapo_measure)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: naming the key, the choices and the value.
    """
    require(name, value, "one of " + ", ".join(map(repr, choices)), value in choices)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Names a field of the core as the settings call it: 'strength must be …' -> 'papo_strength must be …'."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
