"""Token statistics of a micro-batch, through the door that verl keeps for distillation, and the tokens they belong to.

With `distillation_use_topk` in the batch, verl's engine hands the tempered logits of all tokens, packed, to the loss
before it computes the log-probs; what comes back per token travels with them.
"""

import torch
from jaxtyping import Float, Int, Int64
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from verl.workers.utils.padding import no_padding_2_padding

from equipoise.entropy_control.draw import row_identity
from equipoise.statistics import token_statistics
from equipoise.types import TokenStatistics

ROWS_AT_ONCE = 1024
"""Tokens whose logits are taken to float32 at a time: at a vocabulary of 150,000, 0.6 GB each for a few copies."""

_PREFIX = "equipoise_"
_NAMES = ("entropy", "tendency", "correction")


@torch.no_grad()
def packed_statistics(logits: Float[Tensor, "1 tokens vocabulary"], data: TensorDict) -> dict[str, Tensor]:
    """Entropy, tendency and correction [1, tokens] of the next token of each place, by the names in verl's output.

    Only of places whose next token is one of a response, which are all that is read: 0 elsewhere.

    Args:
        logits: at the temperature of the rollout, of all sequences one after the other.
        data: the micro-batch.
    """
    ids: Int[Tensor, " tokens"] = data["input_ids"].values()
    labels = ids.roll(-1, 0)
    if logits.shape[1] != len(labels):
        raise ValueError(
            f"verl gave logits of {logits.shape[1]} places for {len(labels)} tokens: sequence parallelism or padding "
            f"that is not supported"
        )
    places = _before_responses(data)
    parts = [token_statistics(logits[0, some], labels[some]) for some in places.split(ROWS_AT_ONCE)]
    columns = torch.stack([torch.cat([getattr(part, name) for part in parts]) for name in _NAMES])
    spread = columns.new_zeros(len(_NAMES), len(labels)).index_copy_(1, places, columns)
    return {_PREFIX + name: column[None] for name, column in zip(_NAMES, spread, strict=True)}


def _before_responses(data: TensorDict) -> Int64[Tensor, " places"]:
    """Places of the packed sequences whose next token is one of a response."""
    if data["responses"].is_nested:
        length = data["responses"].offsets().diff()
    else:
        length = data["attention_mask"][:, data["prompts"].shape[1] :].sum(1)
    end = data["input_ids"].offsets()[1:]
    place = torch.arange(len(data["input_ids"].values()), device=end.device)
    row = torch.bucketize(place, end, right=True)
    return ((place >= end[row] - length[row] - 1) & (place < end[row] - 1)).nonzero()[:, 0]


def response_statistics(model_output: dict[str, Tensor], data: TensorDict) -> TokenStatistics:
    """The statistics [batch, time] of the responses, detached, with verl's own log-probs.

    Args:
        model_output: of verl's engine, with what `packed_statistics` gave it; all but the log-probs are NaN where
            it was not asked.
        data: the micro-batch.
    """
    logprob = no_padding_2_padding(model_output["log_probs"].detach(), data)
    if _PREFIX + _NAMES[0] not in model_output:
        return TokenStatistics(logprob, *(torch.full_like(logprob, torch.nan) for _ in _NAMES))
    # In one call: verl waits for the device for every sequence.
    columns = torch.stack([model_output[_PREFIX + name].values() for name in _NAMES], 1)
    return TokenStatistics(logprob, *no_padding_2_padding(columns, data).unbind(-1))


def token_rows(data: TensorDict, name: str) -> list[Int[Tensor, " tokens"]]:
    """Prompts or responses without padding, one per sequence.

    Args:
        data: a batch of verl's, with or without padding.
        name: "prompts" or "responses".
    """
    values = data[name]
    if values.is_nested:
        return list(values.unbind())
    width = data["prompts"].shape[1]
    mask = data["attention_mask"].bool()
    mask = mask[:, :width] if name == "prompts" else mask[:, width:]
    return [row[keep] for row, keep in zip(values, mask, strict=True)]


def sequence_identity(data: TensorDict) -> Int64[Tensor, " batch"]:
    """Which sequence each row is, whatever it is padded to (`equipoise.entropy_control.draw`)."""
    prompts = _padded(token_rows(data, "prompts"), "left")
    return row_identity(*prompts, *_padded(token_rows(data, "responses"), "right"))


def _padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(rows, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids, mask
