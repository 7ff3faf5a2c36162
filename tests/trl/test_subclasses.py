"""Subclasses of the trainer, as TRL's users write them: what they change is changed, as with GRPOTrainer."""

import inspect

import pytest
import torch
from trainer_setup import character_tokenizer, digit_reward, prompts, tiny_model
from trl import GRPOConfig, GRPOTrainer

from equipoise.errors import InputError
from equipoise.trl import EquipoiseConfig, EquipoiseTrainer
from equipoise.trl.private_names import METHODS
from equipoise.trl.seams import answers

pytestmark = pytest.mark.slow

SETTINGS = {
    "use_cpu": True, "bf16": False, "activation_checkpointing": False, "seed": 7, "per_device_train_batch_size": 8,
    "num_generations": 4, "max_completion_length": 8, "learning_rate": 1e-2, "optim": "sgd", "max_steps": 3,
    "num_iterations": 2, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip


def constant(completions, **columns) -> list[float]:
    return [1.0] * len(completions)


def subclass(base, changes):
    """A subclass of TRL's trainer or of ours, with the methods that `changes` makes."""
    return type("Changed", (base,), {name: method(base) for name, method in changes.items()})


def trained(folder, base, changes, *, reward=digit_reward, **settings):
    kind = EquipoiseConfig if issubclass(base, EquipoiseTrainer) else GRPOConfig
    subject = subclass(base, changes)(
        model=tiny_model(), reward_funcs=reward, args=kind(str(folder), **(SETTINGS | settings)),
        train_dataset=prompts(), processing_class=character_tokenizer(),
    )  # fmt: skip
    subject.train()
    return subject


def rewards_instead(base):
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        return torch.tensor(digit_reward(completions))[:, None]

    return _calculate_rewards


def rewards_added(base):
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        added = torch.tensor(digit_reward(completions))[:, None]
        return base._calculate_rewards(self, inputs, prompts, completions, completion_ids_list) + added

    return _calculate_rewards


def rewards_by_name(base):
    def _calculate_rewards(self, **kwargs):
        return 2 * base._calculate_rewards(self, **kwargs)

    return lambda self, inputs, prompts, completions, completion_ids_list: _calculate_rewards(
        self, inputs=inputs, prompts=prompts, completions=completions, completion_ids_list=completion_ids_list
    )


def batch_instead(base):
    def _generate_and_score_completions(self, inputs):
        g = torch.Generator().manual_seed(self.state.global_step)
        ids, completion = torch.full((len(inputs), 2), 3), torch.randint(2, 12, (len(inputs), 5), generator=g)
        return {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": completion,
            "completion_mask": torch.ones_like(completion),
            "old_per_token_logps": torch.full(completion.shape, -2.0),
            "advantages": torch.randn(len(inputs), generator=g),
            "num_items_in_batch": torch.tensor(completion.numel()),
        }

    return _generate_and_score_completions


def turn_instead(base):
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        return [[2 + number % 10, 3, 1] for number in range(len(prompt_ids))], None

    return _generate_single_turn


def doubled_loss(base):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 2 * base.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    return compute_loss


def loss_instead(base):
    def _compute_loss(self, model, inputs):
        ids, mask = (torch.cat([inputs[f"{p}_{n}"] for p in ("prompt", "completion")], dim=1) for n in ("ids", "mask"))
        logprob, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])
        return -(logprob * inputs["advantages"][:, None] * inputs["completion_mask"]).sum() / 100

    return _compute_loss


def halved_advantages(base):
    def _generate_and_score_completions(self, inputs):
        batch = base._generate_and_score_completions(self, inputs)
        return batch | {"advantages": batch["advantages"] / 2}

    return _generate_and_score_completions


CHANGES = {
    "rewards_instead": ({"_calculate_rewards": rewards_instead}, digit_reward),
    "rewards_added": ({"_calculate_rewards": rewards_added}, constant),
    "rewards_by_name": ({"_calculate_rewards": rewards_by_name}, digit_reward),
    "batch_instead": ({"_generate_and_score_completions": batch_instead}, digit_reward),
    "turn_instead": ({"_generate_single_turn": turn_instead}, digit_reward),
    "doubled_loss": ({"compute_loss": doubled_loss}, digit_reward),
    "loss_instead": ({"_compute_loss": loss_instead}, digit_reward),
    "halved_advantages": ({"_generate_and_score_completions": halved_advantages}, digit_reward),
}


@pytest.mark.parametrize("name", CHANGES)
def test_with_both_features_off_a_subclass_trains_what_it_does_on_trls_trainer(tmp_path, name):
    changes, reward = CHANGES[name]
    theirs, ours = (trained(tmp_path, base, changes, reward=reward) for base in (GRPOTrainer, EquipoiseTrainer))
    start = tiny_model().state_dict()
    assert any(not torch.equal(start[key], value) for key, value in theirs.model.state_dict().items()) or (
        name == "turn_instead"
    )
    for key, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], value, rtol=0, atol=1e-6)


def test_who_samples_by_itself_is_still_told_how_stale_its_data_are(tmp_path):
    changes = {"_generate_and_score_completions": batch_instead}
    subject = trained(tmp_path, EquipoiseTrainer, changes, max_steps=4, clipping="balanced", polarity="papo")
    assert [log["equipoise/staleness"] for log in subject.state.log_history[:4]] == [0, 1, 0, 1]


@pytest.mark.parametrize("stored", [{"replay_fraction": 0.5}, {"rollout_token_budget": 4}], ids=str)
def test_who_samples_by_itself_cannot_have_stored_rollouts(tmp_path, stored):
    with pytest.raises(InputError, match=f"{next(iter(stored))}.*Changed"):
        trained(
            tmp_path, EquipoiseTrainer, {"_generate_and_score_completions": batch_instead},
            per_device_train_batch_size=16, **stored,
        )  # fmt: skip


def test_records_have_the_rewards_of_the_subclass(tmp_path):
    polars = pytest.importorskip("polars")
    changes = {"_calculate_rewards": rewards_added}
    trained(tmp_path, EquipoiseTrainer, changes, reward=constant, record_tokens=1, max_steps=1)
    rewards = polars.read_parquet(tmp_path / "tokens" / "*.parquet")["reward"]
    assert rewards.max() > 1.2
    assert rewards.n_unique() > 2


@pytest.mark.parametrize("entry", [e for e in METHODS if e.use.startswith("overridden")], ids=lambda e: e.name)
def test_what_is_overridden_takes_its_arguments_by_name_and_by_position(entry):
    method = inspect.signature(getattr(EquipoiseTrainer, entry.name))
    method.bind("self", *entry.parameters)
    method.bind("self", **dict.fromkeys(entry.parameters))


def test_answers_are_noted_and_the_method_is_given_back():
    class Owner:
        def method(self, value):
            return 2 * value

    owner = Owner()
    with answers(owner, "method") as returned:
        assert owner.method(2) == 4
    assert returned == [4]
    assert "method" not in vars(owner)
    owner.method = patched = lambda value: -value
    with answers(owner, "method") as returned:
        owner.method(value=1)
    assert returned == [-1]
    assert owner.method is patched
