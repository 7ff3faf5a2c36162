"""The pytest plugin that puts another trainer where TRL's tests import TRL's: TRL_SUITE_TRAINER says which."""

import functools
import importlib.util
import os

import pytest
from trl import GRPOConfig, import_utils

TRAINERS = {
    "trl": "TRL's own",
    "off": "EquipoiseTrainer, given TRL's GRPOConfig",
    "on": "EquipoiseTrainer with balanced clipping and PAPO",
}


def _is_available(name: str):
    """What tests of another version of TRL ask `trl.import_utils` for: `is_X_available`."""
    if not (name.startswith("is_") and name.endswith("_available")):
        raise AttributeError(name)
    package = name.removeprefix("is_").removesuffix("_available")
    return lambda: importlib.util.find_spec(package) is not None


import_utils.__getattr__ = _is_available


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules of the tests are imported by now, and no test has run."""
    chosen = os.environ["TRL_SUITE_TRAINER"]
    modules = {item.module for item in items if isinstance(item, pytest.Function)}
    settings, features = GRPOConfig, {}
    if chosen != "trl":
        from equipoise.trl import EquipoiseConfig, EquipoiseTrainer

        for module in modules:
            module.GRPOTrainer = EquipoiseTrainer
        if chosen == "on":
            settings, features = EquipoiseConfig, {"clipping": "balanced", "polarity": "papo"}
    for module in modules:  # TRL's default, bf16, takes ten times as long on most CPUs
        module.GRPOConfig = functools.partial(settings, bf16=False, **features)
