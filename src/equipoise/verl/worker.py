"""The worker that verl builds its actor with once `equipoise.verl` is loaded: verl's own, with steered updates.

With another loss than "equipoise" it is verl's own and no more.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from equipoise.diagnostics.run_folder import CHECKPOINT_MARKER
from equipoise.errors import InputError
from equipoise.files import write_at_once, writing
from equipoise.inputs.json_text import json_value
from equipoise.steering import Steering
from equipoise.verl.checks import check_actor
from equipoise.verl.origin import Versions, examine
from equipoise.verl.ranks import group_ranks
from equipoise.verl.recording import RunFolder
from equipoise.verl.settings import LOSS_MODE, settings_in
from equipoise.verl.updates import SteeredUpdates, fixed_bounds

logger = logging.getLogger("equipoise")

FORMAT = 1


class EquipoiseWorker(TrainingWorker):
    """verl's `TrainingWorker`, whose optimizer updates are steered.

    Attributes:
        updates: what stands around the engine; None with another loss.
        versions: of the weights that were sent to the rollout engine.
        steps: verl's steps so far, of which each may have several updates.
        samples: sequences so far, of all ranks.
    """

    updates: SteeredUpdates | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_loss_fn(self, loss_fn):
        """verl's own; where the loss is ours, the engine is steered from here on.

        Raises:
            InputError: something in the configuration that does not go with equipoise; another loss after ours.
        """
        keywords: dict[str, Any] = getattr(loss_fn, "keywords", {})  # of the partial that verl makes
        config = keywords.get("config")
        ours = config is not None and config.policy_loss.loss_mode == LOSS_MODE
        if self.updates is not None and not ours:
            raise InputError(f"the actor was built with loss_mode={LOSS_MODE}, and cannot be given another loss later")
        super().set_loss_fn(loss_fn)
        if self.updates is not None or config is None or not ours:
            return
        settings = settings_in(config.policy_loss)
        check_actor(loss_fn, config, settings, self.model_config)
        self.versions, self.steps, self.samples = Versions(), 0, 0
        group = self.engine.get_data_parallel_group()
        self.ranks, self.world_size_of_update = group_ranks(group), dist.get_world_size(group)
        steering = Steering(
            settings,
            fixed_bounds=fixed_bounds(config),
            ranks=self.ranks,
            seed=config.data_loader_seed or 0,
            learning_rate=config.optim.lr,
        )
        folder = None
        if settings.output_dir is not None:
            folder = RunFolder(settings, self.model_config.tokenizer, self.ranks.rank, self.world_size_of_update)
            folder.make()
        self.updates = SteeredUpdates(config, settings, steering, folder)
        self.updates.around(self.engine)

    def weights_sent(self, version: int | None) -> None:
        """The rollout engine samples with the weights as they are now from here on.

        Args:
            version: verl's number of them, a global step; None where it gives none.
        """
        if self.updates is not None and version is not None:
            self.versions.sent(int(version), self.updates.number)

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        """verl's own: a step of one or several updates."""
        updates = self.updates
        if updates is None:
            return super().train_mini_batch(data)
        if updates.folder is not None:
            updates.folder.begin(updates.number)
        updates.origin = examine(data, self.versions, self.ranks, updates=updates.number, samples=self.samples)
        self.samples += len(data) * self.world_size_of_update
        self._updates_of_step = self._count_updates(data)
        try:
            return super().train_mini_batch(data)
        finally:
            updates.origin = None
            self.steps += 1
            if updates.folder is not None:
                updates.folder.flush()

    def _count_updates(self, data: TensorDict) -> int:
        rows = len(data) * self.world_size_of_update
        size = tu.get_non_tensor_data(data, "mini_batch_size", None)
        count = tu.get_non_tensor_data(data, "num_mini_batch", None) if size is None else rows // size
        return max(int(count or 1), 1) * int(tu.get_non_tensor_data(data, "epochs", 1))

    def train_batch(self, data: TensorDict) -> TensorDict:
        """verl's own: one optimizer update."""
        updates = self.updates
        if updates is None:
            return super().train_batch(data)
        assert updates.origin is not None, "an update outside of a step"
        updates.progress = self._progress(updates.number + 1 - updates.origin.updates)
        rate = self.engine.optimizer.param_groups[0]["lr"]
        output = super().train_batch(data)
        if updates.folder is not None and output is not None:
            self._log(tu.get(output, "metrics"), rate)
        return output

    def _progress(self, updates_in_step: int) -> float:
        """Fraction of the run that is done once so many updates of the step are."""
        # verl numbers weights by its steps, of which some may train no actor (critic_warmup).
        steps = max(self.versions.updates, default=self.steps)
        return self._fraction(steps + updates_in_step / self._updates_of_step)

    def _fraction(self, steps: float) -> float:
        total = getattr(self.optimizer_config, "total_training_steps", -1) or -1
        return min(steps / total, 1.0) if total > 0 else 0.0

    def _log(self, metrics: dict[str, Any], learning_rate: float) -> None:
        assert self.updates is not None and self.updates.folder is not None and self.updates.origin is not None
        values = {name: _first(value) for name, value in metrics.items() if name.startswith("equipoise/")}
        values |= {f"equipoise/{name}": value for name, value in self.updates.origin.rewards.items()}
        values |= {"equipoise/learning_rate": learning_rate, "equipoise/gradient_norm": metrics.get("grad_norm")}
        self.updates.folder.log(self.updates.number, values | {"loss": metrics["loss"]})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """verl's own, and the state of equipoise beside it: `equipoise.json` in the actor's folder."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.updates is not None and dist.get_rank() == 0 and local_path is not None:
            path = Path(local_path) / CHECKPOINT_MARKER
            with writing(path):
                write_at_once(path, json.dumps(self._state(), indent=2))

    def _state(self) -> dict[str, Any]:
        assert self.updates is not None
        return {
            "format": FORMAT,
            "updates": self.updates.number,
            "steps": self.steps,
            "samples": self.samples,
            "versions": {str(version): updates for version, updates in self.versions.updates.items()},
            "last_entropy": self.updates.steering.last_entropy,
            **self.updates.steering.state_dict(),
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """verl's own, then the state of equipoise. A checkpoint without one goes on with a fresh controller.

        Raises:
            InputError: a state that cannot be read.
        """
        text = [self._read_state(local_path)] if self.updates is not None else []
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if self.updates is None:
            return
        if self.updates.folder is not None:
            self.updates.folder.end()  # what comes now follows the checkpoint, not what was written last
        dist.broadcast_object_list(text)  # of all nodes' disks, that of the first rank has it
        if text[0] is None:
            if dist.get_rank() == 0:
                logger.warning(
                    "%s has no %s: model, optimizer and data go on; controllers, bounds and counts begin anew.",
                    local_path, CHECKPOINT_MARKER,
                )  # fmt: skip
            return
        self._restore(text[0], os.path.join(local_path, CHECKPOINT_MARKER))

    @staticmethod
    def _read_state(local_path: str | None) -> str | None:
        path = Path(str(local_path)) / CHECKPOINT_MARKER
        if dist.get_rank() != 0 or local_path is None or not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as refused:
            raise InputError(f"{path} cannot be read: {refused.strerror or refused}") from refused

    def _restore(self, text: str, origin: str) -> None:
        assert self.updates is not None
        try:
            state = json_value(text.encode())
            if state["format"] > FORMAT:
                raise InputError(f"{origin} is of a newer format than this version of equipoise reads ({FORMAT})")
            self.updates.number, self.steps, self.samples = (int(state[key]) for key in ("updates", "steps", "samples"))
            self.versions = Versions({int(version): int(updates) for version, updates in state["versions"].items()})
            self.updates.steering.load_state_dict(state, progress=self._progress_of_steps())
            self.updates.steering.last_entropy = float(state["last_entropy"])
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{origin} is damaged: {error!r}; use another checkpoint") from error

    def _progress_of_steps(self) -> float:
        """As at the end of the step that was saved, whose weights were not sent yet."""
        return self._fraction(max(self.versions.updates) + 1 if self.versions.updates else self.steps)


def _first(value: Any) -> float:
    """The value of a scalar that is the same on all ranks, from verl's list of what the ranks had."""
    while isinstance(value, list):
        value = value[0]
    return float(value)
