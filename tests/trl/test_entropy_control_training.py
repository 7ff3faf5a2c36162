"""The baselines inside TRL's loss: the gradient of the whole loss by hand, any split of the update, TRL's own keys."""

import functools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from contract_setup import BATCH, assert_same, hand_made_inputs
from paper_losses import ce_gppo_loss, kl_cov_loss
from trainer_runs import own, run
from trainer_setup import config, trainer

from equipoise import BranchWeights, ClipBounds, PolicyBatch, UpdateSize, aggregate, ppo_clip, reweight_by_polarity
from equipoise.entropy_control import EntropyControl, UpdateTokens, token_draw
from equipoise.entropy_control.draw import row_identity
from equipoise.polarity import entropy_polarity
from equipoise.settings.presets import PRESETS
from equipoise.steering import Ranks
from equipoise.steering.token_control import TokenControl, token_columns
from equipoise.trl.ranks import gathered_rows

pytestmark = pytest.mark.slow

# Settings under which each method acts on some of the 30 tokens of the hand-made batch, and leaves others.
ACTIVE = {
    "clip_cov": {"fraction": 0.1, "covariance_low": 0.05},
    "kl_cov": {"fraction": 0.2, "coefficient": 0.5},
    "clip_b": {"deviations": 0.5},
    "steer": {"decay": 0.3},
    "stare": {"entropy_below": 9.0, "fraction": 0.3},
    "surprisal": {"boost": 0.5},
    "ce_gppo": {"beta_low": 0.6, "beta_high": 0.9},
}
BOUNDS = ClipBounds(0.8, 1.2)
WHOLE_LOSS = {"dapo": "token", "grpo": "sequence", "dr_grpo": "length"}


def accumulated(subject, inputs, num_parts):
    """Loss and gradients of an update in several micro-batches, as TRL's training step would have them."""
    subject.model.train()
    subject.model.zero_grad()
    subject._step, subject.current_gradient_accumulation_steps = 0, num_parts
    size = BATCH // num_parts
    parts = [
        {k: v[i * size : (i + 1) * size] if v.dim() else v for k, v in inputs.items()} for i in range(num_parts)
    ]  # fmt: skip
    subject._buffered_inputs = parts
    total = 0.0
    for number, part in enumerate(parts):
        subject.accelerator.gradient_state._set_sync_gradients(number == num_parts - 1)
        loss = subject.compute_loss(subject.model, part)
        loss.backward()
        total += loss.item()
        subject._step += 1
    return total, {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}


def update_tokens(inputs, batch, seed):
    """The tokens of the whole hand-made batch in one vector each, and their draws."""
    mask = batch.action_mask
    statistics = batch.statistics
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    row = row_identity(*(inputs[name] for name in names))[:, None].expand_as(mask)[mask]
    position = torch.arange(mask.shape[1]).expand_as(mask)[mask]
    vectors = (statistics.logprob, inputs["old_per_token_logps"], statistics.entropy, batch.advantage)
    return UpdateTokens(*(x.detach()[mask].double() for x in vectors), token_draw(row, position, seed=seed, update=0))


def by_hand(folder, name, inputs, *, loss_type="dapo", weights=None, **settings):
    """Loss and gradients of the whole update, written down through the core's objectives; and the marks."""
    subject = trainer(folder, loss_type=loss_type, **settings)
    subject.model.train()
    subject.model.zero_grad()
    batch = subject._forward(subject.model, inputs)
    mask = batch.action_mask
    control = EntropyControl(name, ACTIVE[name])
    marks = torch.zeros(mask.shape).masked_scatter(
        mask, control.mark(update_tokens(inputs, batch, subject.args.seed)).float()
    )
    advantage = batch.advantage
    if weights is not None:
        advantage = reweight_by_polarity(advantage, entropy_polarity(batch.statistics, advantage), weights)
    policy_batch = PolicyBatch(advantage, inputs["old_per_token_logps"], mask)
    if name == "ce_gppo":
        loss = ce_gppo_loss(batch.statistics, policy_batch, bounds=BOUNDS, **ACTIVE[name])
    elif name == "kl_cov":
        loss = kl_cov_loss(batch.statistics, policy_batch, bounds=BOUNDS, selected=marks > 0, coefficient=0.5)
    else:
        loss = ppo_clip(batch.statistics, PolicyBatch(advantage * marks, *_rest(policy_batch)), bounds=BOUNDS).loss
    total = aggregate(
        loss, mask, UpdateSize.of(mask), normalization=WHOLE_LOSS[loss_type],
        max_length=subject.max_completion_length if loss_type == "dr_grpo" else None,
    )  # fmt: skip
    total.backward()
    gradients = {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}
    return (total.item(), gradients), marks[mask]


def _rest(batch):
    return batch.behavior_logprob, batch.action_mask


def controlled(folder, name, num_parts=1, **settings):
    split = {
        "per_device_train_batch_size": BATCH // num_parts, "gradient_accumulation_steps": num_parts,
        "steps_per_generation": num_parts,
    }  # fmt: skip
    return trainer(folder, entropy_control=name, entropy_control_args=ACTIVE[name], **split, **settings)


@pytest.mark.parametrize("loss_type", WHOLE_LOSS)
@pytest.mark.parametrize("name", ACTIVE)
def test_gradient_is_that_of_the_whole_loss_by_hand(tmp_path, name, loss_type):
    inputs = hand_made_inputs()
    (value, expected), marks = by_hand(tmp_path, name, inputs, loss_type=loss_type)
    assert name == "ce_gppo" or len(marks.unique()) > 1
    subject = controlled(tmp_path, name, loss_type=loss_type)
    actual_value, actual = accumulated(subject, inputs, 1)
    # KL-Cov is in the gradient of a selected token, not in the value that is logged
    assert_same((value if name == "kl_cov" else actual_value, actual), (value, expected))
    plain = accumulated(trainer(tmp_path, loss_type=loss_type), inputs, 1)[1]
    assert any(not torch.allclose(actual[n], plain[n], rtol=1e-3, atol=0) for n in plain)


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("name", ACTIVE)
def test_gradient_does_not_depend_on_micro_batches(tmp_path, name, num_parts):
    inputs = hand_made_inputs()
    (_, expected), _ = by_hand(tmp_path, name, inputs)
    _, actual = accumulated(controlled(tmp_path, name, num_parts), inputs, num_parts)
    assert_same((0.0, actual), (0.0, expected))


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_selections_follow_the_tokens_when_rows_move_and_padding_grows(tmp_path, name):
    inputs = hand_made_inputs()
    expected = accumulated(controlled(tmp_path, name), inputs, 1)[1]
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    moved = {k: v[order] if v.dim() else v for k, v in inputs.items()}
    for k in ("prompt_ids", "prompt_mask"):
        moved[k] = torch.cat([torch.zeros_like(moved[k][:, :2]), moved[k]], 1)
    actual = accumulated(controlled(tmp_path, name, 2), moved, 2)[1]
    assert_same((0.0, actual), (0.0, expected), tolerance=1e-4)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov", "ce_gppo"])
def test_controls_act_on_top_of_polarity_weights(tmp_path, name):
    inputs = hand_made_inputs()
    papo = {
        "polarity": "papo", "papo_signal": "schedule", "papo_warmup_updates": 0, "papo_strength": 0.5,
    }  # fmt: skip
    (_, expected), _ = by_hand(tmp_path, name, inputs, weights=BranchWeights.of_branches(1.5, 0.5))
    assert_same((0.0, accumulated(controlled(tmp_path, name, **papo), inputs, 1)[1]), (0.0, expected))


@pytest.mark.parametrize("name", ACTIVE)
def test_tokens_outside_the_loss_enter_nothing(tmp_path, name):
    inputs = hand_made_inputs()
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][:, 1] = 0
    found = []
    for value in (0.0, torch.nan):
        inputs["old_per_token_logps"][:, 1] = value
        subject = controlled(tmp_path, name)
        subject.model.train()
        batch = subject._micro_batch(inputs, subject._forward(subject.model, inputs).statistics)
        found.append(subject.steering.token_control.marks([batch], 0)[0])
    assert torch.equal(found[0], found[1])
    outside = ~(inputs["completion_mask"].bool() & inputs["tool_mask"].bool())
    assert len(found[0][outside].unique()) == 1


class TwoRanks:
    """An accelerator of two processes as one of them sees it; the other's tensors come from outside."""

    num_processes = 2

    def __init__(self, index):
        self.process_index, self.calls, self.other = index, [], None

    def pad_across_processes(self, tensor, dim):
        length = max(len(tensor), self.other_length)
        return torch.cat([tensor, torch.full((length - len(tensor), *tensor.shape[1:]), 77).to(tensor)])

    def gather(self, tensor):
        self.calls.append(tensor)
        mine, other = tensor, tensor if self.other is None else self.other[len(self.calls) - 1]
        return torch.cat([mine, other] if self.process_index == 0 else [other, mine])


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov", "clip_b", "stare"])
def test_ranks_decide_alike_over_all_their_tokens(tmp_path, name):
    subject, inputs = controlled(tmp_path, name), hand_made_inputs()
    subject.model.train()
    halves = [{k: v[i : i + n] if v.dim() else v for k, v in inputs.items()} for i, n in ((0, 5), (5, 3))]
    parts = [subject._forward(subject.model, half) for half in halves]
    control = subject.steering.token_control
    (expected,) = control.marks([subject._forward(subject.model, inputs)], 2)
    sizes = [int(part.loss_mask.sum()) for part in parts]
    found = []
    for rank, part in enumerate(parts):
        accelerator = TwoRanks(rank)
        accelerator.other_length, other = sizes[rank], parts[1 - rank]
        # what the other rank sends: its values and its keys, each after their number and padded to the longer of both
        values, keys = (accelerator.pad_across_processes(columns, 0) for columns in token_columns(other))
        size = torch.tensor([sizes[1 - rank]])
        accelerator.other = [size, values, size, keys]
        accelerator.other_length = sizes[1 - rank]
        ranks = Ranks(all_gather=functools.partial(gathered_rows, accelerator=accelerator), rank=rank)
        found += TokenControl(control.control, ranks, control.seed).marks([part], 2)
    assert sizes[0] != sizes[1]
    torch.testing.assert_close(torch.cat(found), expected)


def test_tokens_that_trl_takes_out_of_the_loss_are_neither_counted_nor_marked(tmp_path):
    inputs = hand_made_inputs()
    subject = controlled(tmp_path, "clip_b", top_entropy_quantile=0.5)
    subject.model.train()
    batch = subject._forward(subject.model, inputs)
    mask = batch.loss_mask
    assert 0 < mask.sum() < batch.action_mask.sum()
    tokens = update_tokens(inputs, replace(batch, action_mask=mask), subject.args.seed)
    control = subject.steering.token_control
    (marks,) = control.marks([batch], 0)
    assert torch.equal(marks[mask].double(), control.control.mark(tokens))
    assert (marks[mask] == 0).any()
    assert (marks[~mask] == 1).all()


@pytest.mark.parametrize("name", ACTIVE)
def test_every_method_trains_and_says_how_much_it_changes(tmp_path, name):
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    _, log = run(
        tmp_path, entropy_control=name, entropy_control_args=ACTIVE[name], max_steps=5, learning_rate=0.1, **settings
    )
    assert len(log) == 5
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in log)
    fractions = [own(entry)["controlled_fraction"] for entry in log]
    assert all(0 <= fraction < 1 or name == "steer" for fraction in fractions)
    assert any(fractions)


@pytest.mark.parametrize("name", ["entropy_bonus", "adaptive_entropy_bonus", "top_entropy"])
def test_methods_of_trl_train(tmp_path, name):
    subject, log = run(tmp_path, entropy_control=name, max_steps=5, num_iterations=2)
    assert subject.steering.token_control is None
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in log)


def test_a_bonus_and_a_top_fraction_change_the_gradient_of_trl(tmp_path):
    inputs = hand_made_inputs()
    plain = accumulated(trainer(tmp_path), inputs, 1)[1]
    bonus = accumulated(trainer(tmp_path, entropy_control="entropy_bonus"), inputs, 1)[1]
    subject = trainer(tmp_path)
    subject.model.train()
    subject.model.zero_grad()
    batch = subject._forward(subject.model, inputs)
    (-0.01 * batch.statistics.entropy[batch.action_mask].mean()).backward()
    for n, p in subject.model.named_parameters():
        torch.testing.assert_close(bonus[n], plain[n] + p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov", "ce_gppo"])
def test_a_resumed_run_draws_as_the_whole_one(tmp_path, name):
    settings = {
        "entropy_control": name, "entropy_control_args": ACTIVE[name], "num_iterations": 2, "save_strategy": "steps",
        "save_steps": 3, "max_steps": 5,
    }  # fmt: skip
    whole, whole_log = run(tmp_path, **settings)
    for folder in tmp_path.glob("checkpoint-*"):
        marker = json.loads((folder / "equipoise.json").read_text())
        assert marker["resumable"]
    shutil.rmtree(tmp_path / "checkpoint-5")
    subject = trainer(tmp_path, **settings)
    subject.train(resume_from_checkpoint=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), subject.model.parameters(), strict=True))
    log = [entry for entry in subject.state.log_history if "loss" in entry]
    assert [own(e)["controlled_fraction"] for e in log] == [own(e)["controlled_fraction"] for e in whole_log]


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"entropy_control": "entropy_bonus", "entropy_control_args": {"bonus": "1e-3"}}, {"entropy_coef": 0.001}),
        (
            {"entropy_control": "adaptive_entropy_bonus", "entropy_control_args": {"target": 0.4}},
            {"use_adaptive_entropy": True, "entropy_target": 0.4, "entropy_coef_delta": 0.005, "entropy_coef_max": 1.0},
        ),
        ({"entropy_control": "top_entropy"}, {"top_entropy_quantile": 0.2}),
    ],
)
def test_methods_of_trl_set_trls_keys(tmp_path, settings, keys):
    chosen = config(tmp_path, **settings)
    assert {key: getattr(chosen, key) for key in keys} == keys
    assert chosen.token_control() is None


def test_a_method_and_a_clip_go_together(tmp_path):
    chosen = config(
        tmp_path, **PRESETS["clip_higher"], entropy_control="kl_cov", entropy_control_args={"fraction": "2e-2"}
    )
    assert chosen.fixed_bounds() == ClipBounds(0.8, 1.28)
    assert chosen.token_control().settings == {"fraction": 0.02, "coefficient": 1.0}
    assert config(tmp_path).token_control() is None


KL = {"entropy_control": "kl_cov"}
REFUSED = [
    (
        {"entropy_control": "clipcov"},
        "entropy_control must be one of off, entropy_bonus, .*, got entropy_control='clipco",
    ),
    ({"entropy_control_args": {"low": 0.5}}, "entropy_control_args: entropy_control is off, got 'low'"),
    (KL | {"entropy_control_args": {"low": 0.5}}, "entropy_control_args: kl_cov has fraction, coefficient, got 'low'"),
    (KL | {"entropy_control_args": {"fraction": "few"}}, "entropy_control_args: fraction must be a number, got 'few'"),
    (KL | {"entropy_control_args": {"fraction": 2}}, r"entropy_control_args: fraction of kl_cov must be in \(0, 1\]"),
    (
        {"entropy_control": "top_entropy", "entropy_control_args": {"top_fraction": 1}},
        r"entropy_control_args: top_fraction of top_entropy must be in \(0, 1\)",
    ),
    ({"entropy_control": "entropy_bonus", "entropy_coef": 0.1}, "sets entropy_coef=0.01, got entropy_coef=0.1 as well"),
    ({"entropy_control": "ce_gppo", "clipping": "balanced"}, "exclude each other: it gives back the gradients"),
    (KL | {"loss_type": "sapo"}, "'kl_cov' needs a loss that clips from both sides: .* got loss_type='sapo'"),
    (KL | {"importance_sampling_level": "sequence"}, "exclude each other: it acts on the ratios of single tokens"),
    (KL | {"off_policy_mask_threshold": 0.5}, "'kl_cov' and off_policy_mask_threshold=0.5 exclude each other"),
    (KL | {"delta": 2.0}, "'kl_cov' and delta=2.0 exclude each other"),
    (KL | {"beta": 0.1, "use_bias_correction_kl": True}, "'kl_cov' and use_bias_correction_kl=True exclude each other"),
    ({"entropy_control": "stare", "polarity": "papo"}, "'stare' and polarity='papo' exclude each other: both are clos"),
    ({"entropy_control": "adaptive_entropy_bonus", "polarity": "papo"}, "exclude each other: both are closed loops"),
    (KL | {"polarity": "positive_only"}, "'kl_cov' and polarity='positive_only' exclude each other: the ablation"),
    (
        KL | {"gradient_accumulation_steps": 4, "steps_per_generation": 3, "num_iterations": 2},
        r"gradient_accumulation_steps=4 must divide steps_per_generation \* num_iterations = 3 \* 2 = 6",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda v: str(v)[:60])
def test_refusals_name_the_field_the_rule_and_the_value(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"entropy_control": "clip_cov", "clipping": "balanced", "polarity": "papo"},
        {"entropy_control": "top_entropy", "clipping": "balanced"},
        {"entropy_control": "kl_cov", "clipping": "balanced"},
        {"entropy_control": "steer", "gradient_accumulation_steps": 4, "steps_per_generation": 2},
        {**PRESETS["wide_clip"], "polarity": "positive_only"},
        {"entropy_control": "clip_b", "loss_type": "cispo", "epsilon_high": 3.0},
        {"entropy_control": "clip_cov", "importance_sampling_level": "sequence"},
    ],
)
def test_what_makes_sense_together_trains(tmp_path, settings):
    _, log = run(tmp_path, **settings, max_steps=2, num_iterations=2)
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in log)
