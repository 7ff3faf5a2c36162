"""Training with vLLM itself, in TRL's colocate mode: what it samples, and the log-probs it says it sampled with."""

import shutil

import pytest
import torch
from equality import equal
from off_policy_setup import PARTIAL, REPLAY, SETTINGS, Witness, logprobs
from resume_setup import history, weights
from trainer_runs import own
from trainer_setup import prompts
from trl import GRPOTrainer
from vllm_setup import MEAN_ERROR, MOST_ERROR, colocated

BOTH = {
    "clipping": "balanced",
    "bapo_target_share": 0.55,
    "polarity": "papo",
    "papo_warmup_updates": 1,
    "papo_reference_fraction": 2.0,
    "num_iterations": 3,
    "max_steps": 6,
}


def trained(subject, **arguments):
    torch.manual_seed(11)  # vLLM draws from the generator of the process
    subject.train(**arguments)
    return subject


def logged(subject):
    return [own(entry) for entry in subject.state.log_history if "loss" in entry]


@pytest.mark.parametrize("corrected", [False, True])
def test_balanced_clipping_and_papo_over_several_updates_of_a_rollout_batch(model, tmp_path, corrected):
    subject = trained(colocated(tmp_path, model, vllm_importance_sampling_correction=corrected, **BOTH))
    entries = logged(subject)
    assert [entry["staleness"] for entry in entries] == [0, 1, 2, 0, 1, 2]
    assert [entry["ratio_std"] > 1e-3 for entry in entries] == [False, True, True, False, True, True]
    assert any(entry["bounds_high"] > 1.2 + 1e-6 for entry in entries), "a search that moves nothing says nothing"
    assert {entry["phase"] for entry in entries} != {0}
    assert all(p.isfinite().all() for p in subject.model.parameters())


def test_the_engines_part_of_the_ratio_is_logged_apart(model, tmp_path):
    entries = logged(trained(colocated(tmp_path, model, **BOTH | {"vllm_importance_sampling_correction": True})))
    for entry in entries:
        assert 0 < entry["engine_logprob_error"] < MEAN_ERROR
        assert entry["engine_ratio_mean"] == pytest.approx(1, abs=MEAN_ERROR)
        assert 0 < entry["engine_ratio_std"] < MOST_ERROR
    assert entries[2]["ratio_std"] > 10 * entries[2]["engine_ratio_std"], "staleness is no part of it"


def test_with_both_features_off_the_run_is_that_of_trls_trainer(model, tmp_path):
    settings = {"num_iterations": 2, "max_steps": 4, "vllm_importance_sampling_correction": True, "optim": "sgd"}
    ours, theirs = (
        trained(colocated(tmp_path / kind, model, clipping="fixed", polarity="off", **changes, **settings))
        for kind, changes in (("ours", {}), ("theirs", {"trainer_class": GRPOTrainer}))
    )
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=0, atol=1e-6)
    start = trained(colocated(tmp_path / "start", model, max_steps=1, learning_rate=0.0)).model.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in weights(theirs).items())


@pytest.fixture(scope="module", params=[PARTIAL, REPLAY, PARTIAL | REPLAY], ids=["partial", "replay", "both"])
def off_policy(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return trained(colocated(folder, model, trainer_class=Witness, dataset=prompts(16), **SETTINGS | request.param))


def test_stored_behaviour_logprobs_are_those_of_the_policies_that_sampled(off_policy):
    """Recomputed by the trainer's model with the weights of the time, in float64."""
    errors, moved = [], []
    for step, batch in off_policy.batches:
        mask = batch["completion_mask"].bool()
        stored = batch["old_per_token_logps"].double()
        errors += (stored - off_policy.behavior(batch))[mask].abs().tolist()
        old = mask & (batch["policy_version"] < step)
        now = off_policy.policies[step]
        if old.any():
            moved += (stored - logprobs(now, batch, off_policy.temperature))[old].abs().tolist()
    errors, moved = torch.tensor(errors), torch.tensor(moved)
    assert len(errors) > 300
    assert errors.mean() < MEAN_ERROR
    assert errors.max() < MOST_ERROR
    assert len(moved) > 50
    assert moved.mean() > 20 * errors.mean(), "the policy must have moved for this test to say anything"


def test_ratios_are_taken_against_them(off_policy):
    for _, inputs, (ratio, expected) in off_policy.measured:
        mask = inputs["completion_mask"].bool()
        torch.testing.assert_close(ratio[mask].double(), expected[mask], rtol=2 * MOST_ERROR, atol=1e-5)


def test_weights_are_sent_once_per_rollout_batch(model, tmp_path):
    subject = colocated(tmp_path, model, dataset=prompts(16), **SETTINGS | PARTIAL)
    engine, sent = subject.vllm_generation, []
    sync = engine.sync_weights
    engine.sync_weights = lambda: (sent.append(subject.state.global_step), sync())
    trained(subject)
    assert sent == [0, 2, 4, 6, 8]
    assert max(e["rollout_rounds"] for e in logged(subject) if "rollout_rounds" in e) > 1


@pytest.mark.parametrize("kind", [PARTIAL, PARTIAL | REPLAY, BOTH], ids=["partial", "with replay", "on policy"])
def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(model, tmp_path, kind):
    def make(folder):
        settings = (SETTINGS | kind) | {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
        return colocated(folder, model, dataset=prompts(16), **settings)

    whole = trained(make(tmp_path / "whole"))
    resumed = make(tmp_path / "part")
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert equal(weights(resumed), weights(whole))
    assert history(resumed)[-3:] == history(whole)[-3:]


def test_sleep_mode_is_refused_by_vllm_on_a_cpu(model, tmp_path):
    with pytest.raises(ValueError, match="[Ss]leep mode is not supported"):
        colocated(tmp_path, shutil.copytree(model, tmp_path / "model"), vllm_enable_sleep_mode=True)
