"""From what steering made of a micro-batch to the columns of its token records, the same for every host."""

from typing import Any

import torch

from equipoise.clipping import clipped_high, clipped_low
from equipoise.steering import MicroBatch, Steered


def steered_columns(update: int, batch: MicroBatch, steered: Steered, *, clips: bool) -> dict[str, Any]:
    """The columns that `TokenRecorder.record` takes, but for ids, texts, samples and rewards, which a host knows.

    Args:
        update: from 1.
        batch: what was measured.
        steered: what steering made of it.
        clips: the loss has clip bounds, those of `steered`.
    """
    logprob = batch.statistics.logprob.detach()
    is_set = torch.zeros_like(batch.loss_mask) if steered.is_set is None else steered.is_set
    columns = {
        "old_logprob": logprob if batch.old_logprob is None else batch.old_logprob,
        "logprob": logprob,
        "ratio": batch.ratio,
        "entropy": batch.statistics.entropy,
        "tendency": batch.statistics.tendency,
        "advantage": batch.advantage,
        # There the loss reads a gradient factor g at a ratio of 1; recorded is what the true ratio makes g of.
        "reweighted_advantage": torch.where(is_set, steered.advantage / batch.ratio, steered.advantage),
        "policy_version": update - 1 - batch.staleness,
        "action_mask": batch.action_mask,
        "loss_mask": batch.loss_mask,
    }
    if clips:
        for name, is_clipped in (("clipped_low", clipped_low), ("clipped_high", clipped_high)):
            columns[name] = is_clipped(batch.ratio, batch.advantage, steered.bounds) & batch.loss_mask & ~is_set
    return columns
