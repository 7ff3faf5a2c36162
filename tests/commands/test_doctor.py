"""The doctor on real runs, configurations and models, and the checks that run something."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from trainer_setup import character_tokenizer, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from equipoise.cli import main
from equipoise.commands import doctor_checks as checks
from equipoise.models.behavior_logprobs import LogprobRecorder
from equipoise.models.warm_starts import warm_start_ladder
from equipoise.tasks import Task, checked, exact_reward, is_valid_ladder, ladder_task, math_reward
from equipoise.tasks.ladder import shortest_ladder

pytestmark = pytest.mark.slow


def examined(capsys, *arguments):
    """Exit code and the findings by name."""
    code = main(["doctor", "--json", *map(str, arguments)])
    values = json.loads(capsys.readouterr().out)  # JSON and nothing else
    assert values["wrong"] == sum(f["severity"] == "wrong" for f in values["findings"])
    return code, {f["name"]: f for f in values["findings"]}


# ---- whole targets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ladder model of a few steps of warm start, and a short run on stale data."""
    folder = tmp_path_factory.mktemp("doctor")
    model = folder / "base"
    warm_start_ladder(model, steps=250, batch_size=128, progress=False)
    keys = {
        "task": "ladder", "model": str(model), "output_dir": str(folder / "run"), "use_cpu": True, "max_steps": 12,
        "num_generations": 4, "per_device_train_batch_size": 32, "num_iterations": 4, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "max_completion_length": 13, "save_strategy": "no", "disable_tqdm": True,
        "evaluate_samples": 1, "evaluate_k": [1], "evaluate_prompts": 2,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(keys))
    assert main(["train", "--config", str(folder / "run.yaml")]) == 0
    return folder


def test_a_real_run(trained, capsys):
    code, findings = examined(capsys, trained / "run")
    assert len(findings) == 20
    assert {n for n, f in findings.items() if f["severity"] == "ok"} >= {
        "importance ratios", "tokens in the entropy", "batch arithmetic", "verifier self-test", "room for completions",
        "sampling and training log-probs", "learning rate", "bf16", "settings without effect", "sampled distribution",
    }  # fmt: skip
    assert "4 updates per rollout batch" in findings["batch arithmetic"]["evidence"]
    assert "100% are accepted (right completions of the task)" in findings["verifier self-test"]["evidence"]
    assert code == int(any(f["severity"] == "wrong" for f in findings.values()))


def test_a_run_gone_wrong_is_exit_code_1(trained, capsys, tmp_path):
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["equipoise/ratio_std"] = 0.0
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, findings = examined(capsys, broken)
    assert code == 1
    assert findings["importance ratios"]["severity"] == "wrong"
    assert findings["settings"]["evidence"] == "there is no resolved.yaml"
    assert findings["verifier self-test"]["severity"] == "not checked"
    assert main(["doctor", str(broken)]) == 1
    assert "wrong: importance ratios" in capsys.readouterr().out


def test_a_model(trained, capsys):
    code, findings = examined(capsys, trained / "base", "--task", "ladder")
    assert code == 0
    assert {n: f["severity"] for n, f in findings.items()} == {
        "special tokens": "ok", "chat template": "ok", "sampling and training log-probs": "ok",
        "padding in the entropy": "ok", "verifier self-test": "ok", "learning rate and first order": "not checked",
    }  # fmt: skip


def test_a_model_without_data_and_a_probe_without_data(trained, capsys):
    code, findings = examined(capsys, trained / "base", "--probe")
    assert code == 0
    assert findings["sampling and training log-probs"]["severity"] == "ok"
    assert "no data was named" in findings["verifier self-test"]["evidence"]
    assert "names no data" in findings["learning rate and first order"]["evidence"]


def test_a_probe_of_a_step_that_is_too_large_and_one_that_is_not(trained, capsys):
    arguments = (trained / "base", "--task", "ladder", "--probe", "--learning_rate")
    small, large = (examined(capsys, *arguments, rate)[1]["learning rate and first order"] for rate in (1e-5, 0.1))
    assert (small["severity"], large["severity"]) == ("ok", "warning")
    assert "at learning_rate 1e-05 (adamw)" in small["evidence"]
    assert "Lower the learning rate" in large["change"]


def test_a_configuration(capsys, tmp_path):
    file = tmp_path / "a.yaml"
    keys = {"task": "ladder", "use_cpu": True, "max_completion_length": 8, "papo_strength": 0.3, "bf16": True}
    file.write_text(yaml.safe_dump(keys))
    code, findings = examined(capsys, file)
    assert code == 1
    assert findings["room for completions"]["severity"] == "wrong"
    assert "papo_strength (needs polarity: papo)" in findings["settings without effect"]["evidence"]
    assert "times as long as float32" in findings["bf16"]["evidence"]
    file.write_text(yaml.safe_dump({"use_cpu": True, "num_iterations": 2}))
    code, findings = examined(capsys, file)
    assert code == 0
    assert findings["verifier self-test"]["severity"] == "not checked"


@pytest.mark.parametrize("recipe", ["ladder_stale_equipoise.yaml", "ladder_stale_grpo.yaml"])
def test_shipped_recipes_are_well(recipe, capsys):
    from equipoise.commands.quickstart import recipe_folder

    code, findings = examined(capsys, recipe_folder() / recipe)
    assert code == 0
    assert not [f for f in findings.values() if f["severity"] == "warning"]


def test_targets_that_are_none_of_the_three(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "resolved.yaml").write_text("{}")
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "metrics.jsonl").write_text("")
    (tmp_path / "bad.yaml").write_text("task: ladder\nlerning_rate: 1\n")
    (tmp_path / "no_model").mkdir()
    (tmp_path / "no_model" / "config.json").write_text("{}")
    for target, message in {
        "empty": "is no run (it has no metrics.jsonl), no configuration (it is no file) and no model (it has no config",
        "missing": "is no run, no configuration and no model: there is no such file or folder",
        "begun": "was taken for a run: ",
        "blank": "was taken for a run: its metrics.jsonl is empty: no update has been logged",
        "bad.yaml": "lerning_rate is not known; did you mean learning_rate?",
        "no_model": "was taken for a model: model ",
    }.items():
        assert main(["doctor", str(tmp_path / target), "--json"]) == 2, target
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
        assert len(captured.err.strip().splitlines()) == 1
    assert main(["doctor", "some/config.yaml"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "bad.yaml"), "--probe"]) == 2
    assert "--probe needs a run or a model" in capsys.readouterr().err


# ---- the verifier -------------------------------------------------------------------------------------------------


def task(reward, answers=("4", "7"), prompt="2+2="):
    rows = Dataset.from_dict({"prompt": [prompt] * len(answers), "answer": list(answers)})
    return Task("data", rows, None, reward, None)


@pytest.mark.parametrize("reward", [exact_reward, math_reward])
def test_verifiers_that_accept_their_own_answers(reward):
    found = checks.check_verifier(task(reward))
    assert found.severity == "ok"
    assert "of 2 of the data's own answers 100% are accepted" in found.evidence


def test_rewards_of_episodes_are_not_tried_without_an_episode():
    from equipoise.tasks import named_task

    assert checks.check_verifier(named_task("calculator")).severity == "not checked"


def test_a_verifier_that_wants_a_form():
    def tagged(prompts, completions, answer, **columns):
        return [float(f"<answer>{gold}</answer>" in text) for text, gold in zip(completions, answer, strict=True)]

    found = checks.check_verifier(task(checked(tagged)))
    assert (found.severity, "(<answer>answer</answer>)" in found.evidence) == ("ok", True)


def test_verifiers_that_never_accept():
    def never(prompts, completions, **columns):
        return [0.0] * len(completions)

    found = checks.check_verifier(task(checked(never)))
    assert found.severity == "warning", "it may want a form that is not known here"
    assert "0% are accepted" in found.evidence
    never.__name__ = "math_reward"
    assert checks.check_verifier(task(checked(never))).severity == "wrong", "the forms of our own are known"


def test_a_verifier_that_accepts_a_part():
    def small(prompts, completions, answer, **columns):
        return [float(text == gold and int(gold) < 19) for text, gold in zip(completions, answer, strict=True)]

    answers = [str(i) for i in range(20)]
    assert checks.check_verifier(task(checked(small), answers)).severity == "ok", "19 of 20"
    small.__name__ = "math_reward"
    assert checks.check_verifier(task(checked(small), [*answers, "20"])).severity == "warning"


def test_verifiers_that_accept_anything_or_fail():
    def anything(prompts, completions, **columns):
        return [1.0] * len(completions)

    def fails(prompts, completions, solution, **columns):
        return [0.0]

    found = checks.check_verifier(task(checked(anything)))
    assert found.severity == "wrong"
    assert "of empty completions 100%" in found.evidence
    found = checks.check_verifier(task(checked(fails)))
    assert found.severity == "wrong"
    assert "reward function 'fails' raised TypeError" in found.evidence


def test_every_prompt_of_the_ladder_has_a_chain_that_is_valid():
    prompts = ladder_task().train["prompt"]
    assert all(is_valid_ladder(prompt, shortest_ladder(prompt)) for prompt in prompts)
    assert shortest_ladder("3 12 =") == "*2 6 *2 12"


# ---- models -------------------------------------------------------------------------------------------------------


def test_special_tokens_that_do_not_fit():
    model, tokenizer = tiny_model(), character_tokenizer()
    assert checks.check_tokens(model, tokenizer).severity == "ok"
    model.generation_config.eos_token_id = [5, 6]
    found = checks.check_tokens(model, tokenizer)
    assert found.severity == "warning"
    assert "ends with [5, 6], the tokenizer with 1" in found.evidence
    model.generation_config.eos_token_id = [5, 1]
    assert checks.check_tokens(model, tokenizer).severity == "ok"
    assert checks.check_tokens(tiny_model(vocab_size=16), tokenizer).severity == "wrong"


def test_chat_templates():
    tokenizer, plain = character_tokenizer(), task(exact_reward)
    messages = task(exact_reward, prompt=[{"role": "user", "content": "2+2="}])
    severities = [checks.check_chat(tokenizer, data).severity for data in (None, plain, messages)]
    tokenizer.chat_template = "{{ messages[0].content }}"
    severities += [checks.check_chat(tokenizer, data).severity for data in (plain, messages)]
    assert severities == ["not checked", "ok", "wrong", "warning", "ok"]


def test_sampling_and_training_agree_in_a_model_with_relative_positions():
    comparison = checks.compare_logprobs(tiny_model(), character_tokenizer(), temperature=0.7)
    assert comparison.difference.numel() > 20
    assert comparison.difference.max() < 1e-5
    assert checks.check_comparison(comparison).severity == checks.check_padding(comparison).severity == "ok"


@pytest.mark.parametrize("prompts", [None, ["1+1="] * 8], ids=["random tokens", "prompts of one length"])
def test_absolute_positions_disagree_when_prompts_are_padded_on_the_left(prompts):
    size = len(character_tokenizer())
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1,
                   initializer_range=0.3)
    )  # fmt: skip
    comparison = checks.compare_logprobs(model, character_tokenizer(), prompts)
    found = checks.check_comparison(comparison)
    assert found.severity == "wrong"
    assert "absolute positions" in found.why


def test_a_sampler_with_another_temperature_is_found(monkeypatch):
    honest = LogprobRecorder.__init__

    def other(self, temperature):
        honest(self, 1.05 * temperature)

    monkeypatch.setattr(LogprobRecorder, "__init__", other)
    assert checks.check_comparison(checks.compare_logprobs(tiny_model(), character_tokenizer())).severity == "wrong"


def test_padding_that_reaches_the_statistics_is_found():
    model = tiny_model()
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)  # the mask is lost
    found = checks.check_padding(checks.compare_logprobs(model, character_tokenizer()))
    assert found.severity == "wrong"
    assert "does not hide the padding" in found.why


@pytest.mark.parametrize(
    ("dtype", "difference", "severity"),
    [
        (torch.float32, 9e-4, "ok"),
        (torch.float32, 1.1e-3, "warning"),
        (torch.float32, 0.011, "wrong"),
        (torch.bfloat16, 0.04, "ok"),
        (torch.bfloat16, 0.06, "warning"),
        (torch.bfloat16, 0.21, "wrong"),
    ],
)
def test_how_far_log_probs_may_differ(dtype, difference, severity):
    comparison = checks.Comparison(torch.tensor([0.0, 2 * difference]), 0.0, dtype)
    assert checks.check_comparison(comparison).severity == severity


@pytest.mark.parametrize(("remainder", "severity"), [(0.49, "ok"), (0.51, "warning")])
def test_remainder_of_the_first_order(remainder, severity):
    report = {"remainder": remainder, "learning_rate": 1e-3, "optimizer": "sgd"}
    assert checks.check_probe(report, 0.5).severity == severity


def test_bf16_is_timed():
    assert 0 < checks.bf16_slowdown(16, 3) < 1e4
