"""`entropy_control` in a configuration: names, their settings, what they may be combined with.

A method that TRL has is TRL's: its name sets TRL's own keys. The others are those of `equipoise.entropy_control`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from equipoise.entropy_control import CONTROLS, EntropyControl
from equipoise.trl.losses import CLIPPED_LOSSES


@dataclasses.dataclass(frozen=True)
class Preset:
    """A method that is a choice of TRL's keys.

    Attributes:
        defaults: its settings.
        keys: TRL's keys for given settings.
        rules: the range of each setting, in words and as a test.
        is_clip: it chooses clip bounds; such a one goes together with any one method that does not.
    """

    defaults: dict[str, float]
    keys: Callable[..., dict[str, Any]]
    rules: dict[str, tuple[str, Callable[[float], bool]]]
    is_clip: bool = False


def _epsilons(low: float, high: float) -> dict[str, Any]:
    # Rounded, so that absolute bounds of 0.8 and 1.28 are the epsilons 0.2 and 0.28 and not 0.19999999999999996.
    return {"epsilon": round(1 - low, 12), "epsilon_high": round(high - 1, 12)}


_BOUNDS = {"low": ("in (0, 1]", lambda x: 0 < x <= 1), "high": (">= 1", lambda x: 1 <= x < math.inf)}
_POSITIVE = ("> 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = (">= 0", lambda x: 0 <= x < math.inf)

PRESETS = {
    "clip_higher": Preset({"low": 0.8, "high": 1.28}, _epsilons, _BOUNDS, is_clip=True),
    "wide_clip": Preset({"low": 0.9, "high": 3.0}, _epsilons, _BOUNDS, is_clip=True),
    "entropy_bonus": Preset({"bonus": 0.01}, lambda bonus: {"entropy_coef": bonus}, {"bonus": _POSITIVE}),
    "adaptive_entropy_bonus": Preset(
        {"target": 0.2, "step": 0.005, "largest": 1.0},
        lambda target, step, largest: {
            "use_adaptive_entropy": True,
            "entropy_target": target,
            "entropy_coef_delta": step,
            "entropy_coef_max": largest,
        },
        {"target": _POSITIVE, "step": _POSITIVE, "largest": _NOT_NEGATIVE},
    ),
    "top_entropy": Preset(
        {"top_fraction": 0.2},
        lambda top_fraction: {"top_entropy_quantile": top_fraction},
        {"top_fraction": ("in (0, 1)", lambda x: 0 < x < 1)},
    ),
}

NAMES = (*PRESETS, *CONTROLS)
_TRL_DEFAULTS = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}


def chosen(config: Any) -> list[str]:
    """The names in `entropy_control`, checked; empty for "off".

    Raises:
        ValueError: an unknown name, or two that exclude each other.
    """
    given = config.entropy_control
    names = [given] if isinstance(given, str) else list(given)
    if names == ["off"]:
        return []
    for name in names:
        if name not in NAMES:
            raise ValueError(f"entropy_control must be 'off' or of {', '.join(NAMES)}, got entropy_control={name!r}")
    clips = [name for name in names if name in PRESETS and PRESETS[name].is_clip]
    others = [name for name in names if name not in clips]
    for group in (clips, others):
        if len(group) > 1:
            raise ValueError(
                f"entropy_control takes one choice of clip bounds (clip_higher, wide_clip) and one other method, got "
                f"{' and '.join(group)}"
            )
    return names


def token_control(config: Any) -> EntropyControl | None:
    """The method of `equipoise.entropy_control` that is in force, with its settings.

    Raises:
        ValueError: a setting outside its range.
    """
    names = [name for name in chosen(config) if name in CONTROLS]
    if not names:
        return None
    given = _arguments(config)
    settings = {name: value for name, value in given.items() if name in CONTROLS[names[0]].defaults}
    try:
        return EntropyControl(names[0], settings)
    except ValueError as error:
        raise ValueError(f"entropy_control_args: {error}") from None


def set_keys(config: Any) -> None:
    """Check `entropy_control` and its settings, and set TRL's keys for those methods that are TRL's.

    Raises:
        ValueError: methods or settings that are unknown, out of range, or given in TRL's keys as well.
    """
    names, given = chosen(config), _arguments(config)
    known = {name: _defaults(name) for name in names}
    for setting in given:
        if not any(setting in defaults for defaults in known.values()):
            settings = [setting for defaults in known.values() for setting in defaults]
            have = f"{' and '.join(names)} has {', '.join(settings)}" if names else "entropy_control is off"
            raise ValueError(f"entropy_control_args: {have}, got {setting!r}")
    for name in names:
        if name in PRESETS:
            _set_keys_of(config, name, given)
    token_control(config)


def check_combinations(config: Any) -> None:
    """Refuse what would contradict itself or be computed wrongly, once every other key is known and checked.

    Raises:
        ValueError: two settings that exclude each other.
    """
    for name in chosen(config):
        _check_combination(config, name)


def _arguments(config: Any) -> dict[str, float]:
    given = {}
    for name, value in (config.entropy_control_args or {}).items():
        try:
            given[str(name)] = float(value)  # YAML reads 1e-3 as a string
        except (TypeError, ValueError):
            raise ValueError(f"entropy_control_args: {name} must be a number, got {value!r}") from None
    return given


def _defaults(name: str) -> dict[str, float]:
    return PRESETS[name].defaults if name in PRESETS else CONTROLS[name].defaults


def _set_keys_of(config: Any, name: str, given: dict[str, float]) -> None:
    preset = PRESETS[name]
    settings = {setting: given.get(setting, default) for setting, default in preset.defaults.items()}
    for setting, value in settings.items():
        rule, holds = preset.rules[setting]
        if not holds(value):
            raise ValueError(f"entropy_control_args: {setting} of {name} must be {rule}, got {setting}={value}")
    for key, value in preset.keys(**settings).items():
        if getattr(config, key) not in (_TRL_DEFAULTS[key], value):
            raise ValueError(
                f"entropy_control={name!r} sets {key}={value}, got {key}={getattr(config, key)} as well: give one"
            )
        setattr(config, key, value)


def _check_combination(config: Any, name: str) -> None:
    preset, control = PRESETS.get(name), CONTROLS.get(name)
    if preset is not None and preset.is_clip:
        _refuse(config, name, "clipping", config.clipping == "balanced", "both choose the clip bounds")
        _refuse_unclipped_loss(config, name)
        return
    _refuse(
        config, name, "polarity", config.polarity in ("positive_only", "negative_only"),
        "the ablation shows one branch of polarity alone",
    )  # fmt: skip
    if name in ("stare", "adaptive_entropy_bonus"):
        _refuse(config, name, "polarity", config.polarity == "papo", "both are closed loops on the same entropy")
    if name == "ce_gppo":
        _refuse(
            config, name, "clipping", config.clipping == "balanced",
            "it gives back the gradients that balanced clipping takes away",
        )  # fmt: skip
    if control is not None and control.sets_gradient:
        _check_gradients(config, name)
    if control is not None and control.whole_update:
        _check_whole_updates(config, name)


def _check_gradients(config: Any, name: str) -> None:
    _refuse_unclipped_loss(config, name)
    _refuse(
        config, name, "importance_sampling_level", config.importance_sampling_level == "sequence",
        "it acts on the ratios of single tokens",
    )  # fmt: skip
    for key in ("off_policy_mask_threshold", "delta"):
        _refuse(config, name, key, getattr(config, key) is not None, "both act on tokens far from the rollout policy")
    corrected = bool(config.beta) and bool(config.use_bias_correction_kl)
    _refuse(config, name, "use_bias_correction_kl", corrected, "the KL term would be scaled by changed ratios")


def _check_whole_updates(config: Any, name: str) -> None:
    rollout, update = (config.steps_per_generation or 1) * config.num_iterations, config.gradient_accumulation_steps
    if rollout % update:
        raise ValueError(
            f"entropy_control={name!r} selects tokens over whole updates, which must lie within a rollout batch: "
            f"gradient_accumulation_steps={update} must divide steps_per_generation * num_iterations = "
            f"{config.steps_per_generation} * {config.num_iterations} = {rollout}"
        )


def _refuse_unclipped_loss(config: Any, name: str) -> None:
    if config.loss_type not in CLIPPED_LOSSES:
        raise ValueError(
            f"entropy_control={name!r} needs a loss that clips from both sides: loss_type must be one of "
            f"{', '.join(CLIPPED_LOSSES)}, got loss_type={config.loss_type!r}"
        )


def _refuse(config: Any, name: str, key: str, contradicts: bool, reason: str) -> None:
    if contradicts:
        raise ValueError(f"entropy_control={name!r} and {key}={getattr(config, key)!r} exclude each other: {reason}")
