"""What does not go with equipoise in verl, refused before anything is trained: one line that names the key."""

from typing import Any

from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss

from equipoise.errors import InputError, require
from equipoise.verl.settings import VerlSettings

STRATEGIES = ("fsdp", "fsdp2")
ACTOR = "actor_rollout_ref.actor"
NO_DUAL_CLIP = 1e6
"""A clip_ratio_c that no ratio reaches; verl's loss has no other way to be without its dual clip."""


def check_actor(loss_fn: Any, config: ActorConfig, settings: VerlSettings, model_config: Any) -> None:
    """Refuse what the statistics or the bounds would silently be wrong with.

    Args:
        loss_fn: that verl gave the actor.
        config: of the actor.
        settings: of equipoise.
        model_config: of the actor's model.

    Raises:
        InputError: naming the key, the rule and the value.
    """
    if loss_fn.func is not ppo_loss:
        raise InputError(
            "distillation does not go with loss_mode=equipoise: both use verl's door to the logits; set "
            "distillation.enabled=False"
        )
    _require(f"{ACTOR}.strategy", config.strategy, "one of 'fsdp', 'fsdp2'", config.strategy in STRATEGIES)
    fused = bool(config.use_fused_kernels or model_config.get("use_fused_kernels", False))
    _require("actor_rollout_ref.model.use_fused_kernels", fused, "False: fused kernels give no logits", not fused)
    for name, rule in (
        ("pad_to_length", "False: verl gives no logits with it"),
        ("use_prefix_grouper", "False: shared prefixes are not supported"),
    ):
        value = bool(config.get(name, False) or config.engine.get(name, False))
        _require(f"{ACTOR}.{name}", value, rule, not value)
    parallel = max(int(part.get("ulysses_sequence_parallel_size", 1) or 1) for part in (config, config.engine))
    _require(
        f"{ACTOR}.ulysses_sequence_parallel_size", parallel, "1: sequence parallelism is not supported", parallel == 1
    )
    if settings.sets_gradient:  # the dual clip would take gradients away that the method sets
        rule = f">= {NO_DUAL_CLIP:g} with entropy_control={settings.entropy_control!r}: no dual clip"
        _require(f"{ACTOR}.clip_ratio_c", config.clip_ratio_c, rule, config.clip_ratio_c >= NO_DUAL_CLIP)
    if settings.clipping == "balanced" and settings.measure == "surrogate":  # constant beyond the dual clip
        rule = f">= {NO_DUAL_CLIP:g} with bapo_measure='surrogate': no dual clip"
        _require(f"{ACTOR}.clip_ratio_c", config.clip_ratio_c, rule, config.clip_ratio_c >= NO_DUAL_CLIP)
    if settings.clipping == "balanced":
        end = settings.bapo_high[1]
        _require(
            f"{ACTOR}.clip_ratio_c", config.clip_ratio_c, f">= {end}, the end of bapo_high", config.clip_ratio_c >= end
        )


def _require(name: str, value: object, rule: str, holds: bool) -> None:
    require(name, value, rule, holds, error=InputError)
