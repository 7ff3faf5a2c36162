"""EquipoiseConfig: every value out of range is refused at construction, by its own name."""

import logging

import pytest
import torch
from trainer_setup import config

from equipoise import BoundGrid, ClipBounds

REFUSED = [
    ({"clipping": "adaptive"}, "clipping must be one of 'fixed', 'balanced', got clipping='adaptive'"),
    ({"polarity": "on"}, "polarity must be one of 'off', 'papo', got polarity='on'"),
    ({"bapo_low": [0.9, 0.6]}, r"bapo_low must satisfy 0 < low\[0\] <= low\[1\] <= 1, got low=\(0.9, 0.6\)"),
    ({"bapo_low": [0.9]}, r"bapo_low must be two numbers \[start, end\], got bapo_low=\[0.9\]"),
    ({"bapo_high": [0.8, 3.0]}, r"bapo_high must satisfy 1 <= high\[0\] <= high\[1\]"),
    ({"bapo_high_step": 0.0}, "bapo_high_step must be positive"),
    ({"bapo_target_share": 1.0}, r"bapo_target_share must be in \(0, 1\), got bapo_target_share=1.0"),
    ({"bapo_target_share": 0.0}, r"bapo_target_share must be in \(0, 1\)"),
    ({"bapo_measure": "loss"}, "bapo_measure must be one of 'gradient', 'surrogate'"),
    ({"bapo_token_weight": "none"}, "bapo_token_weight must be one of 'uniform', 'rollout'"),
    ({"papo_strength": 1.0}, r"papo_strength must be in \[0, 1\), got strength=1.0"),
    ({"papo_strength": -0.1}, r"papo_strength must be in \[0, 1\)"),
    ({"papo_reference_entropy": 0.0}, "papo_reference_entropy must be > 0 nats"),
    ({"papo_reference_fraction": 0.0}, "papo_reference_fraction must be > 0"),
    ({"papo_width": 0.0}, "papo_width must be > 0"),
    ({"papo_smoothing": 1.0}, r"papo_smoothing must be in \[0, 1\)"),
    ({"papo_warmup_updates": 0}, "papo_warmup_updates must be >= 1 when reference_entropy is not given"),
    ({"papo_neutral_zone": -1.0}, "papo_neutral_zone must be >= 0"),
    ({"clipping": "balanced", "loss_type": "cispo"}, "clipping='balanced' needs a loss that clips from both sides"),
    ({"clipping": "balanced", "delta": 2.0}, "clipping='balanced' and delta=2.0 both bound the ratios"),
    (
        {"clipping": "balanced", "gradient_accumulation_steps": 4, "steps_per_generation": 3, "num_iterations": 2},
        r"gradient_accumulation_steps=4 must divide steps_per_generation \* num_iterations = 3 \* 2 = 6",
    ),
    ({"temperature": 0.0}, "temperature must be > 0, got temperature=0.0"),
    ({"epsilon": -0.1}, "epsilon must be >= 0, got epsilon=-0.1"),
    ({"epsilon_high": -0.1}, "epsilon_high must be >= 0"),
    ({"learning_rate": float("inf")}, "learning_rate must be >= 0, got learning_rate=inf"),
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
