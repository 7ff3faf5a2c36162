"""Between TRL's padded rollout batch and the records of single samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from equipoise.errors import InputError
from equipoise.rollouts import Sample

NO_VERSION = -1
"""Of padding."""

# what a replayed row is made of -> its padding; None: the tokenizer's
_PROMPT = {"prompt_ids": None, "prompt_mask": 0}
_COMPLETION = {
    "completion_ids": None,
    "completion_mask": 0,
    "old_per_token_logps": 0.0,
    "policy_version": NO_VERSION,
    "tool_mask": 1,
    "ref_per_token_logps": 0.0,
}
_PER_BATCH = {"advantages", "num_items_in_batch"}


def samples_of(batch: Mapping[str, Any]) -> list[Sample]:
    """The rows of a rollout batch as records, on the CPU.

    Raises:
        InputError: the batch holds something a record has no place for (images).
        ValueError: behaviour log-probs that are none.
    """
    unknown = sorted(set(batch) - set(_PROMPT) - set(_COMPLETION) - _PER_BATCH)
    if unknown:
        raise InputError(f"replay_fraction keeps text only; this rollout batch also holds {', '.join(unknown)}")
    if batch["advantages"].dim() != 1:
        raise InputError("replay_fraction keeps one advantage per sample; this rollout batch has one per token")
    rows = {name: value.cpu() for name, value in batch.items() if name not in _PER_BATCH}
    advantages = batch["advantages"].tolist()
    return [_sample({name: value[i] for name, value in rows.items()}, a) for i, a in enumerate(advantages)]


def _sample(row: Mapping[str, Tensor], advantage: float) -> Sample:
    present = row["completion_mask"].bool()
    action = row["tool_mask"].bool()[present] if "tool_mask" in row else torch.ones(int(present.sum())).bool()
    reference = row.get("ref_per_token_logps")
    return Sample(
        prompt_ids=row["prompt_ids"][row["prompt_mask"].bool()].clone(),
        completion_ids=row["completion_ids"][present].clone(),
        behavior_logprob=row["old_per_token_logps"][present].float().where(action, 0.0),
        policy_version=row["policy_version"][present].clone(),
        action_mask=action,
        advantage=advantage,
        reference_logprob=None if reference is None else reference[present].float(),
    )


def joined(batch: dict[str, Any], samples: Sequence[Sample], *, pad_id: int, multiple_of: int = 1) -> dict[str, Any]:
    """The batch with the samples as further rows; `num_items_in_batch` is left as it was.

    Args:
        batch: of TRL, with `old_per_token_logps` and `policy_version`.
        samples: stored ones.
        pad_id: token of the padding.
        multiple_of: widths are padded to a multiple of this.
    """
    if not samples:
        return batch
    rows = [_row(sample) for sample in samples]
    result = dict(batch)
    for names, left in ((_PROMPT, True), (_COMPLETION, False)):
        for name, value in names.items():
            if name in batch:
                parts = [*batch[name].unbind(), *(row[name].to(batch[name].device) for row in rows)]
                width = -(-max(map(len, parts)) // multiple_of) * multiple_of
                filled = [_padded(part, width, pad_id if value is None else value, left=left) for part in parts]
                result[name] = torch.stack([row.to(batch[name].dtype) for row in filled])
    advantages = batch["advantages"]
    result["advantages"] = torch.cat([advantages, advantages.new_tensor([sample.advantage for sample in samples])])
    return result


def _padded(row: Tensor, width: int, value: float, *, left: bool) -> Tensor:
    missing = width - len(row)
    return pad(row, (missing, 0) if left else (0, missing), value=value)


def _row(sample: Sample) -> dict[str, Tensor]:
    row = {
        "prompt_ids": sample.prompt_ids,
        "prompt_mask": torch.ones_like(sample.prompt_ids),
        "completion_ids": sample.completion_ids,
        "completion_mask": torch.ones_like(sample.completion_ids),
        "old_per_token_logps": sample.behavior_logprob,
        "policy_version": sample.policy_version,
        "tool_mask": sample.action_mask.long(),
    }
    return row if sample.reference_logprob is None else row | {"ref_per_token_logps": sample.reference_logprob}
