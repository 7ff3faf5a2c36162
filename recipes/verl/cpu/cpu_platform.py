"""A CPU as a platform of verl.

verl knows CUDA, ROCm and Ascend; any other device is a class that it finds by name. In every process:

    VERL_USE_EXTERNAL_MODULES=cpu_platform   verl imports this module when it is imported itself
    VERL_PLATFORM=cpu                        and takes this platform; it never offers itself
    VERL_ENGINE_DEVICE=cuda                  training engines are registered for CUDA; FSDP2 runs on CPUs as well

Ray's resource is still called GPU: a place for one rank, of which `ray.init(num_gpus=ranks)` says how many there are.
"""

import contextlib
from types import ModuleType

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def device_module() -> ModuleType:
    """What `torch.cuda` is to a GPU: `torch.cpu`, and what verl asks of a device that a CPU has no name for."""
    module = ModuleType("cpu_device")
    vars(module).update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *device: 0)  # torch counts no bytes here
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device"):
        setattr(module, name, lambda *device: None)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        setattr(module, name, getattr(torch, name))
    module.manual_seed_all = torch.manual_seed
    module.mem_get_info = lambda *device: (psutil.virtual_memory().available, psutil.virtual_memory().total)
    module.get_device_name = lambda *device: "cpu"
    return module


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    """The platform of `VERL_PLATFORM=cpu`; what each method is for is in verl."""

    device_name = "cpu"
    vendor_name = "generic"
    device_module = device_module()

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return False  # never found by looking for devices: every machine has a CPU

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index):
        """Nothing to choose."""

    def synchronize(self, device_index=None):
        """Nothing runs behind the program's back."""

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings):
        """The allocator has none."""

    def empty_cache(self):
        """Nothing is kept."""

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def nvtx_range(self, msg):
        return contextlib.nullcontext()

    def profiler_start(self):
        """No profiler of a device."""

    def profiler_stop(self):
        """No profiler of a device."""

    def cudart(self):
        return None
