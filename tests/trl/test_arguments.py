"""What a trainer is given, as TRL's users give it: by position, nothing, or TRL's own settings."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from trainer_setup import character_tokenizer, config, digit_reward, prompts, tiny_model, trainer
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from equipoise.models import statistics_head
from equipoise.trl import EquipoiseConfig, EquipoiseTrainer
from equipoise.trl.config import OWN_FIELDS

pytestmark = pytest.mark.slow


def plain_config(folder, **settings):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "activation_checkpointing": False, "seed": 7,
        "per_device_train_batch_size": 4, "num_generations": 4, "steps_per_generation": 2, "max_completion_length": 8,
        "learning_rate": 1e-2, "max_steps": 3, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return GRPOConfig(**(defaults | settings))


def test_a_plain_grpo_config_trains_what_trl_trains_and_is_read_as_in_trl(tmp_path, caplog):
    pair = []
    for kind in (EquipoiseTrainer, GRPOTrainer):
        # One after the other: a trainer seeds when it is made, and samples when it trains.
        pair.append(trainer(tmp_path, trainer_class=kind, args=plain_config(tmp_path, optim="sgd", max_grad_norm=0)))
        pair[-1].train()
    ours, theirs = pair
    assert [r.getMessage() for r in caplog.records if "plain GRPOConfig" in r.getMessage()]
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=0, atol=1e-6)
    last, expected = ours.state.log_history[-1], theirs.state.log_history[-1]
    assert last["reward"] == expected["reward"]  # of the updates since the last log, as TRL has it there
    assert {"equipoise/entropy", "equipoise/rollout_reward"} <= last.keys()


def test_what_is_made_of_a_plain_grpo_config(tmp_path):
    @dataclass
    class OfAUser(GRPOConfig):
        note: str = "kept"

    plain = OfAUser(output_dir=str(tmp_path), use_cpu=True, bf16=True, generation_batch_size=16, num_generations=4)
    own = EquipoiseConfig.of_trl(plain)
    assert vars(plain).items() <= vars(own).items()
    assert (own.clipping, own.polarity, own.entropy_control, own.off_policy) == ("fixed", "off", "off", False)
    assert vars(own).keys() - vars(plain).keys() == set(OWN_FIELDS)
    assert own.bapo_low is not EquipoiseConfig.of_trl(plain).bapo_low


def test_arguments_go_by_position_as_in_trl(tmp_path):
    subject = EquipoiseTrainer(
        tiny_model(), digit_reward, config(tmp_path, max_steps=1), prompts(8), None, character_tokenizer()
    )
    subject.train()
    assert subject.state.global_step == 1
    assert inspect.signature(EquipoiseTrainer) == inspect.signature(GRPOTrainer)


def test_without_args_there_are_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    model.config._name_or_path = "somebody/tiny"
    subject = EquipoiseTrainer(model, digit_reward, train_dataset=prompts(8), processing_class=character_tokenizer())
    assert isinstance(subject.args, EquipoiseConfig)
    assert subject.args.output_dir == "tiny-GRPO"


def test_other_settings_are_refused(tmp_path):
    with pytest.raises(TypeError, match="GRPOConfig, got TrainingArguments"):
        trainer(tmp_path, args=TrainingArguments(str(tmp_path), use_cpu=True))


def trained(folder, kind, **settings):
    subject = trainer(folder, trainer_class=kind, args=plain_config(folder, optim="sgd", max_grad_norm=0, **settings))
    subject.train()
    return subject.model.state_dict()


def test_in_bf16_on_a_cpu_it_trains_what_trl_trains_with_a_float32_head(tmp_path):
    """TRL's default rounds logits to bf16 there, ours never: that is all the two differ by."""
    ours = trained(tmp_path, EquipoiseTrainer, bf16=True)
    theirs = trained(tmp_path, GRPOTrainer, bf16=True, cast_lm_head_to_fp32=True)
    rounded = trained(tmp_path, GRPOTrainer, bf16=True)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)
    assert max((rounded[name] - value).abs().max() for name, value in theirs.items()) > 2e-5


def test_the_head_multiplies_in_float32_where_that_is_asked_for(tmp_path, monkeypatch):
    """On a GPU under autocast it would multiply in bf16; here the type it would take is put in its place."""
    monkeypatch.setattr(statistics_head, "_type_of_products", lambda rows: torch.bfloat16)
    ours = {cast: trained(tmp_path, EquipoiseTrainer, cast_lm_head_to_fp32=cast) for cast in (True, False)}
    theirs = trained(tmp_path, GRPOTrainer, cast_lm_head_to_fp32=True)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[True][name], value, rtol=0, atol=1e-6)
    assert max((ours[False][name] - value).abs().max() for name, value in theirs.items()) > 1e-5


@pytest.mark.parametrize(
    "features", [{}, {"clipping": "balanced", "polarity": "papo"}, {"replay_fraction": 0.5}], ids=str
)
def test_a_streamed_data_set_is_trained_on(tmp_path, features):
    subject = trainer(tmp_path, max_steps=3, num_iterations=2, dataset=prompts(16).to_iterable_dataset(), **features)
    subject.train()
    assert subject.state.global_step == 3
