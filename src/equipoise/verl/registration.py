"""Making verl use what is ours: the loss by its name, the worker in its actors, the versions of sent weights."""

import functools
from typing import Any

from verl.trainer.ppo.core_algos import register_policy_loss
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from equipoise.errors import InputError
from equipoise.verl.loss import equipoise_loss
from equipoise.verl.settings import LOSS_MODE
from equipoise.verl.worker import EquipoiseWorker


def register() -> None:
    """Register the loss and the worker in this process; a second time changes nothing.

    Raises:
        InputError: another library has put a worker of its own there, which ours would silently take the place of.
    """
    found = ActorRolloutRefWorker.actor_worker_cls
    if found is not TrainingWorker and not issubclass(found, EquipoiseWorker):
        raise InputError(
            f"ActorRolloutRefWorker.actor_worker_cls must be verl's TrainingWorker, got {found.__module__}."
            f"{found.__qualname__}: let that class extend equipoise.verl.EquipoiseWorker, or load equipoise.verl alone"
        )
    register_policy_loss(LOSS_MODE)(equipoise_loss)
    if found is TrainingWorker:
        ActorRolloutRefWorker.actor_worker_cls = EquipoiseWorker
    update_weights: Any = ActorRolloutRefWorker.update_weights
    if not hasattr(update_weights, _TELLS):
        ActorRolloutRefWorker.update_weights = _telling(update_weights)


_TELLS = "tells_equipoise"


def _telling(update_weights: Any) -> Any:
    """verl's method, which then tells our worker which version of the weights was sent."""

    @functools.wraps(update_weights)  # how verl dispatches it is in its attributes
    async def telling(self: Any, global_steps: int | None = None, mode: str = "auto") -> Any:
        result = await update_weights(self, global_steps=global_steps, mode=mode)
        if isinstance(self.actor, EquipoiseWorker):
            self.actor.weights_sent(global_steps)
        return result

    setattr(telling, _TELLS, True)
    return telling
