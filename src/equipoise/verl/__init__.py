"""equipoise in verl (Ray): turned on by configuration, with the stock trainers.

    actor_rollout_ref.model.external_lib=equipoise.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=equipoise
    actor_rollout_ref.actor.policy_loss._target_=equipoise.verl.EquipoiseLossConfig
    +actor_rollout_ref.actor.policy_loss.equipoise='{clipping: balanced, polarity: papo}'

Importing this registers the loss, and the worker that verl builds its actor with; docs/verl.md tells the rest.
"""

import sys

from equipoise.errors import InputError
from equipoise.verl import compatibility

try:
    compatibility.check()
except InputError as refused:
    print(f"error: {refused}", file=sys.stderr)  # hydra hides what an import says
    raise
compatibility.without_old_trl()

from equipoise.verl.registration import register  # noqa: E402
from equipoise.verl.settings import EquipoiseLossConfig, VerlSettings  # noqa: E402
from equipoise.verl.worker import EquipoiseWorker  # noqa: E402

register()

__all__ = ["EquipoiseLossConfig", "EquipoiseWorker", "VerlSettings"]
