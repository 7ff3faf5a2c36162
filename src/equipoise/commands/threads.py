"""How many threads a command computes with: the command line may set what holds for the whole process."""

import logging
import os
from typing import Any

import torch

logger = logging.getLogger("equipoise")

SMALL_MODEL = 20_000_000
"""Parameters below which a second thread costs more than it brings."""


def fit_threads(model: Any, *, on_cpu: bool) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Args:
        model: of transformers.
        on_cpu: where it will compute.
    """
    if on_cpu and "OMP_NUM_THREADS" not in os.environ and model.num_parameters() < SMALL_MODEL:
        torch.set_num_threads(1)
        logger.warning("Small model on a CPU: using one thread (set OMP_NUM_THREADS to choose another number).")
