"""Prompts are formed as training forms them: by the chat template, with what it is told, and with every message."""

import pytest
from datasets import Dataset
from trainer_setup import character_tokenizer

from equipoise.errors import InputError
from equipoise.models.loading import template_settings
from equipoise.models.prompts import check_prompts, encoded_prompts

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}1{{ m.content | trim }}{% elif m.role == 'assistant' %}"
    "2{{ m.content.split('=')[-1] }}{% endif %}{% endfor %}{% if add_generation_prompt %}3"
    "{% if enable_thinking is defined and not enable_thinking %}00{% endif %}{% endif %}"
)


@pytest.fixture
def tokenizer():
    made = character_tokenizer()
    made.chat_template = TEMPLATE
    return made


def text(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def encoded_prompt(tokenizer, prompt, row, told=None):
    """Of one prompt."""
    (ids,) = encoded_prompts(tokenizer, [prompt], told, rows=[row])
    return ids


def user(content):
    return {"role": "user", "content": content}


def test_what_the_template_is_told_reaches_the_prompt(tokenizer):
    assert text(tokenizer, encoded_prompt(tokenizer, [user(" 4+4 ")], 1)) == "14+43"
    assert text(tokenizer, encoded_prompt(tokenizer, [user("4+4")], 1, {"enable_thinking": False})) == "14+4300"
    assert text(tokenizer, encoded_prompt(tokenizer, "4+4", 1, {"enable_thinking": False})) == "4+4"


def test_prompts_are_those_of_the_trainer(tokenizer, tmp_path):
    from trainer_setup import config, digit_reward, tiny_model

    from equipoise.trl import EquipoiseTrainer

    told = {"enable_thinking": False}
    prompts = [[user(f"{n}+{n}")] for n in range(8)]

    def reward(completions, **columns):
        return digit_reward([completion[-1]["content"] for completion in completions])

    trainer = EquipoiseTrainer(
        model=tiny_model(), reward_funcs=reward,
        args=config(tmp_path, chat_template_kwargs=told), train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )  # fmt: skip
    ids, *_ = trainer._tokenize_prompts(prompts)
    assert ids == [encoded_prompt(tokenizer, prompt, 1, told) for prompt in prompts]
    assert ids != [encoded_prompt(tokenizer, prompt, 1) for prompt in prompts]


@pytest.mark.parametrize(
    ("messages", "role"),
    [
        ([{"role": "human", "content": "4+4"}], "human"),
        ([{"role": "system", "content": "0"}, user("4")], "system"),
        ([user("4"), {"role": "User", "content": [{"type": "text", "text": "4"}]}], "User"),
    ],
)
def test_a_role_that_the_template_leaves_out_is_refused(tokenizer, messages, role):
    with pytest.raises(InputError, match=rf"^row 3: the chat template leaves out the message of the role '{role}'"):
        encoded_prompt(tokenizer, messages, 3)
    data = Dataset.from_dict({"prompt": [[user("1")], [{"role": role, "content": "4"}]]})
    with pytest.raises(InputError, match=rf"^model m, row 2: the chat template leaves out .* '{role}'"):
        check_prompts(data, tokenizer, "m")


def test_content_that_the_template_rewrites_is_not_left_out(tokenizer):
    messages = [user("  4 "), {"role": "assistant", "content": "9*9=81"}, user("1")]
    assert text(tokenizer, encoded_prompt(tokenizer, messages, 1)) == "14281113"
    assert encoded_prompt(tokenizer, [user("")], 1), "an empty message has nothing to leave out"


@pytest.mark.parametrize("value", [{"a": 1}, '{"a": 1}', "a: 1"])
def test_settings_of_a_template_as_mapping_or_text(value):
    assert template_settings(value) == {"a": 1}
    assert template_settings(None) == {}


@pytest.mark.parametrize("value", ["a", "[1]", "{1: 2}", "{", 3])
def test_settings_that_are_no_mapping_are_refused(value):
    with pytest.raises(InputError, match=r"^--flag .*got "):
        template_settings(value, "--flag")


@pytest.mark.parametrize(("flag", "thinks"), [(None, False), ("enable_thinking: true", True)])
def test_flag_and_run_tell_evaluation_and_probe_the_same(tmp_path, monkeypatch, flag, thinks):
    from equipoise.commands import evaluate, probe
    from equipoise.commands.data import DataOptions

    keys = {"task": "ladder", "chat_template_kwargs": {"enable_thinking": False}}
    for command in (evaluate, probe):
        monkeypatch.setattr(command, "is_run_folder", lambda name: True)
    monkeypatch.setattr(evaluate.run, "run_settings", lambda folder: keys)
    data = DataOptions(chat_template_kwargs=flag)
    held_out = evaluate._held_out("run", None, evaluate.EvaluateOptions(models=("run",), data=data))
    assert held_out.template_kwargs == {"enable_thinking": thinks}
    assert probe._template_kwargs(probe.ProbeOptions(model="run", data=data)) == {"enable_thinking": thinks}
