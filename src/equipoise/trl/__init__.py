"""The adapter to TRL, the only room that imports it: configuration, trainer, checkpoints, rollouts, and whole runs."""

from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.trainer import EquipoiseTrainer

__all__ = ["EquipoiseConfig", "EquipoiseTrainer"]
