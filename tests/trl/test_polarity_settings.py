"""What the polarity settings do to TRL's loss: quadrants, tanh weights, branch ablations, release, nothing to learn."""

import pytest
import torch
from contract_setup import assert_same, hand_made_inputs, loss_and_gradients
from trainer_runs import own, run
from trainer_setup import trainer

from equipoise import (
    BranchWeights,
    ClipBounds,
    PolicyBatch,
    ScheduleSignal,
    UpdateSize,
    aggregate,
    entropy_polarity,
    ppo_clip,
    reweight_by_polarity,
)
from equipoise.steering.update import UpdateMeasures
from equipoise.steering.watches import IDLE_UPDATES, IdleWatch

SCHEDULE = {"polarity": "papo", "papo_signal": "schedule", "papo_warmup_updates": 0}
RARE_STEPS = SCHEDULE | {"papo_strength": 1.0, "papo_quadrants": ["expanding_positive"]}


def gradients(folder, **settings):
    return loss_and_gradients(trainer(folder, **settings), hand_made_inputs())


def by_hand(folder, make_advantage):
    """Loss and gradients of the clipped surrogate with advantages made from A and P, through the core."""
    subject, inputs = trainer(folder), hand_made_inputs()
    subject.model.train()
    subject.model.zero_grad()
    with torch.enable_grad():
        batch = type(subject)._forward(subject, subject.model, inputs)
    mask = batch.action_mask
    advantage = make_advantage(batch.advantage, entropy_polarity(batch.statistics, batch.advantage))
    policy_batch = PolicyBatch(advantage, inputs["old_per_token_logps"], mask)
    loss = ppo_clip(batch.statistics, policy_batch, bounds=ClipBounds(0.8, 1.2)).loss
    total = aggregate(loss, mask, UpdateSize.of(mask), normalization="token")
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}


def test_the_lead_of_reinforced_rare_steps_is_a_setting(tmp_path):
    weights = BranchWeights(expanding_positive=2.0)
    expected = by_hand(tmp_path, lambda a, p: reweight_by_polarity(a, p, weights))
    assert_same(gradients(tmp_path, **RARE_STEPS), expected)


def test_tanh_weights_reach_the_loss(tmp_path):
    weights = BranchWeights.of_branches(1.5, 0.5)
    settings = SCHEDULE | {"papo_tanh_scale": 0.05}
    expected = by_hand(tmp_path, lambda a, p: reweight_by_polarity(a, p, weights, tendency_scale=0.05))
    assert_same(gradients(tmp_path, **settings), expected)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_the_two_branch_ablations_add_up_to_the_base_method(tmp_path, loss_type):
    settings = {"loss_type": loss_type} | ({"epsilon_high": 3.0} if loss_type == "cispo" else {})
    whole = gradients(tmp_path, **settings)
    positive = gradients(tmp_path, polarity="positive_only", **settings)
    negative = gradients(tmp_path, polarity="negative_only", **settings)
    together = {name: value + negative[1][name] for name, value in positive[1].items()}
    assert_same((positive[0] + negative[0], together), whole)
    assert all(value.abs().max() > 0 for value in (*positive[1].values(), *negative[1].values()))


def test_each_ablation_keeps_its_own_branch(tmp_path):
    expected = by_hand(tmp_path, lambda a, p: a * (p > 0))
    assert_same(gradients(tmp_path, polarity="positive_only"), expected)


def test_ablations_train_and_log_no_controller(tmp_path):
    _, log = run(tmp_path, polarity="negative_only", max_steps=2, num_iterations=2)
    assert "phase" not in own(log[-1])
    assert own(log[-1])["expanding_flow"] > 0, "flows are measured before anything is taken out"


def test_phase_follows_the_progress_of_the_run_and_is_released(tmp_path):
    _, log = run(tmp_path, **SCHEDULE, papo_phases=[0.0, 1.0], papo_release_after=0.75, max_steps=8)
    assert [own(entry)["phase"] for entry in log] == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 0, 0])


@pytest.mark.slow
def test_a_run_that_is_made_longer_follows_its_new_length(tmp_path):
    settings = SCHEDULE | {"papo_phases": [0.0, 1.0], "save_strategy": "steps", "save_steps": 2}
    run(tmp_path, **settings, max_steps=2)
    subject = trainer(tmp_path, **settings, max_steps=4)
    subject.train(resume_from_checkpoint=True)
    phases = [own(entry)["phase"] for entry in subject.state.log_history if "loss" in entry]
    assert phases == pytest.approx([0, 0.5, 0.5, 0.75])


@pytest.mark.parametrize("signal", ["trend", "balance"])
def test_every_signal_trains(tmp_path, signal):
    subject, log = run(tmp_path, polarity="papo", papo_signal=signal, papo_warmup_updates=1, max_steps=4)
    assert any(own(entry)["phase"] for entry in log)
    assert subject.steering.controller.signal != ScheduleSignal()


def test_quadrants_are_steered_by_their_own_flow(tmp_path):
    settings = {"papo_signal": "balance", "papo_quadrants": ["contracting_positive"]}
    subject, log = run(tmp_path, polarity="papo", papo_warmup_updates=1, **settings, max_steps=3)
    authority = own(log[-1])["demanded_authority"]
    assert abs(authority) > abs(own(log[-1])["balance_authority"]) > 0
    assert subject.steering.controller.phase == pytest.approx(max(min(authority / 0.5, 1), -1))


def measures(num_tokens, num_with_advantage):
    sums = {"tokens": float(num_tokens), "nonzero_advantage": float(num_with_advantage)}
    return UpdateMeasures(sums, torch.zeros(6).double(), torch.zeros(1).double(), None, None)


def test_says_once_when_there_is_nothing_to_learn(caplog):
    watch = IdleWatch()
    for _ in range(IDLE_UPDATES - 1):
        watch.observe(measures(8, 0), 12)
    watch.observe(measures(0, 0), 12)  # all masked: neither idle nor not
    assert not caplog.records
    for _ in range(3 * IDLE_UPDATES):
        watch.observe(measures(8, 0), 12)
    assert caplog.text.count("Update 12: all advantages have been zero for 10 updates") == 1
    watch.observe(measures(8, 1), 12)
    for _ in range(IDLE_UPDATES):
        watch.observe(measures(8, 0), 12)
    assert caplog.text.count("all advantages have been zero") == 2


def test_the_trainer_watches_for_equal_rewards(tmp_path):
    subject = trainer(tmp_path, max_steps=3)
    subject.reward_funcs[0] = lambda completions, **columns: [1.0] * len(completions)
    subject.train()
    assert subject.steering.watches[0].idle_updates == 3
