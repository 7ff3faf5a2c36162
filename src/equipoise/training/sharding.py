"""Real FSDP2 on CPUs, which accelerate is asked for and then runs as DDP."""

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, str_to_bool
from transformers import TrainingArguments

from equipoise.errors import InputError


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
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise InputError(f"fsdp_version must be 2 on CPUs, got {plugin.fsdp_version}")
    # Both are shared by all that ask accelerate later; a new set of arguments begins with MULTI_CPU again.
    Accelerator(cpu=True).state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP


def _asked(variable: str) -> bool:
    return bool(str_to_bool(os.environ.get(variable, "false")))
