"""The keys of entropy polarity, and the controller they make."""

import math
from dataclasses import dataclass, field

from equipoise.controllers import (
    BalanceSignal,
    PhaseSignal,
    PolarityController,
    ReferenceSignal,
    ScheduleSignal,
    TrendSignal,
)
from equipoise.controllers.polarity import QUADRANTS
from equipoise.errors import require
from equipoise.settings.clipping import prefixed, require_choice

POLARITIES = ("off", "papo", "positive_only", "negative_only")
SIGNALS = ("reference", "trend", "balance", "schedule")


@dataclass
class PolaritySettings:
    """Entropy polarity."""

    polarity: str = field(
        default="off",
        metadata={
            "help": "'papo': reweight advantages by entropy polarity (arXiv 2605.11775) in a closed loop on the "
            "measured entropy. 'positive_only', 'negative_only': ablations, loss only on tokens whose update expands, "
            "or contracts, the entropy. 'off': only measure it."
        },
    )
    papo_signal: str = field(
        default="reference",
        metadata={
            "help": "Where the phase comes from. 'reference': the gap to a reference entropy. 'trend': slow against "
            "fast average of the entropy. 'balance': the measured flows. 'schedule': papo_phases."
        },
    )
    papo_strength: float = field(
        default=0.5,
        metadata={
            "help": "Largest deviation of a branch weight from 1; below 1 wherever a weight would reach 0 "
            "(see papo_quadrants)."
        },
    )
    papo_quadrants: list[str] = field(
        default_factory=lambda: list(QUADRANTS),
        metadata={
            "help": "Which tokens the phase acts on: expanding_positive, expanding_negative, contracting_positive, "
            "contracting_negative (the second word is the sign of the advantage). All: PAPO."
        },
    )
    papo_phases: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "'schedule': phases in [-1, 1] at equal distances over the run, linear between them."},
    )
    papo_release_after: float = field(
        default=1.0, metadata={"help": "Fraction of the run after which the phase is 0, in (0, 1]; 1: never."}
    )
    papo_tanh_scale: float | None = field(
        default=None,
        metadata={
            "help": "Weigh by tanh(|T| / papo_tanh_scale), T the tendency in nats, so that tokens that hardly move the "
            "entropy keep their advantage; >= 1e-6. Unset: by the sign of the polarity alone."
        },
    )
    papo_reference_entropy: float | None = field(
        default=None, metadata={"help": "Entropy to hold, nats per token; unset: a fraction of the warm-up entropy."}
    )
    papo_reference_fraction: float = field(
        # What served best on the number ladder; .8 cost accuracy on other tasks (docs/studies/entropy_control.md).
        default=0.6,
        metadata={"help": "Entropy to hold as a fraction of the mean over the warm-up updates."},
    )
    papo_width: float = field(default=0.25, metadata={"help": "Relative entropy gap at which the phase saturates."})
    papo_smoothing: float = field(
        default=0.9, metadata={"help": "Weight of the past in the moving average of the entropy, in [0, 1)."}
    )
    papo_slow_smoothing: float = field(
        default=0.99, metadata={"help": "'trend': the same for the slow average, in (papo_smoothing, 1)."}
    )
    papo_warmup_updates: int = field(default=5, metadata={"help": "Updates without reweighting at the start."})
    papo_two_sided: bool = field(
        default=False, metadata={"help": "Also favour contraction while the entropy is above the reference."}
    )

    def check_polarity(self) -> None:
        """Refuse values out of range, and a setting of one phase signal beside another, which would be ignored.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        require_choice("polarity", self.polarity, POLARITIES)
        require_choice("papo_signal", self.papo_signal, SIGNALS)
        given = {
            "papo_two_sided": ("reference", self.papo_two_sided),
            "papo_reference_entropy": ("reference", self.papo_reference_entropy is not None),
            "papo_phases": ("schedule", self.papo_phases != [1.0]),
        }
        for name, (signal, is_given) in given.items():
            if is_given and self.papo_signal != signal:
                raise ValueError(
                    f"{name} belongs to papo_signal={signal!r}, got papo_signal={self.papo_signal!r} and "
                    f"{name}={getattr(self, name)!r}"
                )
        self._controller()
        scale = self.papo_tanh_scale
        require("papo_tanh_scale", scale, ">= 1e-6 and finite", scale is None or 1e-6 <= scale < math.inf)

    def polarity_controller(self) -> PolarityController | None:
        """A fresh controller with these settings; None without PAPO."""
        return self._controller() if self.polarity == "papo" else None

    def _controller(self) -> PolarityController:
        with prefixed("papo_"):
            return PolarityController(
                signal=self._phase_signal(),
                strength=self.papo_strength,
                quadrants=self.papo_quadrants,
                reference_entropy=self.papo_reference_entropy,
                reference_fraction=self.papo_reference_fraction,
                smoothing=self.papo_smoothing,
                slow_smoothing=self.papo_slow_smoothing,
                warmup_updates=self.papo_warmup_updates,
                release_after=self.papo_release_after,
            )

    def _phase_signal(self) -> PhaseSignal:
        if self.papo_signal == "trend":
            return TrendSignal(width=self.papo_width)
        if self.papo_signal == "balance":
            return BalanceSignal()
        if self.papo_signal == "schedule":
            return ScheduleSignal(phases=tuple(self.papo_phases))
        return ReferenceSignal(width=self.papo_width, two_sided=self.papo_two_sided)
