"""Token records of a training run: from what TRL's loss sees to the recorder, and whole after an interruption."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (transformers types what a trainer holds as optional, or as one of many kinds)

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from equipoise.clipping import clipped_high, clipped_low
from equipoise.diagnostics.records import TokenRecorder, drop_after
from equipoise.diagnostics.run_folder import RECORDS_FOLDER
from equipoise.steering import MicroBatch, Steered
from equipoise.trl.config import EquipoiseConfig
from equipoise.types import ClipBounds

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

    def record(
        self,
        update: int,
        policy_version: int,
        inputs: dict[str, Any],
        batch: MicroBatch,
        steered: Steered,
        bounds: ClipBounds | None,
    ) -> None:
        """Record one micro-batch, when its update is one that is recorded.

        Args:
            update: from 1.
            policy_version: updates before the rollout batch was sampled, where the batch does not say it per token.
            inputs: what TRL's loss is given.
            batch: what steering measures of it.
            steered: what steering made of it.
            bounds: in force; None for a loss without.
        """
        if self.recorder is None or (update - 1) % self.every:
            return
        logprob = batch.statistics.logprob
        old = logprob.detach() if batch.old_logprob is None else batch.old_logprob
        sample = inputs.get(SAMPLE)  # missing in a rollout batch of a run that was resumed to be recorded
        is_set = torch.zeros_like(batch.loss_mask) if steered.is_set is None else steered.is_set
        # There the loss reads a gradient factor g at a ratio of 1; recorded is what the true ratio makes g of.
        reweighted_advantage = torch.where(is_set, steered.advantage / batch.ratio, steered.advantage)
        version = inputs.get("policy_version")
        clipped = {}
        if bounds is not None:
            for name, state in (("clipped_low", clipped_low), ("clipped_high", clipped_high)):
                clipped[name] = state(batch.ratio, batch.advantage, bounds) & batch.loss_mask & ~is_set
        self.recorder.record(
            update=update,
            token_mask=inputs["completion_mask"],
            sample=torch.full((len(logprob),), -1) if sample is None else sample,
            group=None if sample is None else sample // self.group_size,
            token_id=inputs["completion_ids"],
            prompt=_prompts(inputs),
            policy_version=torch.full((len(logprob),), policy_version) if version is None else version,
            behavior_logprob=inputs.get("sampling_per_token_logps", old),
            old_logprob=old,
            logprob=logprob,
            ratio=batch.ratio,
            entropy=batch.statistics.entropy,
            tendency=batch.statistics.tendency,
            advantage=batch.advantage,
            reweighted_advantage=reweighted_advantage,
            action_mask=batch.action_mask,
            loss_mask=batch.loss_mask,
            reward=inputs.get(REWARD),
            **clipped,
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
            decode=_decoder(self.tokenizer),
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


def _decoder(tokenizer: PreTrainedTokenizerBase):
    """Ids -> text in another thread: fast tokenizers refuse to be used in two at once, so it has a copy."""
    tokenizer = copy.deepcopy(tokenizer)

    def decode(ids: list[int]) -> str:
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if len(ids) == 1 and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁") and not text.startswith(" "):
            text = " " + text  # SentencePiece drops the space of a first piece
        return text

    return decode
