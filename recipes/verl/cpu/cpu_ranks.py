"""Ranks of verl on CPUs: loaded into every worker by `actor_rollout_ref.model.external_lib`, before its model is built.

verl gives a process group one backend for the CPU and one for its device, "cpu:gloo,cpu:gloo" where the device is the
CPU, and torch refuses a device that is named twice. Here ranks ask for "cpu:gloo".
"""

from functools import partial

from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers import engine_workers

engine_workers.initialize_global_process_group_ray = partial(initialize_global_process_group_ray, backend="cpu:gloo")
