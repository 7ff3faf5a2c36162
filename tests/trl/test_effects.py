"""Keys that change nothing beside the others are told; the others are not."""

import logging

import pytest

from equipoise.trl import keys
from equipoise.trl.effects import NEEDS, tell_without_effect, without_effect

BASE = {"model": "m", "task": "ladder", "output_dir": "run", "use_cpu": True}

IN_VAIN = [
    ({"bapo_low": [0.5, 0.9]}, {"clipping": "balanced"}),
    ({"papo_strength": 0.2}, {"polarity": "papo"}),
    ({"papo_strength": 0.2, "polarity": "positive_only"}, {"polarity": "papo"}),
    ({"lora_r": 8, "lora_alpha": 4}, {"use_peft": True}),
    ({"environment_steps": 3}, {"environment": "a:b", "task": "data:x.jsonl"}),
    ({"max_failed_fraction": 0.2}, {"environment": "a:b", "task": "data:x.jsonl"}),
    ({"replay_capacity": 9}, {"replay_fraction": 0.5, "num_generations": 2, "steps_per_generation": 4}),
    ({"record_tokens_fraction": 0.5}, {"record_tokens": 1}),
    ({"vllm_mode": "server"}, None),
    ({"sapo_temperature_pos": 0.5}, None),
    ({"ref_model_sync_steps": 5}, {"sync_ref_model": True, "beta": 0.1}),
    ({"num_completions_to_print": 5}, {"log_completions": True}),
]


def found(given):
    return without_effect(given, *keys.build(BASE | given))


@pytest.mark.parametrize(("given", "switch"), IN_VAIN)
def test_keys_that_need_another_are_told(given, switch):
    tuned = {key for key in given if key != "polarity"}
    assert set(found(given)) == tuned
    if switch is not None:
        assert found(given | switch) == {}


def test_what_is_not_given_is_not_told(caplog):
    assert found({}) == {}
    assert found({"clipping": "fixed", "polarity": "off", "use_peft": False, "replay_fraction": 0.0}) == {}
    with caplog.at_level(logging.WARNING):
        tell_without_effect(["lora_r", "model"], *keys.build(BASE))
    assert [record.getMessage() for record in caplog.records][-1] == "lora_r has no effect without use_peft."


def test_every_name_of_the_table_is_one_of_a_key():
    for names in NEEDS:
        for name in names:
            assert any(key.startswith(name) if name.endswith("_") else key == name for key in keys.known_keys()), name
