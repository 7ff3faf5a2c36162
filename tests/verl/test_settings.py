import pytest

from equipoise.errors import InputError


@pytest.fixture
def loss_config():
    from equipoise.verl import EquipoiseLossConfig

    return lambda loss_mode="equipoise", **keys: EquipoiseLossConfig(loss_mode=loss_mode, equipoise=keys)


def test_the_keys_and_presets_are_those_of_a_run_on_trl(loss_config):
    from equipoise.settings.presets import PRESETS

    settings = loss_config(preset="bapo_paper", bapo_target_share=0.5, polarity="papo").settings()
    expected = PRESETS["bapo_paper"] | {"bapo_target_share": 0.5, "polarity": "papo"}
    assert {key: getattr(settings, key) for key in expected} == expected


def test_without_keys_everything_is_measured_and_nothing_changed(loss_config):
    from verl.workers.config import PolicyLossConfig

    from equipoise.verl.settings import settings_in

    for config in (loss_config(), PolicyLossConfig(loss_mode="equipoise")):
        settings = settings_in(config)
        assert (settings.clipping, settings.polarity, settings.entropy_control) == ("fixed", "off", "off")


REFUSED = {
    "nearest key": ({"cliping": "balanced"}, ["cliping", "did you mean clipping"]),
    "a key of the other host": ({"replay_fraction": 0.5}, ["replay_fraction"]),
    "samples that verl prints itself": ({"print_samples": 5}, ["print_samples"]),
    "a figure that verl's loggers do not take": ({"asymmetry_map_every": 5}, ["asymmetry_map_every"]),
    "out of range": ({"bapo_target_share": 1.5}, ["bapo_target_share", "1.5", "(0, 1)"]),
    "wrong type": ({"papo_strength": "much"}, ["papo_strength", "a number", "much"]),
    "not a number": ({"papo_strength": float("nan")}, ["papo_strength"]),
    "no choice": ({"polarity": "on"}, ["polarity", "papo"]),
    "unknown preset": ({"preset": "bap0"}, ["preset", "did you mean bapo"]),
    "bounds that verl has itself": ({"preset": "clip_higher"}, ["clip_higher", "clip_ratio"]),
    "records without a folder": ({"record_tokens": 5}, ["output_dir", "record_tokens"]),
    "two loops on one entropy": ({"polarity": "papo", "entropy_control": "stare"}, ["stare", "papo"]),
    "a method that is TRL's": ({"entropy_control": "entropy_bonus"}, ["entropy_control", "entropy_bonus"]),
}


@pytest.mark.parametrize(("keys", "named"), REFUSED.values(), ids=REFUSED)
def test_bad_keys_are_one_line_that_names_place_key_rule_and_value(keys, named, loss_config):
    with pytest.raises(InputError) as refused:
        loss_config(**keys)
    message = str(refused.value)
    assert "\n" not in message
    assert "actor_rollout_ref.actor.policy_loss.equipoise" in message
    assert all(part in message for part in named), message


@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "bypass_mode"])
def test_keys_under_another_loss_would_be_ignored_and_are_refused(loss_mode, loss_config):
    with pytest.raises(InputError, match=r"loss_mode.*equipoise.*" + loss_mode):
        loss_config(loss_mode=loss_mode)


def test_verl_makes_the_settings_from_its_command_line(tmp_path):
    import verl_setup
    from verl.utils.config import omega_conf_to_dataclass

    config = verl_setup.configuration(
        tmp_path,
        "actor_rollout_ref.actor.policy_loss._target_=equipoise.verl.EquipoiseLossConfig",
        "actor_rollout_ref.actor.policy_loss.loss_mode=equipoise",
        "+actor_rollout_ref.actor.policy_loss.equipoise={clipping: balanced, bapo_low: [0.6, 0.9], polarity: papo}",
    )
    settings = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss).settings()
    assert (settings.clipping, settings.bapo_low, settings.polarity) == ("balanced", [0.6, 0.9], "papo")
