"""Replay in the trainer: stored rows keep the log-probs of the policy that sampled them, whatever comes between."""

import pytest
import torch
from off_policy_setup import REPLAY, SETTINGS, logprobs, witness
from peft import LoraConfig
from trainer_setup import ALPHABET, character_tokenizer, config, digit_reward, prompts, tiny_model, trainer
from transformers import LlamaForCausalLM

from equipoise.errors import InputError
from equipoise.rollouts import Sample
from equipoise.trl import EquipoiseTrainer
from equipoise.trl.off_policy_batch import joined, samples_of

ROLLOUT_FUNC = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    subject = witness(tmp_path_factory.mktemp("replay"), **REPLAY)
    subject.train()
    return subject


@pytest.mark.slow
def test_replay_does_not_degenerate_to_ratios_of_one(run):
    """The ratio of every token is pi now over pi of the policy that sampled it, both recomputed from the weights."""
    spread, at_rollout = [], {True: [], False: []}
    for step, inputs, (ratio, expected) in run.measured:
        mask = inputs["completion_mask"].bool()
        torch.testing.assert_close(ratio[mask].double(), expected[mask], rtol=2e-4, atol=1e-5)
        replayed = mask & (inputs["policy_version"] < step - step % 2)
        spread += (expected[replayed] - 1).abs().tolist()
        if step % 2 == 0 and step:  # the policy has not moved since the rollout
            for fresh, values in at_rollout.items():
                values += ratio[mask & ((inputs["policy_version"] == step) == fresh)].tolist()
    assert torch.tensor(spread).mean() > 0.05, "the policy must have moved for this test to say anything"
    fresh, replayed = (torch.tensor(at_rollout[key]) for key in (True, False))
    torch.testing.assert_close(fresh, torch.ones_like(fresh), rtol=0, atol=1e-4)
    assert len(replayed) > 100
    assert (replayed - 1).abs().gt(1e-3).float().mean() > 0.9


@pytest.mark.slow
def test_the_loss_is_given_what_was_stored(run):
    for step, batch in run.batches:
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(
            batch["old_per_token_logps"][mask].double(), run.behavior(batch)[mask], rtol=1e-4, atol=1e-5
        )
        assert "sampling_per_token_logps" not in batch
        assert (batch["policy_version"][~mask] == -1).all()
        assert (batch["policy_version"][mask] <= step).all()


@pytest.mark.slow
def test_a_batch_has_its_share_of_stored_groups_none_too_old_and_fewer_prompts_are_sampled(run):
    assert run.sampled == [16, 8, 8, 8, 8]
    for step, batch in run.batches:
        assert batch["completion_ids"].shape[0] == 16
        versions = batch["policy_version"].max(1).values
        groups = versions.view(4, 4)
        assert (groups == groups[:, :1]).all(), "whole groups"
        assert (versions[:8] == step).all()
        if step:
            assert (versions[8:] < step).all()
            assert (step - versions[8:] <= 6).all()
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    shares = [e["equipoise/replay_fraction_used"] for e in run.state.log_history if "equipoise/replay_stored" in e]
    assert shares == [0, 0.5, 0.5, 0.5, 0.5]
    ages = [e["equipoise/replay_age"] for e in run.state.log_history if "equipoise/replay_age" in e]
    assert ages == [
        (step - batch["policy_version"][8:].max(1).values).float().mean() for step, batch in run.batches[1:]
    ]


@pytest.mark.slow
def test_stored_advantages_come_back_with_their_tokens(run):
    given = {}
    for _, batch in run.batches:
        for row in range(16):
            mask = batch["completion_mask"][row].bool()
            version = int(batch["policy_version"][row].max())
            key = (
                version,
                tuple(batch["prompt_ids"][row].tolist()[-4:]),
                tuple(batch["completion_ids"][row][mask].tolist()),
            )
            given.setdefault(key, set()).add(round(batch["advantages"][row].item(), 5))
    seen_again = [key for key, values in given.items() if key[0] < run.batches[-1][0]]
    assert seen_again
    assert all(len(values) == 1 for values in given.values())


@pytest.mark.slow
def test_bounds_are_searched_although_the_policy_has_not_moved(run):
    searched = [e for e in run.state.log_history if e.get("equipoise/replay_fraction_used") == 0.5]
    assert len(searched) == 4
    assert all(e["equipoise/bounds_inactive"] == 0 and e["equipoise/ratio_std"] > 0.01 for e in searched)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo", "mask_truncated_completions": True},
        {"loss_type": "dr_grpo", "num_iterations": 2, "replay_sampling": "advantage"},
        {"clipping": "fixed", "loss_type": "cispo", "epsilon_high": 3.0, "replay_sampling": "age"},
        {"importance_sampling_level": "sequence", "gradient_accumulation_steps": 4},
        {"rollout_token_budget": 3},
        {"pad_to_multiple_of": 4},
        {"loss_type": "bnpo", "gradient_accumulation_steps": 4},
        {"clipping": "fixed", "loss_type": "sapo"},
        {"clipping": "fixed", "loss_type": "vespo"},
    ],
    ids=str,
)
def test_replay_goes_with_other_settings(tmp_path, settings):
    subject = witness(tmp_path, **(REPLAY | {"max_steps": 6, "replay_max_age": 8} | settings))
    subject.train()
    _, last = subject.batches[-1]
    mask = last["completion_mask"].bool()
    behavior = subject.behavior(last)
    if "mask_truncated_completions" not in settings:
        assert last["policy_version"].max(1).values.unique().numel() > 1
    torch.testing.assert_close(last["old_per_token_logps"][mask].double(), behavior[mask], rtol=1e-4, atol=1e-5)
    if settings.get("pad_to_multiple_of"):
        assert last["prompt_ids"].shape[1] % 4 == last["completion_ids"].shape[1] % 4 == 0
    assert all(torch.isfinite(p).all() for p in subject.model.parameters())


@pytest.mark.slow
def test_reference_logprobs_of_a_kl_term_are_stored_too(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    subject = witness(tmp_path, **REPLAY, loss_type="grpo", beta=0.1, max_steps=6, model=base)
    subject.train()
    _, last = subject.batches[-1]
    mask = last["completion_mask"].bool()
    expected = logprobs(tiny_model(), last, subject.temperature)
    torch.testing.assert_close(last["ref_per_token_logps"][mask].double(), expected[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [{}, REPLAY, {"rollout_token_budget": 3}], ids=str)
def test_no_forward_pass_is_spent_on_logprobs_that_are_known(tmp_path, stored):
    subject = trainer(tmp_path, **(SETTINGS | stored))
    subject.model.train()
    asked, original = [], subject.model.forward

    def forward(*args, **kwargs):
        asked.append("labels" in kwargs)  # TRL's pass over whole completions; sampling has no labels
        return original(*args, **kwargs)

    subject.model.forward = forward
    subject._generate_and_score_completions([{"prompt": f"{i}+1="} for i in (3, 12) for _ in range(4)])
    assert any(asked) == (not stored)
    assert not all(asked)


def test_with_an_adapter_the_recorded_logprobs_are_those_of_the_adapted_model(tmp_path):
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    subject = trainer(tmp_path, **(SETTINGS | REPLAY), peft_config=adapter)
    subject.model.train()
    batch = subject._generate_and_score_completions([{"prompt": f"{i}+1="} for i in (3, 12) for _ in range(4)])
    ids, masks = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    with torch.no_grad():
        expected, *_ = subject._get_per_token_logps_and_entropies(
            subject.model, ids, masks, batch["completion_ids"].shape[1]
        )
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["old_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)


def a_batch(**extra):
    g = torch.Generator().manual_seed(0)
    mask = (torch.arange(5) < torch.tensor([[5], [3], [1], [4]])).long()
    return {
        "prompt_ids": torch.randint(2, 17, (4, 3), generator=g)
        * torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.randint(2, 17, (4, 5), generator=g) * mask,
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5]),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": -torch.rand(4, 5, generator=g),
        "policy_version": torch.where(mask.bool(), 3, -1),
    } | extra


def test_rows_come_back_from_records_as_they_were():
    tool_mask = torch.tensor([[1, 0, 1, 0, 1]] * 4)
    batch = a_batch(tool_mask=tool_mask, ref_per_token_logps=-torch.ones(4, 5))
    both = joined(batch, samples_of(batch), pad_id=0)
    action = (batch["completion_mask"] * tool_mask).bool()
    for name, value in batch.items():
        if name in ("advantages", "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "policy_version"):
            assert torch.equal(both[name], torch.cat([value, value])), name
    for name in ("old_per_token_logps", "ref_per_token_logps", "tool_mask"):
        assert torch.equal(both[name][4:][action], batch[name][action]), name
    assert ((both["completion_mask"] * both["tool_mask"])[4:] == action).all()


def test_longer_and_shorter_rows_are_padded_on_their_sides():
    tokens = torch.arange(2, 9)
    stored = Sample(tokens[:5], tokens, -torch.ones(7), torch.full((7,), 2), torch.ones(7).bool(), 0.25)
    both = joined(a_batch(), [stored], pad_id=9, multiple_of=4)
    assert both["prompt_ids"].shape == (5, 8)
    assert both["completion_ids"].shape == both["policy_version"].shape == both["old_per_token_logps"].shape == (5, 8)
    assert both["prompt_ids"][4].tolist() == [9, 9, 9, 2, 3, 4, 5, 6]
    assert both["completion_ids"][4].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert both["completion_mask"][4].tolist() == [1] * 7 + [0]
    assert both["policy_version"][4].tolist() == [2] * 7 + [-1]
    assert both["prompt_mask"][0].tolist() == [0] * 6 + [1, 1]
    assert both["advantages"].tolist() == [1.0, -1.0, 0.5, -0.5, 0.25]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"pixel_values": torch.zeros(4, 3)}, "keeps text only; this rollout batch also holds pixel_values"),
        ({"advantages": torch.zeros(4, 5)}, "one advantage per sample; this rollout batch has one per token"),
    ],
)
def test_batches_that_no_record_can_hold_are_refused(extra, message):
    with pytest.raises(InputError, match=message):
        samples_of(a_batch(**extra))


def rollout_func(logprob):
    def rollout(asked, trainer):
        ids = [[2 + (i + trainer.state.global_step) % len(ALPHABET), 3, 4] for i in range(len(asked))]
        logprobs = None if logprob is None else [[logprob, logprob, -1.0] for _ in ids]
        masks = [[1, 0, 1] for _ in ids]
        return {
            "prompt_ids": character_tokenizer()(asked)["input_ids"],
            "completion_ids": ids,
            "logprobs": logprobs,
            "env_mask": masks,
        }

    return rollout


def custom(folder, logprob, **settings):
    return EquipoiseTrainer(
        model=tiny_model(),
        reward_funcs=digit_reward,
        args=config(folder, **(SETTINGS | REPLAY | settings)),
        train_dataset=prompts(16),
        processing_class=character_tokenizer(),
        rollout_func=rollout_func(logprob),
    )


@ROLLOUT_FUNC
@pytest.mark.parametrize(
    ("logprob", "message"),
    [
        (None, r"replay_fraction needs behaviour log-probs: .*rollout_func must return 'logprobs'"),
        (float("nan"), "replay_fraction: behaviour log-probs of sampled tokens must be finite and <= 0, got nan"),
        (1.0, "replay_fraction: behaviour log-probs of sampled tokens must be finite and <= 0, got 1.0"),
    ],
)
def test_rollouts_without_behaviour_logprobs_are_refused(tmp_path, logprob, message):
    with pytest.raises(InputError, match=message):
        custom(tmp_path, logprob).train()


@ROLLOUT_FUNC
def test_tokens_of_an_environment_stay_out_of_the_loss_when_replayed(tmp_path):
    subject = custom(tmp_path, -2.0, max_steps=4)
    subject.train()
    assert {tuple(s.action_mask.tolist()) for g in subject.off_policy.buffer.groups for s in g.samples} == {
        (True, False, True)
    }
    assert all((batch["tool_mask"] == torch.tensor([1, 0, 1])).all() for batch in subject._buffered_inputs)
    assert subject._buffered_inputs[0]["num_items_in_batch"] == 32


def test_without_replay_the_batch_is_that_of_trl(tmp_path):
    subject = trainer(tmp_path, **SETTINGS | {"max_steps": 2})
    subject.train()
    assert subject.off_policy is None
    assert "policy_version" not in subject._buffered_inputs[0]


def test_no_process_draws_more_than_the_process_with_the_fewest_groups_holds(tmp_path, monkeypatch):
    subject = witness(tmp_path, **REPLAY, max_steps=2)
    subject.train()
    assert len(subject.off_policy._draw()) == 2
    monkeypatch.setattr(subject.accelerator, "gather", lambda own: torch.cat([own, torch.ones_like(own)]))
    assert len(subject.off_policy._draw()) == 1
