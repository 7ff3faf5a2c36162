"""The trainer on TRL, and what belongs to a run: warm start, evaluation, checkpoints."""

from equipoise.training.config import EquipoiseConfig
from equipoise.training.trainer import EquipoiseTrainer

__all__ = ["EquipoiseConfig", "EquipoiseTrainer"]
