"""The steering of one optimizer update, on plain tensors and an all-reduce: no host, no mathematics of its own."""

from equipoise.steering.measures import UpdateMeasures
from equipoise.steering.micro_batch import MicroBatch
from equipoise.steering.ranks import Ranks
from equipoise.steering.steering import DivergedError, Steering
from equipoise.steering.token_control import Steered
from equipoise.steering.update import Update

__all__ = ["DivergedError", "MicroBatch", "Ranks", "Steered", "Steering", "Update", "UpdateMeasures"]
