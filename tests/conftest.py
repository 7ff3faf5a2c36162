import os
import tempfile

# Runs are signed with a key of the user (equipoise.diagnostics.trust): tests have a user of their own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="equipoise-state-")

# Two threads on two busy cores wait for each other: tiny models are orders of magnitude faster with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from hypothesis import settings

# Triton decides at its first import, which any library may trigger, whether kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("equipoise", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("equipoise")


def pytest_collection_modifyitems(items):
    """Processes that share the tests must name them alike: an object's address differs from one to the next."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"give these cases names with ids=...: {', '.join(named)}")
