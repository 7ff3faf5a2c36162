"""A script of a test in processes of its own, launched as a user launches a run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from equipoise.models.architectures import recipe_folder

DDP, FSDP2, ZERO3 = "one_node_ddp.yaml", "one_node_fsdp2.yaml", "several_nodes_zero3.yaml"


def launch(
    script: str | Path, *arguments: object, configuration: str = DDP, processes: int = 2, seconds: float = 240
) -> None:
    """`accelerate launch` of a script with a configuration of the recipes, on CPUs.

    Raises:
        AssertionError: with the end of what was said, when a process fails or has not ended in time.
    """
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", recipe_folder() / "accelerate" / configuration,
        "--num_machines", 1, "--num_processes", processes, "--main_process_port", 0, "--mixed_precision", "no",
        script, *arguments,
    ]  # fmt: skip
    with subprocess.Popen(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # what has to be ended is the launcher and all its processes
    ) as launched:
        try:
            said, _ = launched.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
            raise AssertionError(f"not ended after {seconds} s: {launched.communicate()[0][-3000:]}") from None
    assert launched.returncode == 0, said[-5000:]
