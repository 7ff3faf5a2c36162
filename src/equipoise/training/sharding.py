"""What accelerate and transformers leave out of FSDP2: CPUs, and generation that ends at different lengths."""

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, str_to_bool
from transformers import PreTrainedModel, TrainingArguments

from equipoise.errors import InputError


def shard_on_cpu(args: TrainingArguments) -> None:
    """Make accelerate shard over CPU processes with FSDP2 where that is asked for; call it before the trainer's own.

    accelerate 1.15 turns a distributed run into FSDP on accelerators only (`AcceleratorState.__init__`); on CPUs it
    keeps DDP without a word. All it needs is its state said to be FSDP before the trainer's Accelerator finds it.

    Raises:
        InputError: FSDP 1 or DeepSpeed is asked for on CPUs.
    """
    state = args.distributed_state
    if state is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    if _asked("ACCELERATE_USE_DEEPSPEED") or args.deepspeed:
        raise InputError("use_cpu: accelerate runs DDP in the place of DeepSpeed on CPUs; leave DeepSpeed out, or use FSDP2")
    if args.fsdp_plugin_args is None and not _asked("ACCELERATE_USE_FSDP"):
        return
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise InputError(f"fsdp_version must be 2 on CPUs, got {plugin.fsdp_version}")
    Accelerator(cpu=True).state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP


def generate_in_step(model: PreTrainedModel) -> None:
    """Let the processes that hold shards of a model generate until the last of them is done.

    Every step gathers the layers from all processes. transformers knows that of FSDP 1 and of its own FSDP2, not of a
    model that accelerate shards: the process with the shortest completions would leave the others waiting for it.
    """
    model._is_fsdp_managed_module = True  # pyright: ignore


def _asked(variable: str) -> bool:
    return bool(str_to_bool(os.environ.get(variable, "false")))
