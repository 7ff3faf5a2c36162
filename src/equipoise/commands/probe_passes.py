"""The completions of a probe's batch, and the statistics of their tokens in passes of some sequences at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.models.sampling import Completion
from equipoise.types import TokenStatistics


@dataclass(frozen=True)
class Rollout:
    """Completions of one batch with their group-normalised advantages; prompt and sample number each of them."""

    prompt_ids: list[list[int]]
    completions: list[Completion]
    advantages: Tensor
    rewards: list[float]


def passes(model: Any, rollout: Rollout, batch_size: int) -> Iterator[tuple[slice, TokenStatistics, Tensor]]:
    """Statistics [sequences, length - 1] of some sequences at a time, and which of their tokens were sampled."""
    for begin in range(0, len(rollout.completions), batch_size):
        place = slice(begin, begin + batch_size)
        pairs = list(zip(rollout.prompt_ids[place], rollout.completions[place], strict=True))
        length = max(len(prompt) + len(completion.ids) for prompt, completion in pairs)
        ids, labels, mask = torch.zeros(3, len(pairs), length, dtype=torch.long)
        labels -= 100
        for row, (prompt, completion) in enumerate(pairs):
            end = len(prompt) + len(completion.ids)
            ids[row, :end] = torch.tensor(prompt + completion.ids)
            labels[row, len(prompt) : end] = torch.tensor(completion.ids)
            mask[row, :end] = 1
        ids, labels, mask = (x.to(model.device) for x in (ids, labels, mask))
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        statistics = TokenStatistics(output.log_probs, output.entropy, output.tendency, output.correction)
        yield place, statistics, labels[:, 1:] != -100
