"""Token records of a training run: from what TRL's loss sees to the recorder, and whole after an interruption."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (transformers types what a trainer holds as optional, or as one of many kinds)

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from equipoise.diagnostics.records import TokenRecorder, drop_after
from equipoise.diagnostics.records.columns import steered_columns
from equipoise.diagnostics.run_folder import RECORDS_FOLDER
from equipoise.models.decoding import token_decoder
from equipoise.steering import MicroBatch, Steered
from equipoise.trl.config import EquipoiseConfig

SAMPLE, REWARD = "equipoise_sample", "equipoise_reward"
"""What travels with a rollout batch through TRL's shuffling and splitting, one value per sample."""


class TokenRecording(TrainerCallback):
    """Records the tokens of every n-th update of a run, in RUN/tokens.

    Args:
        config: of the run; `record_tokens` must be positive.
        tokenizer: of the policy.
        accelerator: which process this is, of how many.
    """

    def __init__(self, config: EquipoiseConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator):
        self.every = config.record_tokens
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.group_size = config.num_generations
        self.folder = Path(str(config.output_dir)) / RECORDS_FOLDER
        self.fraction, self.seed, self.tokenizer = config.record_tokens_fraction, config.seed, tokenizer
        self.samples_per_step = config.per_device_train_batch_size * self.world_size
        self.recorder: TokenRecorder | None = None

    def samples(self, batch: dict[str, Any], rewards: Tensor, weights: Tensor, micro_step: int) -> dict[str, Tensor]:
        """Number and reward of every sample of a fresh rollout batch, to travel with it.

        Args:
            batch: what TRL made of this rank's prompts.
            rewards: of every reward function [scored samples of all ranks, functions]; NaN where one does not apply.
                Replayed samples were scored when they were fresh: their reward is NaN here.
            weights: of the functions.
            micro_step: the trainer's count of micro-batches, which a resumed run continues: it makes numbers unique.
        """
        count = len(batch["completion_ids"])
        local = torch.arange(self.rank * count, (self.rank + 1) * count)
        device = batch["completion_ids"].device
        sample = local + micro_step * self.samples_per_step
        fresh = len(rewards) // self.world_size  # replayed samples lie behind those that were just scored
        rewards = rewards[self.rank * fresh : (self.rank + 1) * fresh]
        total = (rewards * weights.to(rewards.device)).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan
        total = torch.cat([total, total.new_full((count - fresh,), torch.nan)])
        return {SAMPLE: sample.to(device), REWARD: total.to(device)}

    def record(self, update: int, inputs: dict[str, Any], batch: MicroBatch, steered: Steered, *, clips: bool) -> None:
        """Record one micro-batch, when its update is one that is recorded.

        Args:
            update: from 1.
            inputs: what TRL's loss is given.
            batch: what steering measures of it.
            steered: what steering made of it.
            clips: the loss has clip bounds, those of `steered`.
        """
        if self.recorder is None or (update - 1) % self.every:
            return
        columns = steered_columns(update, batch, steered, clips=clips)
        sample = inputs.get(SAMPLE)  # missing in a rollout batch of a run that was resumed to be recorded
        self.recorder.record(
            update=update,
            token_mask=inputs["completion_mask"],
            sample=torch.full((len(batch.ratio),), -1) if sample is None else sample,
            group=None if sample is None else sample // self.group_size,
            token_id=inputs["completion_ids"],
            prompt=_prompts(inputs),
            behavior_logprob=inputs.get("sampling_per_token_logps", columns["old_logprob"]),
            reward=inputs.get(REWARD),
            **columns,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget what a resumed run writes again."""
        fewer_ranks_now = state.is_world_process_zero
        drop_after(
            self.folder,
            state.global_step,
            ranks=lambda rank: rank == self.rank or (fewer_ranks_now and rank >= self.world_size),
        )
        self.recorder = TokenRecorder(
            self.folder,
            run=self.folder.parent.name,
            decode=token_decoder(self.tokenizer),
            rank=self.rank,
            fraction=self.fraction,
            seed=self.seed,
        )

    def close(self) -> None:
        """Write what is left, also after an interruption."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def on_step_end(self, args, state, control, **kwargs):
        """What comes before a checkpoint is on disk when it is."""
        if control.should_save and self.recorder is not None:
            self.recorder.flush()


def _prompts(inputs: dict[str, Any]) -> list[np.ndarray]:
    ids, mask = inputs["prompt_ids"].cpu().numpy(), inputs["prompt_mask"].bool().cpu().numpy()
    return [row[keep] for row, keep in zip(ids, mask, strict=True)]
