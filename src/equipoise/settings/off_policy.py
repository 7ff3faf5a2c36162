"""Which settings go with sample replay and partial rollouts, and which are refused, each in one line."""

import math
from typing import Any, TypeAlias

from equipoise.rollouts.replay import SAMPLING

EquipoiseConfig: TypeAlias = Any  # it imports this module


def check_off_policy(config: EquipoiseConfig) -> None:
    """Refuses what does not go with `replay_*` and `rollout_token_budget`; sets `replay_max_age` where it is unset.

    Raises:
        ValueError: a value out of range, or settings that exclude each other, by name.
    """
    _require(config, "replay_fraction", "in [0, 1)", 0 <= config.replay_fraction < 1)
    _require(config, "replay_capacity", ">= 1", config.replay_capacity >= 1)
    _require(config, "replay_max_age", ">= 1", config.replay_max_age is None or config.replay_max_age >= 1)
    _require(config, "replay_sampling", f"one of {', '.join(map(repr, SAMPLING))}", config.replay_sampling in SAMPLING)
    budget = config.rollout_token_budget
    _require(config, "rollout_token_budget", ">= 1", budget is None or budget >= 1)
    if config.off_policy:
        name = "replay_fraction" if config.replay_fraction else "rollout_token_budget"
        _check_groups(config, name)
        _check_whole_updates(config, name)
        _check_sampler(config, name)
    if config.replay_fraction:
        _check_replay(config)


def _require(config: EquipoiseConfig, name: str, rule: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {name}={getattr(config, name)!r}")


def local_rows(config: EquipoiseConfig) -> int:
    """Completions of a rollout batch that one process holds."""
    return config.per_device_train_batch_size * (config.steps_per_generation or 1)


def replayed_groups(config: EquipoiseConfig) -> int:
    """Stored groups of a rollout batch on one process, once the buffer holds as many."""
    groups = local_rows(config) // (config.num_generations or 1)
    return math.floor(config.replay_fraction * groups + 1e-9)


def _check_whole_updates(config: EquipoiseConfig, name: str) -> None:
    """A search needs all data of the update before it begins; with older tokens there is always something to search."""
    rollout, update = (config.steps_per_generation or 1) * config.num_iterations, config.gradient_accumulation_steps
    if config.clipping == "balanced" and config.bapo_scope == "update" and rollout % update:
        raise ValueError(
            f"{name} with clipping='balanced' needs updates within a rollout batch: gradient_accumulation_steps="
            f"{update} must divide steps_per_generation * num_iterations = {config.steps_per_generation} * "
            f"{config.num_iterations} = {rollout}; or set bapo_scope to 'microbatch' or 'lagged'"
        )


def _check_groups(config: EquipoiseConfig, name: str) -> None:
    if local_rows(config) % (config.num_generations or 1):
        raise ValueError(
            f"{name} needs whole groups on every process: num_generations={config.num_generations} must divide "
            f"per_device_train_batch_size * steps_per_generation = {config.per_device_train_batch_size} * "
            f"{config.steps_per_generation} = {local_rows(config)}"
        )


def _check_replay(config: EquipoiseConfig) -> None:
    groups = local_rows(config) // (config.num_generations or 1)
    if groups < 2:
        raise ValueError(
            f"replay_fraction={config.replay_fraction} needs at least 2 groups per rollout batch on a process, got "
            f"{groups}: raise per_device_train_batch_size or steps_per_generation"
        )
    if replayed_groups(config) < 1:
        raise ValueError(
            f"replay_fraction={config.replay_fraction} of the {groups} groups of a rollout batch on a process is less "
            f"than one group: use at least {1 / groups:.4g}, or more groups"
        )
    updates = (config.steps_per_generation or 1) * config.num_iterations / config.gradient_accumulation_steps
    versions = max(1, math.ceil(updates))  # by which the policy moves from one rollout batch to the next
    if config.replay_max_age is None:
        config.replay_max_age = 4 * versions
    if config.replay_max_age < versions:
        raise ValueError(
            f"replay_max_age={config.replay_max_age} would keep nothing: the policy moves by {versions} versions "
            f"(updates) from one rollout batch to the next"
        )
    if config.sync_ref_model:
        raise ValueError("replay_fraction does not go with sync_ref_model: stored reference log-probs would be stale")


def _check_sampler(config: EquipoiseConfig, name: str) -> None:
    """The log-probs must be those of the distribution that was sampled, and that of the softmax the loss knows."""
    plain = {"top_k": (None, 0), "top_p": (None, 1.0), "min_p": (None, 0.0), "repetition_penalty": (None, 1.0)}
    plain |= {"generation_kwargs": (None, {})}
    for setting, values in plain.items():
        value = getattr(config, setting)
        if value not in values:
            raise ValueError(
                f"{name} needs samples from the plain softmax, whose log-probs the loss takes ratios against: "
                f"leave {setting} at its default, got {setting}={value!r}"
            )
    if config.use_transformers_continuous_batching:
        raise ValueError(f"{name} needs behaviour log-probs; use_transformers_continuous_batching gives none")
    if config.use_vllm and config.vllm_importance_sampling_correction:
        raise ValueError(
            f"{name} takes every ratio against the log-probs that vLLM sampled with; a second correction would count "
            f"twice: set vllm_importance_sampling_correction=False"
        )
