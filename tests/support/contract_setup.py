"""A micro-batch made by hand, and what a trainer makes of it."""

import pytest
import torch
from trainer_setup import tiny_model

PROMPT, TIME, BATCH = 4, 6, 8


def hand_made_inputs(seed: int = 0, staleness: float = 0.5) -> dict[str, torch.Tensor]:
    """A micro-batch as TRL buffers it: uneven lengths, padding on both sides, stale log-probs, zero advantages too."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 17, (BATCH, PROMPT + TIME), generator=g)
    prompt_mask = torch.ones(BATCH, PROMPT, dtype=torch.long)
    prompt_mask[::3, 0] = 0
    lengths = torch.tensor([6, 5, 4, 3, 2, 1, 6, 3])
    completion_mask = (torch.arange(TIME) < lengths[:, None]).long()
    with torch.no_grad():
        attention = torch.cat([prompt_mask, completion_mask], 1)
        logits = tiny_model()(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
        logprob = logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.5, -0.5, 0.0, -1.0, 0.8, -0.8, 0.3, -1.2]),
        "old_per_token_logps": logprob + staleness * torch.randn(logprob.shape, generator=g),
        "num_items_in_batch": completion_mask.sum(),
    }


def loss_and_gradients(subject, inputs) -> tuple[float, dict[str, torch.Tensor]]:
    subject.model.train()
    subject.current_gradient_accumulation_steps = 1
    subject.accelerator.gradient_state._set_sync_gradients(True)
    subject.model.zero_grad()
    loss = subject.compute_loss(subject.model, dict(inputs))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, tolerance=2e-5):
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance, abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][name], gradient, rtol=tolerance, atol=1e-6 * gradient.abs().max().item() + 1e-7
        )
