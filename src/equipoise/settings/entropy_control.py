"""The keys of the other methods of entropy control: their names, their settings, what they may be combined with.

A method that a host has itself is the host's: its name sets the host's own keys. An adapter brings a table of those
(`HostMethod`); the others are those of `equipoise.entropy_control`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from equipoise.entropy_control import CONTROLS, EntropyControl
from equipoise.settings.batches import RolloutBatch
from equipoise.settings.reading import converted

Rule = tuple[str, Callable[[float], bool]]
POSITIVE: Rule = ("> 0 and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE: Rule = (">= 0 and finite", lambda x: 0 <= x < math.inf)


@dataclass(frozen=True)
class HostMethod:
    """A method that is a choice of a host's keys.

    Attributes:
        defaults: its settings.
        keys: the host's keys for given settings.
        rules: the range of each setting, in words and as a test.
        closed_loop: it follows the entropy, as PAPO does: not both.
    """

    defaults: dict[str, float]
    keys: Callable[..., dict[str, Any]]
    rules: dict[str, Rule]
    closed_loop: bool = False


@dataclass
class EntropyControlSettings:
    """Other methods of entropy control, as baselines."""

    host_methods: ClassVar[Mapping[str, HostMethod]] = {}

    entropy_control: str = field(
        default="off",
        metadata={
            "help": "Another method of entropy control, as a baseline: entropy_bonus, adaptive_entropy_bonus, "
            "top_entropy (TRL's own, set by name; they depend on how an update is split into micro-batches, which the "
            "others do not), clip_cov, kl_cov, clip_b, steer, stare, surprisal, ce_gppo. See docs/entropy_control.md."
        },
    )
    entropy_control_args: dict | None = field(
        default=None,
        metadata={"help": "Settings of entropy_control that differ from its defaults, as '{fraction: 0.002}'."},
    )

    def token_control(self) -> EntropyControl | None:
        """The method of `equipoise.entropy_control` that is in force, with its settings.

        Raises:
            ValueError: a setting outside its range.
        """
        if self.entropy_control not in CONTROLS:
            return None
        try:
            return EntropyControl(self.entropy_control, self._arguments())
        except ValueError as error:
            raise ValueError(f"entropy_control_args: {error}") from None

    def check_entropy_control(self) -> None:
        """Refuse an unknown method, and settings that it does not have or that are out of their range.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        name, given = self.entropy_control, self._arguments()
        known = ("off", *self.host_methods, *CONTROLS)
        if name not in known:
            raise ValueError(f"entropy_control must be one of {', '.join(known)}, got entropy_control={name!r}")
        defaults = self._defaults()
        for setting in given:
            if setting not in defaults:
                have = "entropy_control is off" if name == "off" else f"{name} has {', '.join(defaults)}"
                raise ValueError(f"entropy_control_args: {have}, got {setting!r}")
        if name in self.host_methods:
            self.host_keys()
        self.token_control()

    def host_keys(self) -> dict[str, Any]:
        """The host's keys that the method sets; empty for a method that is not the host's.

        Raises:
            ValueError: a setting outside its range.
        """
        method = self.host_methods.get(self.entropy_control)
        if method is None:
            return {}
        settings = method.defaults | self._arguments()
        for setting, value in settings.items():
            rule, holds = method.rules[setting]
            if not holds(value):
                raise ValueError(
                    f"entropy_control_args: {setting} of {self.entropy_control} must be {rule}, got {setting}={value}"
                )
        return method.keys(**settings)

    def _defaults(self) -> dict[str, float]:
        name = self.entropy_control
        if name in self.host_methods:
            return self.host_methods[name].defaults
        return CONTROLS[name].defaults if name in CONTROLS else {}

    def _arguments(self) -> dict[str, float]:
        given = {}
        for name, value in (self.entropy_control_args or {}).items():
            try:
                given[str(name)] = converted(value, float)
            except ValueError:
                raise ValueError(f"entropy_control_args: {name} must be a number, got {value!r}") from None
        return given

    @property
    def sets_gradient(self) -> bool:
        """Whether the method sets gradients of single tokens, which not every loss can express."""
        return self.entropy_control in CONTROLS and CONTROLS[self.entropy_control].sets_gradient

    def check_combinations(self, *, polarity: str, clipping: str, batch: RolloutBatch) -> None:
        """Refuse what would contradict itself or be computed wrongly.

        Args:
            polarity: the key beside it.
            clipping: likewise.
            batch: of the run.

        Raises:
            ValueError: two settings that exclude each other.
        """
        name = self.entropy_control
        if name == "off":
            return
        ablation = polarity in ("positive_only", "negative_only")
        self.refuse("polarity", polarity, ablation, "the ablation shows one branch of polarity alone")
        method = self.host_methods.get(name)
        if name == "stare" or (method is not None and method.closed_loop):
            self.refuse("polarity", polarity, polarity == "papo", "both are closed loops on the same entropy")
        if name == "ce_gppo":
            reason = "it gives back the gradients that balanced clipping takes away"
            self.refuse("clipping", clipping, clipping == "balanced", reason)
        if name in CONTROLS and CONTROLS[name].whole_update:
            batch.require_whole_updates(f"entropy_control={name!r}")

    def refuse(self, key: str, value: object, contradicts: bool, reason: str) -> None:
        """Refuse the method beside another key.

        Raises:
            ValueError: when `contradicts`.
        """
        if contradicts:
            raise ValueError(
                f"entropy_control={self.entropy_control!r} and {key}={value!r} exclude each other: {reason}"
            )
