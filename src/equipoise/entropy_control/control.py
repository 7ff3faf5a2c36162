"""The table of the methods, and the settings of the one in force."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.entropy_control.coefficients import ce_gppo_coefficient, kl_cov_coefficient
from equipoise.entropy_control.weights import (
    UpdateTokens,
    clip_b_weight,
    clip_cov_weight,
    kl_cov_selection,
    stare_weight,
    steer_weight,
    surprisal_weight,
)
from equipoise.errors import require
from equipoise.types import ClipBounds


@dataclass(frozen=True)
class Control:
    """One method.

    Attributes:
        functions: what it is made of; their keyword arguments are its settings.
        whole_update: it decides about a token from all tokens of the update.
        sets_gradient: it sets gradients (`coefficients`), which not every loss can express, instead of weights.
    """

    functions: tuple[Callable, ...]
    whole_update: bool
    sets_gradient: bool = False

    @property
    def defaults(self) -> dict[str, float]:
        """Its settings, by name."""
        parameters = [p for function in self.functions for p in inspect.signature(function).parameters.values()]
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


CONTROLS = {
    "clip_cov": Control((clip_cov_weight,), whole_update=True),
    "kl_cov": Control((kl_cov_selection, kl_cov_coefficient), whole_update=True, sets_gradient=True),
    "clip_b": Control((clip_b_weight,), whole_update=True),
    "steer": Control((steer_weight,), whole_update=False),
    "stare": Control((stare_weight,), whole_update=True),
    "surprisal": Control((surprisal_weight,), whole_update=False),
    "ce_gppo": Control((ce_gppo_coefficient,), whole_update=False, sets_gradient=True),
}

_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "fraction": ("in (0, 1]", lambda x: 0 < x <= 1),
    "covariance_low": ("finite", math.isfinite),
    "covariance_high": ("finite", math.isfinite),
    "coefficient": (">= 0 and finite", lambda x: 0 <= x < math.inf),
    "deviations": ("> 0 and finite", lambda x: 0 < x < math.inf),
    "decay": (">= 0 and finite", lambda x: 0 <= x < math.inf),
    "least": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "gain": ("in [0, 1)", lambda x: 0 <= x < 1),
    "entropy_below": ("> 0 nats", lambda x: x > 0),
    "boost": (">= 0 and finite", lambda x: 0 <= x < math.inf),
    "beta_low": (">= 0 and finite", lambda x: 0 <= x < math.inf),
    "beta_high": (">= 0 and finite", lambda x: 0 <= x < math.inf),
}


@dataclass(frozen=True)
class EntropyControl:
    """A method of `CONTROLS` with its settings; those that are not given are the defaults of its functions.

    Two steps: `mark` looks at the tokens of the whole update, `steer` acts on any part of them.

    Raises:
        ValueError: an unknown method, an unknown setting, or one outside its range.
    """

    name: str
    given: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CONTROLS:
            raise ValueError(f"entropy control must be one of {', '.join(CONTROLS)}, got {self.name!r}")
        defaults = CONTROLS[self.name].defaults
        for name, value in self.given.items():
            if name not in defaults:
                raise ValueError(f"{self.name} has the settings {', '.join(defaults)}, got {name!r}")
            rule, holds = _RULES[name]
            require(f"{name} of {self.name}", value, rule, holds(value))
        settings = self.settings
        if self.name == "clip_cov" and not settings["covariance_low"] < settings["covariance_high"]:
            raise ValueError(
                f"covariance_low of clip_cov must be below covariance_high, got covariance_low="
                f"{settings['covariance_low']} and covariance_high={settings['covariance_high']}"
            )

    @property
    def control(self) -> Control:
        """The entry of the table."""
        return CONTROLS[self.name]

    @property
    def settings(self) -> dict[str, float]:
        """Every setting in force."""
        return self.control.defaults | dict(self.given)

    def _of(self, function: Callable) -> dict[str, float]:
        names = inspect.signature(function).parameters
        return {name: value for name, value in self.settings.items() if name in names}

    def mark(self, tokens: UpdateTokens) -> Float[Tensor, " tokens"]:
        """What is decided over the whole update: the weight of a token, or 1 where it is selected and 0 elsewhere."""
        if self.name == "ce_gppo":  # decided by each token's own ratio
            return torch.ones_like(tokens.advantage)
        function = self.control.functions[0]
        if not len(tokens.advantage):
            return torch.ones_like(tokens.advantage)
        return function(tokens, **self._of(function)).to(tokens.advantage.dtype)

    def steer(
        self,
        advantage: Float[Tensor, "*shape"],
        mark: Float[Tensor, "*shape"],
        log_ratio: Float[Tensor, "*shape"],
        bounds: ClipBounds,
    ) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
        """The advantages, and the tokens whose gradient is set: there the value is g, to be used at a ratio of 1.

        Args:
            advantage: A, reweighted by polarity where that is on; finite outside the mask too.
            mark: of `mark`; 1 or 0 outside the mask as `mark` would have it for an untouched token.
            log_ratio: log pi - log pi_old, detached.
            bounds: of the clip in force.
        """
        if self.name == "ce_gppo":
            gradient, is_set = ce_gppo_coefficient(log_ratio, advantage, bounds, **self._of(ce_gppo_coefficient))
        elif self.name == "kl_cov":
            gradient = kl_cov_coefficient(log_ratio, advantage, bounds, **self._of(kl_cov_coefficient))
            is_set = mark > 0.5
        else:
            return advantage * mark, torch.zeros_like(advantage, dtype=torch.bool)
        return torch.where(is_set, gradient, advantage), is_set
