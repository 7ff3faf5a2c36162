"""Behaviour log-probs of transformers' `generate`, recorded while it samples: one number per token, never [T, B, V]."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class LogprobRecorder(LogitsProcessor):
    """Stands last before the temperature in the chain of processors, changes nothing, and notes what was sampled.

    The distribution sampled from is softmax(scores / temperature): transformers puts the temperature after the
    processors that a caller gives, and the settings that would come after it (top_k, top_p, min_p) are refused where
    this is used. The token of a step is known when the next step begins, and for the last one at the end.

    Args:
        temperature: of sampling, > 0.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._distribution: Tensor | None = None  # [batch, vocabulary], of the step that waits for its token
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        self._note(input_ids)
        self._distribution = (scores / self.temperature).log_softmax(-1)
        return scores

    def _note(self, input_ids: Tensor) -> None:
        if self._distribution is not None:
            self._steps.append(self._distribution.gather(1, input_ids[:, -1:]).squeeze(1))

    def logprobs(self, sequences: Int[Tensor, "batch length"], num_new: int) -> Float[Tensor, "batch {num_new}"]:
        """Log-prob, nats, of every sampled token; undefined after a sequence's end.

        Args:
            sequences: what `generate` returned.
            num_new: columns of it that are new.
        """
        if len(self._steps) < num_new:  # else generate() took a last step back
            self._note(sequences)
        return torch.stack(self._steps[:num_new], dim=1)


@contextmanager
def recorded_generation(model: Any, temperature: float) -> Iterator[list[Tensor]]:
    """Within the block, `model.generate` records; the list receives the log-probs [batch, new tokens] of each call.

    Args:
        model: the unwrapped model, whose `generate(input_ids=…)` returns the sequences.
        temperature: of sampling.
    """
    recorded: list[Tensor] = []
    own = model.__dict__.get("generate")  # transformers sets one on a model that FSDP2 shards
    original = model.generate

    def generate(*args, **kwargs):
        recorder = LogprobRecorder(temperature)
        sequences = original(*args, logits_processor=LogitsProcessorList([recorder]), **kwargs)
        recorded.append(recorder.logprobs(sequences, sequences.shape[1] - kwargs["input_ids"].shape[1]))
        return sequences

    model.generate = generate
    try:
        yield recorded
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own
