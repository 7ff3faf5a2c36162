"""The trainer on TRL, and what belongs to a run: warm start, evaluation, checkpoints."""

from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.trainer import EquipoiseTrainer

__all__ = ["EquipoiseConfig", "EquipoiseTrainer"]
