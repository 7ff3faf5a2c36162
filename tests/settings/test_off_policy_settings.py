"""Settings of replay and partial rollouts: out of range, or not together with others, is said in one line."""

import pytest
from trainer_setup import config

REPLAY, PARTIAL = {"replay_fraction": 0.5}, {"rollout_token_budget": 4}
ROLLOUT = {"steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2}  # 4 updates
REFUSED = [
    ({"replay_fraction": 1.0}, r"replay_fraction must be in \[0, 1\), got replay_fraction=1.0"),
    ({"replay_fraction": -0.1}, r"replay_fraction must be in \[0, 1\), got replay_fraction=-0.1"),
    ({"replay_fraction": float("nan")}, r"replay_fraction must be in \[0, 1\), got replay_fraction=nan"),
    ({"replay_capacity": 0}, "replay_capacity must be >= 1, got replay_capacity=0"),
    ({"replay_max_age": 0}, "replay_max_age must be >= 1, got replay_max_age=0"),
    ({"replay_sampling": "newest"}, "replay_sampling must be one of 'uniform', 'age', 'advantage', got"),
    ({"rollout_token_budget": 0}, "rollout_token_budget must be >= 1, got rollout_token_budget=0"),
    ({"replay_fraction": 0.4}, "replay_fraction=0.4 of the 2 groups .* is less than one group: use at least 0.5"),
    (REPLAY | {"num_generations": 8}, "needs at least 2 groups per rollout batch on a process, got 1"),
    (
        REPLAY
        | {"replay_max_age": 3, "steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2},
        r"replay_max_age=3 would keep nothing: the policy moves by 4 versions \(updates\)",
    ),
    (
        REPLAY | {"per_device_train_batch_size": 6, "steps_per_generation": 3, "num_generations": 9},
        None,
    ),
    (
        REPLAY | {"top_k": 5},
        "replay_fraction needs samples from the plain softmax.*: leave top_k at its default, got top_k=5",
    ),
    (PARTIAL | {"top_p": 0.9}, "rollout_token_budget needs samples from the plain softmax.*top_p=0.9"),
    (PARTIAL | {"min_p": 0.1}, "rollout_token_budget needs samples from the plain softmax.*min_p=0.1"),
    (PARTIAL | {"repetition_penalty": 1.1}, "leave repetition_penalty at its default"),
    (PARTIAL | {"generation_kwargs": {"typical_p": 0.5}}, "leave generation_kwargs at its default"),
    (PARTIAL | {"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching gives none"),
    (REPLAY | {"use_vllm": True}, "would count twice: set vllm_importance_sampling_correction=False"),
    (REPLAY | {"sync_ref_model": True, "beta": 0.1}, "replay_fraction does not go with sync_ref_model"),
]


@pytest.mark.parametrize(("settings", "message"), [r for r in REFUSED if r[1]], ids=lambda v: str(v)[:50])
def test_refusals_name_the_field_the_rule_and_the_value(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        config(tmp_path, **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("settings", [r[0] for r in REFUSED if not r[1]] + [REPLAY, PARTIAL, REPLAY | PARTIAL], ids=str)
def test_what_is_in_range_is_taken(tmp_path, settings):
    assert config(tmp_path, **settings)


def test_groups_must_be_whole_on_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.trl.config.EquipoiseConfig.world_size", 2)
    settings = {"per_device_train_batch_size": 6, "num_generations": 4}
    config(tmp_path, **settings)
    for own in (REPLAY, PARTIAL):
        with pytest.raises(
            ValueError, match=r"needs whole groups on every process: num_generations=4 must divide .* 6"
        ):
            config(tmp_path, **(settings | own))


def test_the_largest_age_follows_the_rollout_batch(tmp_path):
    chosen = config(tmp_path, **REPLAY, **ROLLOUT)
    assert chosen.replay_max_age == 16
    assert config(tmp_path).replay_max_age is None
