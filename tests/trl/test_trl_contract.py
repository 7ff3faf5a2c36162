"""One batch gives the same numbers through TRL as through the core, and TRL's own where nothing is switched on.

These tests fail loudly when a seam of TRL moves.
"""

from dataclasses import replace

import pytest
import torch
from contract_setup import PROMPT, assert_same, hand_made_inputs, loss_and_gradients
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
from equipoise.clipping import unclipped
from equipoise.steering.update import Update

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
    subject._open_update = lambda model: Update(0, weights, subject.args.bound_grid(), "gradient", start_of(bounds))
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


@pytest.mark.parametrize("features", [{}, {"clipping": "balanced", "bapo_high": [1.2, 1.5]}], ids=["fixed", "balanced"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_with_a_dual_clip_the_tokens_that_count_are_those_with_a_gradient(tmp_path, features, level):
    subject = trainer(tmp_path, delta=1.5, importance_sampling_level=level, **features)
    inputs, kept = hand_made_inputs(staleness=0.8), {}
    measure, add = subject._statistics, Update.add

    def statistics(*args, **kwargs):
        found, result = measure(*args, **kwargs)
        result[0].retain_grad()
        return found, (kept.setdefault("logprob", result[0]), *result[1:])

    def added(update, batch, *args):
        kept.update(batch=batch, bounds=update.bounds)
        add(update, batch, *args)

    subject._statistics = statistics
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Update, "add", added)
        loss_and_gradients(subject, inputs)
    batch = kept["batch"]
    beyond = batch.action_mask & (batch.advantage < 0) & (batch.ratio > 1.5)
    assert beyond.any()
    counted = batch.loss_mask & unclipped(batch.ratio, batch.advantage, kept["bounds"]) & (batch.advantage != 0)
    gradient = kept["logprob"].grad != 0
    if level == "sequence":  # a token has the gradient of its whole sequence
        counted, gradient = counted.any(1), gradient.any(1)
    assert torch.equal(counted, gradient)
