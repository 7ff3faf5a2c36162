"""One batch gives the same numbers through TRL as through the core, and TRL's own where nothing is switched on.

These tests fail loudly when a seam of TRL moves.
"""

from dataclasses import replace

import pytest
import torch
from trainer_setup import config, start_of, tiny_model, trainer
from trl import GRPOConfig, GRPOTrainer

from equipoise import (
    BranchWeights,
    ClipBounds,
    PolicyBatch,
    UpdateSize,
    aggregate,
    entropy_polarity,
    ppo_clip,
    reweight_by_polarity,
    token_statistics,
)
from equipoise.training.update import Update

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


VARIANTS = [
    {"loss_type": "grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "luspo"},
    {"loss_type": "sapo"},
    {"loss_type": "vespo"},
    {"loss_type": "cispo", "epsilon_high": 3.0},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 2.0},
    {"loss_type": "dapo", "temperature": 0.7},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5},
    {"loss_type": "dapo", "entropy_coef": 0.1},
    {"loss_type": "dapo", "off_policy_mask_threshold": 0.05},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_with_both_features_off_loss_and_gradients_are_those_of_trl(tmp_path, variant):
    ours = trainer(tmp_path / "ours", **variant)
    settings = {k: v for k, v in config(tmp_path).to_dict().items() if k in ("per_device_train_batch_size", "seed")}
    trl_config = GRPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, num_generations=4, report_to="none",
        max_completion_length=8, activation_checkpointing=False, **settings, **variant,
    )  # fmt: skip
    theirs = trainer(tmp_path, trainer_class=GRPOTrainer, args=trl_config)
    inputs = hand_made_inputs()
    expected = loss_and_gradients(theirs, inputs)
    assert any(g.abs().max() > 1e-4 for g in expected[1].values())
    assert_same(loss_and_gradients(ours, inputs), expected)


NORMALIZATIONS = {"dapo": "token", "grpo": "sequence", "dr_grpo": "length"}


@pytest.mark.parametrize("loss_type", NORMALIZATIONS)
def test_clipping_and_reweighting_through_trl_equal_the_core(tmp_path, loss_type):
    bounds, weights = ClipBounds(0.7, 1.6), BranchWeights(1.4, 1.2, 0.9, 0.6)
    subject = trainer(
        tmp_path, loss_type=loss_type, clipping="balanced", polarity="papo", temperature=0.8,
        bapo_low=[bounds.low] * 2, bapo_high=[bounds.high] * 2,
    )  # fmt: skip
    subject._open_update = lambda model: Update(weights, subject.args.bound_grid(), "gradient", start_of(bounds))
    inputs = hand_made_inputs()
    through_trl = loss_and_gradients(subject, inputs)

    model = tiny_model()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    statistics = token_statistics(logits, inputs["completion_ids"], temperature=0.8)
    mask = inputs["completion_mask"].bool()
    batch = PolicyBatch(inputs["advantages"][:, None].expand_as(mask), inputs["old_per_token_logps"], mask)
    polarity = entropy_polarity(statistics, batch.advantage)
    batch = replace(batch, advantage=reweight_by_polarity(batch.advantage, polarity, weights))
    loss = aggregate(
        ppo_clip(statistics, batch, bounds=bounds).loss, mask, UpdateSize.of(mask),
        normalization=NORMALIZATIONS[loss_type], max_length=8,
    )  # fmt: skip
    loss.backward()
    core = loss.item(), {n: p.grad for n, p in model.named_parameters()}
    assert_same(through_trl, core)
