"""What equipoise calls, extends or reads of verl, and the check that it is all there.

verl keeps these names for its own use and moves them between releases. Each is checked when `equipoise.verl` is
imported, so that another version is refused in one line and not found out by wrong numbers.
"""

import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from equipoise.errors import InputError

LOWEST, BELOW = "0.9", "0.10"


@dataclass(frozen=True)
class Symbol:
    """One name of verl.

    Attributes:
        name: "module:attribute" or "module:Class.attribute".
        use: what is done with it.
        parameters: that are passed or read, of something that is called; None for an attribute.
    """

    name: str
    use: str
    parameters: tuple[str, ...] | None = None


WORKERS = "verl.workers.engine_workers"

SYMBOLS = (
    Symbol(f"{WORKERS}:TrainingWorker.set_loss_fn", "extended: settings, checks", ("loss_fn",)),
    Symbol(f"{WORKERS}:TrainingWorker.train_mini_batch", "extended: a step", ("data",)),
    Symbol(f"{WORKERS}:TrainingWorker.train_batch", "extended: an update", ("data",)),
    Symbol(
        f"{WORKERS}:TrainingWorker.save_checkpoint", "extended: our state",
        ("local_path", "hdfs_path", "global_step", "max_ckpt_to_keep"),
    ),
    Symbol(
        f"{WORKERS}:TrainingWorker.load_checkpoint", "extended: our state",
        ("local_path", "hdfs_path", "del_local_after_load"),
    ),
    Symbol(f"{WORKERS}:ActorRolloutRefWorker.actor_worker_cls", "set: the class the actor is built with"),
    Symbol(f"{WORKERS}:ActorRolloutRefWorker.update_weights", "wrapped: versions of weights", ("global_steps", "mode")),
    Symbol(
        "verl.workers.engine:BaseEngine.forward_backward_batch", "wrapped: all passes of an update",
        ("data", "loss_function", "forward_only"),
    ),
    Symbol("verl.workers.engine:BaseEngine.get_data_parallel_group", "called: who shares an update", ()),
    Symbol(
        "verl.workers.engine.fsdp:FSDPEngineWithLMHead.prepare_model_outputs",
        "read: with distillation_use_topk the loss is given the logits", ("logits_processor_func",),
    ),
    Symbol("verl.workers.utils.losses:ppo_loss", "called for every micro-batch", ("config", "model_output", "data")),
    Symbol("verl.workers.utils.padding:no_padding_2_padding", "called", ("tensor", "data")),
    Symbol("verl.trainer.ppo.core_algos:register_policy_loss", "called: the loss by its name", ("name",)),
    Symbol(
        "verl.trainer.ppo.core_algos:compute_policy_loss_vanilla", "called at our bounds",
        (
            "old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config",
            "rollout_is_weights",
        ),
    ),
    Symbol("verl.workers.config:ActorConfig.clip_ratio_low", "set in a copy: the lower bound"),
    Symbol("verl.workers.config:ActorConfig.clip_ratio_high", "set in a copy: the upper bound"),
    Symbol("verl.workers.config:ActorConfig.clip_ratio_c", "read: the dual clip"),
    Symbol("verl.workers.config:PolicyLossConfig.loss_mode", "read, and extended with our keys"),
    Symbol("verl.utils.tensordict_utils:assign_non_tensor", "called", ("tensor_dict",)),
    Symbol("verl.utils.tensordict_utils:get_non_tensor_data", "called", ("data", "key", "default")),
    Symbol("verl.utils.tensordict_utils:get", "called", ("tensordict", "key", "default")),
)  # fmt: skip
"""Everything of verl's that its releases do not promise to keep."""


def check() -> None:
    """Refuse a version of verl that equipoise was not written for, or one that lacks what is used of it.

    Raises:
        InputError: naming the version, or the symbol and what it lacks.
    """
    found = importlib.metadata.version("verl")
    if not Version(LOWEST) <= Version(found) < Version(BELOW):
        raise InputError(f"equipoise.verl needs verl >= {LOWEST}, < {BELOW}, got verl {found}")
    for symbol in SYMBOLS:
        if lack := lacking(symbol):
            raise InputError(f"equipoise.verl does not fit verl {found}: {symbol.name} {lack}")


def lacking(symbol: Symbol) -> str:
    """What is missing of a symbol, in words; empty where nothing is."""
    module, _, path = symbol.name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        return f"is not there ({error})"
    if symbol.parameters is None:
        return ""
    have = inspect.signature(value).parameters
    missing = [name for name in symbol.parameters if name not in have]
    return f"has no parameter {missing[0]!r}" if missing else ""


def without_old_trl() -> None:
    """Keep verl from importing what TRL >= 1 no longer has.

    Its patches of transformers import `AutoModelForCausalLMWithValueHead` from whatever TRL is installed, also where no
    value head is asked for.
    """
    patches: Any = importlib.import_module("verl.models.transformers.monkey_patch")
    has_trl = getattr(patches, "is_trl_available", None)
    if has_trl is not None:
        patches.is_trl_available = lambda: has_trl() and _has_value_head()


def _has_value_head() -> bool:
    return hasattr(importlib.import_module("trl"), "AutoModelForCausalLMWithValueHead")
