"""Nothing of the size of [tokens, vocabulary] comes into being while the trainer trains."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_setup import tiny_model, trainer

VOCABULARY = 9000  # several tiles of it


class LargestTensor(TorchDispatchMode):
    """Elements and shape of the largest result of any operation, forward or backward."""

    def __init__(self):
        super().__init__()
        self.largest = torch.Size([0])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.numel() > self.largest.numel():
                self.largest = leaf.shape
        return result


def largest_of_a_step(folder, monkeypatch, **settings):
    subject = trainer(
        folder, model=tiny_model(vocab_size=VOCABULARY, hidden_size=4, num_attention_heads=1, num_key_value_heads=1),
        max_completion_length=16, per_device_train_batch_size=16, num_iterations=2, max_steps=2, **settings,
    )  # fmt: skip
    seen, original = LargestTensor(), subject._compute_loss

    def watched(model, inputs):
        with seen:
            loss = original(model, inputs)
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], retain_graph=True)
        return loss

    monkeypatch.setattr(subject, "_compute_loss", watched)
    subject.train()
    tokens = 16 * 16
    return seen.largest, tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"clipping": "balanced", "polarity": "papo", "papo_warmup_updates": 1},
        {"clipping": "balanced", "gradient_accumulation_steps": 2, "steps_per_generation": 2},
    ],
)
def test_no_logits_of_all_tokens(tmp_path, monkeypatch, settings):
    largest, tokens = largest_of_a_step(tmp_path, monkeypatch, **settings)
    assert largest.numel() < tokens * VOCABULARY / 2, f"a tensor of shape {tuple(largest)} was allocated"
