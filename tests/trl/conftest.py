"""What two processes end with, launched once for each way of holding the model and shared by the tests of a module."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import DDP, FSDP2, ZERO3, launch


def two_processes(script: str | Path, folder: Path, configuration: str) -> SimpleNamespace:
    """The folder of a script's run, what each process ended with, and whether the model was sharded."""
    if configuration == ZERO3 and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    launch(script, folder, configuration=configuration)
    ends = [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in range(2)]
    return SimpleNamespace(folder=folder, ends=ends, sharded=configuration != DDP)


@pytest.fixture(scope="module")
def ddp(request, tmp_path_factory):
    """The script of the test module (SCRIPT) in two processes with the whole model each."""
    return two_processes(request.module.SCRIPT, tmp_path_factory.mktemp("ddp"), DDP)


@pytest.fixture(scope="module")
def fsdp2(request, tmp_path_factory):
    """The same with a shard of the model each."""
    return two_processes(request.module.SCRIPT, tmp_path_factory.mktemp("fsdp2"), FSDP2)


@pytest.fixture(scope="module")
def zero3(request, tmp_path_factory):
    """The same under DeepSpeed."""
    return two_processes(request.module.SCRIPT, tmp_path_factory.mktemp("zero3"), ZERO3)


@pytest.fixture(params=["fsdp2", "zero3"])
def sharded(request):
    """Each of those with shards."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["ddp", "fsdp2", "zero3"])
def two(request):
    """Each of the three."""
    return request.getfixturevalue(request.param)
