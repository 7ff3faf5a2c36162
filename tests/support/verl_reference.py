"""What a verl worker must come to: the same updates by the core alone, and by `EquipoiseTrainer` on TRL."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise import token_statistics
from equipoise.objectives import ppo_clip
from equipoise.steering import MicroBatch, Steering
from equipoise.types import ClipBounds, PolicyBatch

LEARNING_RATE, DUAL_CLIP, GRADIENT_NORM, NONE = 0.5, 3.0, 1.0, 1e9


def dual_clip(keys):
    """A method that sets gradients is not combined with it."""
    return NONE if "entropy_control" in keys else DUAL_CLIP


NAMES = (
    "entropy", "expanding_flow", "contracting_flow", "bounds_low", "bounds_high", "share_gradient_before",
    "share_gradient_after", "clip_fraction_low", "clip_fraction_high", "ratio_std", "phase", "reference_entropy",
    "weight_expanding_positive", "weight_contracting_negative", "controlled_fraction",
)  # fmt: skip


def logits(policy, rows):
    """Of the answers [batch, time, vocabulary]."""
    first = rows["prompts"].shape[1] - 1
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask", "position_ids")}
    return policy(**inputs).logits[:, first:-1]


def stale(policy, rows, seed=1, spread=0.6):
    """The sequences with old log-probs that are the policy's own, moved."""
    with torch.no_grad():
        logprob = token_statistics(logits(policy, rows), rows["responses"]).logprob
    old = logprob - torch.randn(logprob.shape, generator=torch.Generator().manual_seed(seed)) * spread
    return rows | {"old_log_probs": old, "rollout_log_probs": old.clone()}


def load(model):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def by_the_core(model, rows, keys, updates):
    """Scalars of each update and the weights after all of them: one process, one micro-batch, plain torch."""
    from equipoise.verl.settings import settings_of

    policy, settings, clip = load(model), settings_of(keys), dual_clip(keys)
    optimizer = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATE)
    steering = Steering(settings, fixed_bounds=ClipBounds(0.8, 1.2), seed=42)
    mask = rows["response_mask"].bool()
    values = []
    for number in range(updates):
        statistics = token_statistics(logits(policy, rows), rows["responses"])
        batch = MicroBatch.of(
            statistics,
            old_logprob=rows["old_log_probs"],
            advantage=rows["advantages"],
            action_mask=mask,
            loss_mask=mask,
            staleness=torch.full_like(rows["responses"], number),
            dual_clip=clip,
            row=identity(rows),
        )
        update = steering.open(number, moved=True, several=False)
        steered = steering.steer(update, batch)
        old = rows["old_log_probs"] if steered.old_logprob is None else steered.old_logprob
        bounds = ClipBounds(float(steered.bounds.low), float(steered.bounds.high))
        loss = ppo_clip(statistics, PolicyBatch(steered.advantage, old, mask), bounds=bounds).loss
        negative = steered.advantage < 0
        loss = torch.where(negative, torch.minimum(loss, -clip * steered.advantage), loss)
        optimizer.zero_grad()
        (torch.where(mask, loss, 0).sum() / mask.sum()).backward()
        values.append(steering.close(update, progress=(number + 1) / updates))
        torch.nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_NORM)
        optimizer.step()
    return values, dict(policy.state_dict())


def identity(rows):
    from equipoise.entropy_control.draw import row_identity

    width = rows["prompts"].shape[1]
    mask = rows["attention_mask"]
    return row_identity(rows["prompts"], mask[:, :width], rows["responses"], mask[:, width:])


def by_trl(model, rows, keys, updates, folder):
    """The same by `EquipoiseTrainer`, which is given the sequences in the place of what it would sample."""
    from datasets import Dataset

    from equipoise.trl import EquipoiseConfig, EquipoiseTrainer

    width = rows["prompts"].shape[1]
    given = {
        "prompt_ids": rows["prompts"],
        "prompt_mask": rows["attention_mask"][:, :width],
        "completion_ids": rows["responses"],
        "completion_mask": rows["attention_mask"][:, width:],
        "tool_mask": rows["response_mask"],
        "advantages": rows["advantages"],
        "old_per_token_logps": rows["old_log_probs"],
        "num_items_in_batch": rows["response_mask"].sum(),
    }

    class Given(EquipoiseTrainer):
        def _generate_and_score_completions(self, inputs):
            self._rollout_step = -1  # of an earlier policy, as the log-probs say
            return {name: value.clone() for name, value in given.items()}

    count = len(rows["prompts"])
    arguments = EquipoiseConfig(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=count, num_generations=count,
        steps_per_generation=1, num_iterations=updates, max_steps=updates, learning_rate=LEARNING_RATE, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=GRADIENT_NORM,
        delta=None if dual_clip(keys) == NONE else DUAL_CLIP, loss_type="dapo",
        save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=1, epsilon_high=0.2, seed=42, **keys,
    )  # fmt: skip
    trainer = Given(
        load(model), lambda completions, **_: [0.0] * len(completions), arguments,
        Dataset.from_dict({"prompt": ["abc"] * count}), processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "equipoise/entropy" in entry]
    values = [{name.removeprefix("equipoise/"): value for name, value in entry.items()} for entry in log]
    return values, {name: tensor.detach() for name, tensor in trainer.model.state_dict().items()}
