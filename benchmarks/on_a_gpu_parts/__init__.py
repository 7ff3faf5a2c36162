"""The parts of `on_a_gpu.py`, the most important first: their names, what they cost, and the module that measures.

A module has `measure(figures, plan)`: it fills `figures`, saving after every row, and stops early at `plan.end`.
"""

import importlib
from typing import NamedTuple


class Part(NamedTuple):
    """One part.

    Attributes:
        module: of this package.
        what: in a line, for the help and the table.
        seconds: it may take at most, imports and compiling of kernels included.
        least: seconds without which it is not begun.
        model: the shape that it is about, where its module has several.
    """

    module: str
    what: str
    seconds: int
    least: int
    model: str = ""


PARTS = {
    "kernels": Part("kernel_tests", "tests of the kernels on the device", 90, 25),
    "head": Part("head", "statistics head beside Liger, TRL and verl at three shapes", 110, 40),
    "step-0.5b": Part("step", "whole training step against TRL's, shape of Qwen2.5-0.5B", 110, 35, "0.5b"),
    "step-1.5b": Part("step", "whole training step against TRL's, shape of Qwen2.5-1.5B", 110, 40, "1.5b"),
    "real-model": Part("real_model", "a few updates of a chat task with the model of --model", 60, 25),
    "sampling": Part("sampling", "sampling for an evaluation, shape of Qwen2.5-0.5B", 40, 25),
}
"""Their longest times add up to 520 s; an H100 should need about 420 of them, and --minutes holds either way."""


OURS, LIGER, TRL = "equipoise", "Liger, fused linear scaled cross entropy", "TRL"
"""Names in tables that targets are about. Here because the summary is written without torch."""


def measure(name: str, figures, plan) -> None:
    """Run a part in this process."""
    importlib.import_module(f"on_a_gpu_parts.{PARTS[name].module}").measure(figures, plan)
