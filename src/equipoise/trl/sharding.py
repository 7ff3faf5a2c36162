"""What accelerate does to a sharded run that this trainer cannot take, mended where possible, else refused."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, str_to_bool
from transformers import TrainingArguments
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation

from equipoise.errors import InputError
from equipoise.trl.ranks import is_sharded


def shard_on_cpu(args: TrainingArguments) -> None:
    """Make accelerate shard over CPU processes with FSDP2 where that is asked for, before a trainer asks accelerate.

    accelerate 1.15 makes a distributed run an FSDP run on accelerators only (`AcceleratorState.__init__`); on CPUs it
    reads the FSDP configuration and keeps DDP without a word. What follows from the kind of run works on CPUs too.

    Raises:
        InputError: FSDP 1 or DeepSpeed is asked for on CPUs, which would be DDP as well.
    """
    state = args.distributed_state
    if state is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    if args.deepspeed or _asked("ACCELERATE_USE_DEEPSPEED"):
        raise InputError("use_cpu: accelerate would run DDP in the place of DeepSpeed on CPUs; use FSDP2 or DDP there")
    if args.fsdp_plugin_args is None and not _asked("ACCELERATE_USE_FSDP"):
        return
    plugin = FullyShardedDataParallelPlugin(**cast(dict[str, Any], args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise InputError(f"fsdp_version must be 2 on CPUs, got {plugin.fsdp_version}")
    # Both are shared by all that ask accelerate later; a new set of arguments begins with MULTI_CPU again.
    accelerator = Accelerator(cpu=True, mixed_precision=args.mixed_precision)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP


def keep_float32_outputs(accelerator: Accelerator) -> None:
    """Under mixed precision, let a model that FSDP2 shards return log-probs and entropies as they were computed.

    accelerate casts what the model returns to the type of the products: in bf16 a log-prob of -5 is off by up to 1/64,
    and the ratio by as many hundredths as the clip bounds are searched in.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def check_savable(accelerator: Accelerator) -> None:
    """Refuse a sharded run that would end without a model.

    Raises:
        InputError: ZeRO-3 without `zero3_save_16bit_model`.
    """
    plugin = accelerator.state.deepspeed_plugin
    zero = {} if plugin is None else plugin.deepspeed_config["zero_optimization"]
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise InputError(
            "DeepSpeed ZeRO-3 needs zero3_save_16bit_model: true in the accelerate configuration: without it there is "
            "no whole model to save"
        )


@contextmanager
def ready_to_generate(trainer: Any) -> Iterator[Any]:
    """The policy, whose `generate` may be called within the block; under sharding on all processes at once."""
    accelerator, args = trainer.accelerator, trainer.args
    if not is_sharded(accelerator):
        yield accelerator.unwrap_model(trainer.model)
        return
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        DistributedBackend(accelerator).summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        yield model


def _asked(variable: str) -> bool:
    return bool(str_to_bool(os.environ.get(variable, "false")))
