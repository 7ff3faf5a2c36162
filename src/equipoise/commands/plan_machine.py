"""What a run is planned for: GPUs, or the CPU that it would compute on, and how much memory there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from equipoise.errors import InputError
from equipoise.inputs.yaml_text import yaml_mapping

GIB = 2**30
GPU_MEMORY = 80.0
"""GiB of a GPU, where nothing is said."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a container: what the kernel ends a process for that wants more."""

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        device: what it computes on.
        num_bytes: memory of one GPU, or of the whole machine, which all processes on its CPU share.
        note: why it is this device, where nobody named one; None: somebody did.
    """

    device: Device
    num_bytes: int
    note: str | None = None


def machine(
    values: Mapping[str, Any],
    *,
    device: Device | None,
    accelerate: Path | None,
    names_gpus: bool,
    gpu_memory: float | None,
    cpu_memory: float | None,
) -> Machine:
    """The device that the run would compute on, unless another is asked for.

    Args:
        values: keys of the run; `use_cpu` decides, as in training.
        device: that was asked for; None: none.
        accelerate: configuration of accelerate, which has a `use_cpu` as well.
        names_gpus: the user has said how many GPUs there are, or how the model is spread over them.
        gpu_memory: GiB of one GPU; named, it is planned for GPUs.
        cpu_memory: GiB of the machine; None: of this one.

    Raises:
        InputError: a device or its memory named where the run uses the other one.
    """
    on_cpu = bool(values.get("use_cpu")) or bool(_accelerate_keys(accelerate).get("use_cpu"))
    if on_cpu and device == "gpu":
        raise InputError("--device must be cpu, since use_cpu is true, got --device=gpu")
    note = None
    if not on_cpu and device is None and not names_gpus and gpu_memory is None:
        device = "gpu" if torch.accelerator.is_available() else "cpu"
        if device == "cpu":
            note = "No accelerator here: planned for this CPU, as it would be trained; --device gpu plans for a GPU."
    if on_cpu or device == "cpu":
        if gpu_memory is not None:
            raise InputError(f"--gpu_memory {gpu_memory:g} is of a GPU, and this run computes on the CPU: --cpu_memory")
        return Machine("cpu", _memory_here() if cpu_memory is None else int(cpu_memory * GIB), note)
    if cpu_memory is not None:
        raise InputError(f"--cpu_memory {cpu_memory:g} is of a CPU, and this run computes on a GPU: --gpu_memory")
    return Machine("gpu", int((GPU_MEMORY if gpu_memory is None else gpu_memory) * GIB))


def _accelerate_keys(path: Path | None) -> dict[str, Any]:
    return {} if path is None else yaml_mapping(path, "accelerate configuration")


def _memory_here() -> int:
    """Of this machine, or of the container that this process is in."""
    whole = psutil.virtual_memory().total
    try:
        return min(whole, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return whole
