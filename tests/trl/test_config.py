"""EquipoiseConfig: every value out of range is refused at construction, by its own name."""

import logging

import pytest
import torch
from trainer_setup import config
from transformers import HfArgumentParser

from equipoise import (
    BalanceSignal,
    BoundGrid,
    BranchWeights,
    ClipBounds,
    ReferenceSignal,
    ScheduleSignal,
    TrendSignal,
)
from equipoise.trl import EquipoiseConfig

REFUSED = [
    ({"clipping": "adaptive"}, "clipping must be one of 'fixed', 'balanced', got clipping='adaptive'"),
    ({"polarity": "on"}, "polarity must be one of 'off', 'papo', 'positive_only', 'negative_only', got polarity='on'"),
    ({"bapo_low": [0.9, 0.6]}, r"bapo_low must satisfy 0 < low\[0\] <= low\[1\] <= 1, got low=\(0.9, 0.6\)"),
    ({"bapo_low": [0.9]}, r"bapo_low must be two numbers \[start, end\], got bapo_low=\[0.9\]"),
    ({"bapo_high": [0.8, 3.0]}, r"bapo_high must satisfy 1 <= high\[0\] <= high\[1\]"),
    ({"bapo_high_step": 0.0}, "bapo_high_step must be positive"),
    ({"bapo_target_share": 1.0}, r"bapo_target_share must be in \(0, 1\), got bapo_target_share=1.0"),
    ({"bapo_target_share": 0.0}, r"bapo_target_share must be in \(0, 1\)"),
    ({"bapo_measure": "loss"}, "bapo_measure must be one of 'gradient', 'surrogate'"),
    ({"bapo_token_weight": "none"}, "bapo_token_weight must be one of 'uniform', 'rollout'"),
    ({"papo_strength": 1.0}, r"papo_strength must leave every weight > 0, got strength=1.0, which brings contracting_"),
    ({"papo_strength": -0.1}, "papo_strength must be >= 0"),
    ({"papo_signal": "none"}, "papo_signal must be one of 'reference', 'trend', 'balance', 'schedule'"),
    ({"papo_signal": "trend", "papo_two_sided": True}, "papo_two_sided belongs to papo_signal='reference'"),
    (
        {"papo_signal": "balance", "papo_reference_entropy": 0.4},
        "papo_reference_entropy belongs to papo_signal='reference', got papo_signal='balance' and papo_reference_ent",
    ),
    ({"papo_phases": [0.5]}, r"papo_phases belongs to papo_signal='schedule', got papo_signal='reference'"),
    ({"papo_signal": "schedule", "papo_phases": []}, r"papo_phases must be one or more numbers in \[-1, 1\], got"),
    ({"papo_signal": "schedule", "papo_phases": [2.0]}, r"papo_phases must be one or more numbers in \[-1, 1\], got"),
    ({"papo_signal": "trend", "papo_strength": 1.0}, "papo_strength must leave every weight > 0"),
    (
        {"papo_strength": 1.5, "papo_quadrants": ["expanding_positive"], "papo_two_sided": True},
        "which brings expanding_positive to -0.5",
    ),
    ({"papo_slow_smoothing": 0.5}, r"papo_slow_smoothing must be in \(smoothing=0.9, 1\)"),
    ({"papo_release_after": 0.0}, r"papo_release_after must be in \(0, 1\]"),
    ({"papo_quadrants": ["expanding"]}, "papo_quadrants must be one or more of expanding_positive, .* each once"),
    ({"papo_quadrants": []}, "papo_quadrants must be one or more of"),
    ({"papo_quadrants": ["expanding_positive"] * 2}, "papo_quadrants must be one or more of .* each once"),
    ({"papo_tanh_scale": 0.0}, "papo_tanh_scale must be >= 1e-6"),
    ({"papo_reference_entropy": 0.0}, "papo_reference_entropy must be > 0 nats"),
    ({"papo_reference_fraction": 0.0}, "papo_reference_fraction must be > 0"),
    ({"papo_width": 0.0}, "papo_width must be > 0"),
    ({"papo_smoothing": 1.0}, r"papo_smoothing must be in \[0, 1\)"),
    ({"papo_warmup_updates": 0}, "papo_warmup_updates must be >= 1 when reference_entropy is not given"),
    ({"bapo_scope": "microbatch"}, "bapo_scope must be one of 'update', 'lagged', got bapo_scope='microbatch'"),
    ({"clipping": "balanced", "loss_type": "cispo"}, "clipping='balanced' needs a loss that clips from both sides"),
    ({"clipping": "balanced", "delta": 2.0}, r"delta >= the end of bapo_high, got delta=2.0, bapo_high=\[1.2, 3.0\]"),
    ({"clipping": "balanced", "delta": 4.0, "bapo_measure": "surrogate"}, "delta=4.0 does not go with bapo_measure"),
    (
        {"clipping": "balanced", "gradient_accumulation_steps": 4, "steps_per_generation": 3, "num_iterations": 2},
        r"gradient_accumulation_steps=4 must divide steps_per_generation \* num_iterations = 3 \* 2 = 6",
    ),
    ({"temperature": 0.0}, "temperature must be >= 1e-06 and .*, got temperature=0.0"),
    ({"epsilon": -0.1}, "epsilon must be >= 0 and .*, got epsilon=-0.1"),
    ({"epsilon_high": -0.1}, "epsilon_high must be >= 0"),
    *(({name: -1}, f"{name} must be >= 0") for name in ("beta", "weight_decay", "max_grad_norm", "top_k")),
    ({"generation_batch_size": 0}, "generation_batch_size must be >= 1"),
    ({"max_completion_length": 0}, r"max_completion_length must be in \[1, "),
    ({"seed": -1}, r"seed must be in \[0, "),
    *(({"adam_epsilon": x}, "adam_epsilon must be >= 1e-30") for x in (-1.0, 0.0, 1e-300)),
    *(({"max_steps": x}, r"max_steps must be -1 \(unset\) or >= 1") for x in (0, -2, 2**31)),
    *(({"num_train_epochs": x}, "num_train_epochs must be >= 1e-09") for x in (-1, 0.0)),
    *(({name: x}, rf"{name} must be in \[0, 1\)") for name in ("adam_beta1", "adam_beta2") for x in (-0.1, 1.0)),
    *(({"top_p": x}, r"top_p must be in \(0, 1\]") for x in (0.0, 1.1)),
    *(({"min_p": x}, r"min_p must be in \[0, 1\]") for x in (-0.1, 1.1)),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be >= 1e-06"),
    ({"log_level": "loud"}, "log_level must be one of 'detail', 'debug', .*, got log_level='loud'"),
    *(
        ({name: "x"}, f"{name} must be a mapping, got {name}='x'")
        for name in ("model_init_kwargs", "generation_kwargs", "chat_template_kwargs", "lr_scheduler_kwargs")
    ),
    ({"learning_rate": float("inf")}, "learning_rate must be >= 0 and .*, got learning_rate=inf"),
    ({"num_generations": 0}, "num_generations must be >= 2"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be >= 1"),
    ({"steps_per_generation": 0}, "steps_per_generation must be >= 1"),
    ({"num_iterations": 0}, "num_iterations must be >= 1"),
    ({"loss_type": "ppo"}, "loss_type must be one of 'grpo', .*, got loss_type='ppo'"),
    ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of 'token', 'sequence'"),
    ({"scale_rewards": "all"}, "scale_rewards must be one of 'group', 'batch', 'none'"),
    ({"num_generations": 3}, r"generation_batch_size \(8\) must be divisible by num_generations \(3\)"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refusals_name_the_field_the_rule_and_the_value(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_on_a_cpu_it_picks_float32_and_no_checkpointing_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "equipoise"):
        chosen = config(tmp_path)
    assert (chosen.bf16, chosen.gradient_checkpointing) == (False, False)
    assert "training in float32, without gradient checkpointing" in caplog.text


def test_without_an_accelerator_several_processes_are_one_run(tmp_path):
    # use_cpu: transformers takes them for runs of their own otherwise, all in the same folder
    assert config(tmp_path, use_cpu=False).use_cpu


def test_what_is_asked_for_on_a_cpu_is_kept(tmp_path, caplog):
    chosen = config(tmp_path, bf16=True, activation_checkpointing=True)
    assert (chosen.bf16, chosen.gradient_checkpointing) == (True, True)
    assert not caplog.records


def test_with_an_accelerator_trl_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    chosen = config(tmp_path, use_cpu=False)
    assert (chosen.bf16, chosen.gradient_checkpointing) == (True, True)


def test_absolute_bounds_follow_from_epsilons(tmp_path):
    assert config(tmp_path).fixed_bounds() == ClipBounds(0.8, 1.2)
    assert config(tmp_path, epsilon=0.1, epsilon_high=2.0).fixed_bounds() == ClipBounds(0.9, 3.0)
    assert config(tmp_path, loss_type="sapo").fixed_bounds() is None


def test_defaults_of_the_grid_are_those_of_the_paper(tmp_path):
    assert config(tmp_path).bound_grid() == BoundGrid((0.6, 0.9), (1.2, 3.0), 0.02, 0.05)


def test_a_schedule_on_rare_correct_steps_may_have_any_strength(tmp_path):
    controller = config(
        tmp_path, polarity="papo", papo_signal="schedule", papo_strength=1.0, papo_quadrants=["expanding_positive"],
        papo_release_after=0.7, papo_warmup_updates=0,
    ).polarity_controller()  # fmt: skip
    assert controller.weights == BranchWeights(expanding_positive=2.0)
    controller.observe(entropy=1.0, expanding_flow=1.0, contracting_flow=1.0, expanding_positive_flow=0.5, progress=0.7)
    assert controller.weights == BranchWeights()


@pytest.mark.parametrize(
    ("settings", "signal"),
    [
        ({"papo_width": 0.5, "papo_two_sided": True}, ReferenceSignal(width=0.5, two_sided=True)),
        ({"papo_signal": "trend", "papo_width": 0.5}, TrendSignal(width=0.5)),
        ({"papo_signal": "balance"}, BalanceSignal()),
        ({"papo_signal": "schedule", "papo_phases": [1.0, 0.0]}, ScheduleSignal(phases=(1.0, 0.0))),
    ],
)
def test_settings_reach_the_signal(tmp_path, settings, signal):
    assert config(tmp_path, polarity="papo", **settings).polarity_controller().signal == signal


def test_settings_reach_the_controller(tmp_path):
    controller = config(
        tmp_path, polarity="papo", papo_strength=0.3, papo_smoothing=0.5, papo_slow_smoothing=0.8,
        papo_warmup_updates=2, papo_reference_entropy=0.7, papo_release_after=0.6,
    ).polarity_controller()  # fmt: skip
    assert (controller.strength, controller.smoothing, controller.slow_smoothing) == (0.3, 0.5, 0.8)
    assert (controller.warmup_updates, controller.reference_entropy, controller.release_after) == (2, 0.7, 0.6)
    assert config(tmp_path).polarity_controller() is None


@pytest.mark.parametrize(
    "cut",
    [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"top_p": 0.9, "top_k": 5}],
    ids=str,
)
def test_a_truncated_softmax_is_warned_of(tmp_path, caplog, cut):
    config(tmp_path, **cut)
    [warning] = [r.getMessage() for r in caplog.records if "plain one" in r.getMessage()]
    assert all(f"{name}={value}" in warning for name, value in cut.items())


def test_the_plain_softmax_is_not(tmp_path, caplog):
    config(tmp_path, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert "plain one" not in caplog.text


def test_scripts_that_parse_trls_settings_parse_ours():
    """With the parser of transformers, which TRL's is one of; its help takes % for the beginning of a format."""
    parser = HfArgumentParser(EquipoiseConfig)
    assert "--record_tokens" in parser.format_help()
    parsed = parser.parse_args(["--clipping", "balanced", "--bapo_low", "0.7", "0.95", "--num_iterations", "2"])
    assert (parsed.clipping, parsed.bapo_low, parsed.polarity) == ("balanced", [0.7, 0.95], "off")
