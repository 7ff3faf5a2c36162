"""The part of the trainer that a run's interruption concerns: whole checkpoints, and going on exactly where one was."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false
# (transformers types what a trainer holds as optional, or as one of many kinds)

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import TrainerState
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from equipoise.diagnostics.run_folder import (
    HOST_STATE,
    check_writable,
    checkpoint_folder,
    is_foreign,
    latest_checkpoint,
    rollout_file,
)
from equipoise.paths import cause_of_failed_write
from equipoise.steering import Steering, Update
from equipoise.trl import checkpoints
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.off_policy_rollouts import OffPolicyRollouts
from equipoise.trl.ranks import gathered_data
from equipoise.trl.seams import EpochSampler, UnloggedLoss
from equipoise.trl.stopping import Stopping
from equipoise.trl.token_recording import TokenRecording

logger = logging.getLogger("equipoise")

_OTHERS_STATE = {
    "optimizer": ("optimizer.*", "optimizer_0", "global_step*"),  # of one process or DDP, of FSDP, of DeepSpeed
    "scheduler": ("scheduler.pt",),
    "random state": ("rng_state*.pth",),
}
"""What transformers restores from a checkpoint of another trainer where it finds it, and the files that hold it."""

_HOW_TO_RESUME = {
    "FSDP": "with `accelerate launch` and an FSDP configuration; in one process with --num_processes 1",
    "DeepSpeed": "with `accelerate launch` and its configuration, in as many processes",
}


def _holds(checkpoint: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in checkpoint.glob(pattern))


class ResumableTrainer(GRPOTrainer):
    """TRL's trainer with checkpoints that are whole or not there, and runs that resume exactly.

    `EquipoiseTrainer` owns the state; here it is written and read.
    """

    args: EquipoiseConfig
    steering: Steering
    off_policy: OffPolicyRollouts | None
    _prompt_order: EpochSampler | None = None  # a streamed data set has none
    _recording: TokenRecording | None
    _update: Update | None
    _rollout_step: int
    _rollout_reward: float

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """TRL's `train`; `resume_from_checkpoint=True` takes the newest complete checkpoint of the run.

        A resumed run continues exactly: controller, rollout batch in use, order of the data and random state included.
        One of GRPOTrainer is continued too; what equipoise would add to it begins anew then.

        Raises:
            CheckpointError: nothing complete to resume from, or a checkpoint that was sharded otherwise.
        """
        if resume_from_checkpoint is True:
            latest = latest_checkpoint(self.args.output_dir, foreign=True)
            if latest is None:
                raise checkpoints.CheckpointError(f"{self.args.output_dir} has no complete checkpoint to resume from")
            resume_from_checkpoint = str(latest)
        check_writable(self.args.output_dir)
        if resume_from_checkpoint:
            self._on_main_process(lambda: self._check_resumable(Path(resume_from_checkpoint)))
        self._count_from_zero()
        if self.off_policy is not None:
            self.off_policy.reset()
        try:
            with self._ended_by_sigterm():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self._recording is not None:
                self._recording.close()

    @contextmanager
    def _ended_by_sigterm(self) -> Iterator[None]:
        """With `enable_jit_checkpoint`, which in transformers saves in the middle of an update: after the update."""
        watched = any(isinstance(callback, Stopping) for callback in self.callback_handler.callbacks)
        if watched or not self.args.enable_jit_checkpoint:
            yield
            return
        stopping = Stopping(self)
        self.add_callback(stopping)
        try:
            with stopping.watching((signal.SIGTERM,), raises=False):
                yield
        finally:
            self.remove_callback(stopping)

    def _count_from_zero(self) -> None:
        """After an earlier call: transformers counts updates from 0 again, while TRL goes on in its rollout batch."""
        self._rollout_step -= self.state.global_step
        if self._update is not None or self.off_policy is not None:
            # An update that was interrupted begins with data that lie in one place; stored groups are gone.
            self._step -= self._step % (self.args.steps_per_generation * self.num_iterations)
            self._buffered_inputs = None
        self._update = None

    def _on_main_process(self, check: Callable[[], None]) -> None:
        """A check that reads much, made once; what it refuses is refused on every process, so that none waits."""
        refused = None
        if self.accelerator.is_main_process:
            try:
                check()
            except checkpoints.CheckpointError as error:
                refused = str(error)
        refused = gathered_data(refused, self.accelerator)[0]
        if refused is not None:
            raise checkpoints.CheckpointError(refused)

    def _check_resumable(self, checkpoint: Path) -> None:
        if not checkpoint.is_dir():
            raise checkpoints.CheckpointError(f"{checkpoint} to resume from does not exist")
        if is_foreign(checkpoint):
            with checkpoints.reading(checkpoint):
                TrainerState.load_from_json(str(checkpoint / HOST_STATE))
        elif not checkpoints.check_whole(checkpoint).get("resumable", True):
            raise checkpoints.CheckpointError(
                f"{checkpoint} was saved with save_only_model: it has no optimizer state to resume from"
            )
        saved_by = checkpoints.sharding_of(checkpoint)
        if saved_by is not None and saved_by != self._sharding:
            how = _HOW_TO_RESUME[saved_by]
            raise checkpoints.CheckpointError(f"{checkpoint} was saved by {saved_by}: resume {how}")
        if saved_by is None and self._sharding is not None:
            raise checkpoints.CheckpointError(
                f"{checkpoint} was not saved by {self._sharding}: resume without it, or start a new run from its model"
            )

    @property
    def _sharding(self) -> str | None:
        if self.is_deepspeed_enabled:
            return "DeepSpeed"
        return "FSDP" if self.is_fsdp_enabled else None

    def _get_train_sampler(self, dataset=None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        self._prompt_order = EpochSampler(sampler) if isinstance(sampler, RepeatSampler) else None
        return self._prompt_order or sampler

    def _run_epoch(self, model, epoch, *args, **kwargs):
        # transformers would train a complete run that is resumed for one update more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # Where a run resumes, on several processes, accelerate puts the sampler into more wrappers than it looks into.
        if self._prompt_order is not None:
            self._prompt_order.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        run_folder = self._get_output_dir(trial=trial)
        folder = checkpoint_folder(run_folder, self.state.global_step)
        with self._whole_checkpoint(folder):
            if self.args.should_save:
                checkpoints.begin(folder)
            self.accelerator.wait_for_everyone()  # no process may write into what is moved aside
            with self._nothing_removed():  # not before this one is marked complete
                super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                torch.save(self._rollout_state(), folder / self._rollout_state_name)
                if self.off_policy is not None:
                    self.off_policy.save(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                state = self.steering.state_dict() | {"resumable": not self.args.save_only_model}
                checkpoints.write_marker(folder, state)
        if self.args.should_save:
            checkpoints.rotate(run_folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _finalize_training(self, trial, *args, **kwargs):
        with self._nothing_removed():
            output = super()._finalize_training(trial, *args, **kwargs)
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            checkpoints.discard_incomplete(self._get_output_dir(trial=trial))
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            checkpoints.keep_only(self._get_output_dir(trial=trial), best)
        return output

    @contextmanager
    def _nothing_removed(self) -> Iterator[None]:
        """Within the block, transformers removes no checkpoints: it would not ask who wrote them."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    @contextmanager
    def _whole_checkpoint(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self.args.should_save:
                checkpoints.discard_incomplete(folder.parent)
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            cause = cause_of_failed_write(error, folder.parent)
            if self.args.should_save:
                checkpoints.discard_incomplete(folder.parent)
            usable = latest_checkpoint(folder.parent)
            raise checkpoints.CheckpointError(
                f"checkpoint {folder} could not be written: {cause}. "
                + (f"The previous one, {usable}, is complete." if usable else "There is no earlier one.")
            ) from error

    @property
    def _rollout_state_name(self) -> str:
        return rollout_file(self.accelerator.process_index)

    def _rollout_state(self) -> dict[str, Any]:
        """What this rank needs to go on in the middle of a rollout batch, or between two logs."""
        exhausted = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return {
            "world_size": self.accelerator.num_processes,
            "step": self._step,
            "rollout_step": self._rollout_step,
            "rollout_reward": self._rollout_reward,
            "last_entropy": self.steering.last_entropy,
            "buffered_inputs": None if exhausted else self._buffered_inputs,
            "metrics": dict(self._metrics["train"]),
            "unlogged_loss": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs) -> None:
        with checkpoints.reading(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_rng_state(self, checkpoint) -> None:
        with checkpoints.reading(Path(str(checkpoint))):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        with checkpoints.reading(Path(str(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                self._load_own(Path(checkpoint))

    def _load_own(self, checkpoint: Path) -> None:
        """What equipoise adds to a checkpoint."""
        self.state.compute_steps(self.args, self.state.max_steps)  # else save_steps and the like stay as they were
        if is_foreign(checkpoint):
            self._begin_anew(checkpoint)
            return
        marker = checkpoints.read_marker(checkpoint)
        # max_steps may have changed since
        self.steering.load_state_dict(marker, progress=self._progress(self.state.global_step))
        path = checkpoint / self._rollout_state_name
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
        if state is None or state["world_size"] != self.accelerator.num_processes:
            logger.warning(
                "Resuming with another number of processes: the rollout batch in use is sampled again; "
                "stored groups and unfinished completions, if any, begin anew."
            )
            self._sample_again()
            return
        if self.off_policy is not None:
            self.off_policy.load(checkpoint)
        self._step, self._rollout_step = state["step"], state["rollout_step"]
        self._rollout_reward, self.steering.last_entropy = state["rollout_reward"], state["last_entropy"]
        self._buffered_inputs = send_to_device(state["buffered_inputs"], self.accelerator.device)
        self._metrics["train"].clear()
        self._metrics["train"].update(state["metrics"])
        self.add_callback(UnloggedLoss(self, state["unlogged_loss"], state["last_logged_step"]))

    def _begin_anew(self, checkpoint: Path) -> None:
        """Go on from another trainer's checkpoint: with what transformers has restored of it."""
        lacking = [name for name, files in _OTHERS_STATE.items() if not _holds(checkpoint, files)]
        logger.warning(
            "%s is of another trainer: the run goes on from it. The controller, the rollout batch in use and stored "
            "groups begin anew%s.",
            checkpoint,
            f", and so do {', '.join(lacking)}, which it lacks" if lacking else "",
        )
        self._sample_again()

    def _sample_again(self) -> None:
        """The next micro-batch begins a rollout batch."""
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        self._buffered_inputs = None

    def _progress(self, num_updates: int) -> float:
        return min(num_updates / self.state.max_steps, 1.0) if self.state.max_steps > 0 else 0.0
