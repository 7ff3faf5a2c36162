"""What is refused of sharding before a run, and what mixed precision may not do to outputs. See test_two_processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from trainer_setup import config

from equipoise.errors import InputError
from equipoise.trl.sharding import check_savable, keep_float32_outputs, shard_on_cpu


def arguments(folder, kind=DistributedType.MULTI_CPU, **changes):
    asked = config(folder)
    asked.distributed_state = SimpleNamespace(distributed_type=kind)
    for name, value in changes.items():
        setattr(asked, name, value)
    return asked


def accelerator(**plugins):
    made = Accelerator.__new__(Accelerator)
    made.state = SimpleNamespace(**({"deepspeed_plugin": None, "fsdp_plugin": None} | plugins))
    return made


def test_fsdp_1_on_cpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="fsdp_version must be 2 on CPUs, got 1"):
        shard_on_cpu(arguments(tmp_path, fsdp_plugin_args={"fsdp_version": 1}))


def test_deepspeed_on_cpus_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="in the place of DeepSpeed on CPUs; use FSDP2 or DDP"):
        shard_on_cpu(arguments(tmp_path, deepspeed="zero3.json"))
    asked = arguments(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="in the place of DeepSpeed"):
        shard_on_cpu(asked)


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED])
def test_all_but_several_processes_on_cpus_is_left_to_accelerate(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    asked = arguments(tmp_path, kind, deepspeed="zero3.json")
    shard_on_cpu(asked)
    assert asked.distributed_state.distributed_type == kind


def test_zero3_that_could_not_save_a_model_is_refused():
    def zero(**settings):
        return accelerator(deepspeed_plugin=SimpleNamespace(deepspeed_config={"zero_optimization": settings}))

    with pytest.raises(InputError, match="needs zero3_save_16bit_model: true"):
        check_savable(zero(stage=3, stage3_gather_16bit_weights_on_model_save=False))
    check_savable(zero(stage=3, stage3_gather_16bit_weights_on_model_save=True))
    check_savable(zero(stage=2))
    check_savable(accelerator())


def test_accelerate_rounds_outputs_and_they_are_kept():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.output_dtype is torch.bfloat16, "accelerate no longer does what this is for"
    keep_float32_outputs(accelerator(fsdp_plugin=plugin))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16)
