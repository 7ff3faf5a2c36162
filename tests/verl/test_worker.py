"""Real groups of verl's workers under Ray, on CPUs: their updates against the core's and TRL's."""

import json
import math

import pytest
import torch
import verl_reference
import verl_setup

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

UPDATES = 3
PAPO = {
    "clipping": "balanced",
    "bapo_low": [0.6, 0.9],
    "bapo_target_share": 0.7,
    "polarity": "papo",
    "papo_reference_entropy": 3.5,
    "papo_warmup_updates": 0,
    "papo_smoothing": 0.0,
}
SETTINGS = {
    "papo": PAPO,
    "kl_cov": {
        "entropy_control": "kl_cov",
        "entropy_control_args": {"fraction": 0.2},
        "clipping": "balanced",
        "bapo_target_share": 0.7,
    },
}
CUTS = {
    "micro-batches of 4": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 4, "use_remove_padding": False},
    "micro-batches of 1": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1, "use_remove_padding": False},
    "packed": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 2, "use_remove_padding": True},
    "packed by length": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40, "use_remove_padding": True},
}
# Float32: sums of 66 tokens in another order, and three steps that follow from them.
MEASURED, STEPPED = {"rel": 2e-5, "abs": 1e-7}, {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def rows(model):
    return verl_reference.stale(verl_reference.load(model), verl_setup.sequences())


def of_equipoise(keys):
    """Keys of `actor_rollout_ref.actor.policy_loss`."""
    return {"_target_": "equipoise.verl.EquipoiseLossConfig", "loss_mode": "equipoise", "equipoise": keys}


SGD = (
    "actor_rollout_ref.actor.optim.optimizer=SGD",
    f"actor_rollout_ref.actor.optim.lr={verl_reference.LEARNING_RATE}",
    "actor_rollout_ref.actor.optim.weight_decay=0",
    "actor_rollout_ref.actor.optim.total_training_steps=4",
    f"actor_rollout_ref.actor.optim.clip_grad={verl_reference.GRADIENT_NORM}",
)


def group_of(model, keys, ranks):
    loss = {"loss_mode": "vanilla"} if keys is None else of_equipoise(keys)
    clip = f"actor_rollout_ref.actor.clip_ratio_c={verl_reference.dual_clip(keys or {})}"
    return verl_setup.worker_group(model, *SGD, clip, ranks=ranks, policy_loss=loss)


def scalars(metrics):
    """Of each update; what all ranks must agree on is looked at on each."""
    per_update = []
    for number in range(UPDATES):
        values = {}
        for name, column in metrics.items():
            if name.startswith("equipoise/") and len(column) % UPDATES == 0:
                ranks = column[number * len(column) // UPDATES :][: len(column) // UPDATES]
                assert all(value == ranks[0] for value in ranks), (name, ranks)
                values[name.removeprefix("equipoise/")] = ranks[0]
        per_update.append(values)
    return per_update


def assert_same(found, expected):
    compared = 0
    for ours, theirs in zip(found, expected, strict=True):
        for name in set(verl_reference.NAMES) & theirs.keys():
            if not math.isnan(theirs[name]):
                assert ours[name] == pytest.approx(theirs[name], **MEASURED), name
                compared += 1
    assert compared >= 10 * UPDATES


def assert_same_weights(found, expected, **tolerance):
    assert found.keys() <= expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], **(tolerance or STEPPED), msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module", params=SETTINGS)
def keys(request):
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def core(model, rows, keys):
    return verl_reference.by_the_core(model, rows, keys, UPDATES)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def group(request, ray_cluster, model, keys, tmp_path_factory):
    """A group of workers, with the checkpoint that each test begins from."""
    start = tmp_path_factory.mktemp("start")
    folder = tmp_path_factory.mktemp("run") / "verl"
    with group_of(model, keys | {"output_dir": str(folder), "record_tokens": 1}, request.param) as workers:
        workers.save_checkpoint(str(start), None, 0)
        workers.start, workers.folder, workers.ranks = start, folder, request.param
        yield workers


def test_the_core_and_trl_agree(model, rows, keys, core, tmp_path):
    values, weights = verl_reference.by_trl(model, rows, keys, UPDATES, tmp_path)
    assert_same(values, core[0])
    assert_same_weights(weights, core[1])


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_updates_are_the_cores_whatever_they_are_cut_into(cut, group, rows, core, tmp_path):
    group.load_checkpoint(str(group.start))
    metrics = verl_setup.update(group, rows, epochs=UPDATES, **cut)
    assert_same(scalars(metrics), core[0])
    assert_same_weights(verl_setup.weights(group, tmp_path / "end"), core[1])
    assert len({update["bounds_high"] for update in core[0]} | {update["bounds_low"] for update in core[0]}) > 2


def test_the_run_folder_says_what_verls_metrics_say(group, rows, keys):
    from equipoise.diagnostics.records import read_records
    from equipoise.diagnostics.runs import read_run
    from equipoise.settings.reading import read_yaml

    group.load_checkpoint(str(group.start))
    metrics = scalars(verl_setup.update(group, rows, epochs=UPDATES, **CUTS["packed by length"]))
    assert read_yaml(group.folder / "resolved.yaml")["bapo_target_share"] == keys["bapo_target_share"]
    lines = read_run(group.folder).metrics
    assert [line["update"] for line in lines] == [1, 2, 3]
    for line, values in zip(lines, metrics, strict=True):
        assert {name: line[f"equipoise/{name}"] for name in values} == values
    records = read_records(group.folder).to_pandas()
    mask = rows["attention_mask"][:, rows["prompts"].shape[1] :].bool()
    for update, values in enumerate(metrics, start=1):
        tokens = records[records["update"] == update]
        assert len(tokens) == int(mask.sum())  # those of a tool are rows too
        chosen = tokens[tokens["action_mask"]]
        assert chosen["entropy"].mean() == pytest.approx(values["entropy"], rel=1e-5)
        if "entropy_control" not in keys:  # tokens with a gradient that is set are not clipped
            assert chosen["clipped_high"].mean() == pytest.approx(values["clip_fraction_high"])
        assert sorted(tokens["token_id"]) == sorted(rows["responses"][mask].tolist())
        assert set(tokens["sample"]) == set(range(len(mask)))
        assert (tokens["policy_version"] == 0).all()


def test_each_mini_batch_of_a_step_is_an_update(group, rows):
    from equipoise.diagnostics.runs import read_run

    group.load_checkpoint(str(group.start))
    half = {"mini_batch_size": 4, "global_batch_size": 4, "epochs": 2, "use_dynamic_bsz": False}
    verl_setup.update(group, rows, **half, micro_batch_size_per_gpu=1, use_remove_padding=True)
    lines = read_run(group.folder).metrics
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
    assert [line["equipoise/staleness"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["equipoise/entropy"] != lines[1]["equipoise/entropy"]  # of other sequences


def test_a_checkpoint_continues_the_run_exactly(group, rows, core, tmp_path):
    from equipoise.diagnostics.records import read_records
    from equipoise.diagnostics.runs import read_run

    cut = CUTS["micro-batches of 4"]
    group.load_checkpoint(str(group.start))
    verl_setup.update(group, rows, epochs=1, **cut)
    group.save_checkpoint(str(tmp_path / "one"), None, 1)
    whole = [verl_setup.update(group, rows, epochs=1, **cut) for _ in range(2)]
    weights = verl_setup.weights(group, tmp_path / "whole")
    group.load_checkpoint(str(group.start))
    group.load_checkpoint(str(tmp_path / "one"))
    again = [verl_setup.update(group, rows, epochs=1, **cut) for _ in range(2)]
    for first, second in zip(whole, again, strict=True):
        ours = {name: value for name, value in first.items() if name.startswith("equipoise/")}
        assert ours == {name: second[name] for name in ours}
    assert_same_weights(verl_setup.weights(group, tmp_path / "again"), weights, rtol=0, atol=0)
    states = [json.loads((tmp_path / name / "equipoise.json").read_text()) for name in ("whole", "again")]
    assert states[0] == states[1]
    assert states[0]["updates"] == 3
    if (controller := states[0]["polarity_controller"]) is not None:
        assert controller["progress"] == pytest.approx(3 / 4)
    assert [line["update"] for line in read_run(group.folder).metrics] == [1, 2, 3]
    counts = read_records(group.folder).to_pandas()["update"].value_counts()
    assert counts.to_dict() == dict.fromkeys((1, 2, 3), int(rows["attention_mask"][:, -12:].sum()))


def test_a_checkpoint_without_our_state_is_continued_with_a_fresh_controller(group, rows, core, tmp_path):
    group.load_checkpoint(str(group.start))
    verl_setup.update(group, rows, epochs=2, **CUTS["micro-batches of 4"])
    group.save_checkpoint(str(tmp_path / "foreign"), None, 1)
    (tmp_path / "foreign" / "equipoise.json").unlink()
    group.load_checkpoint(str(group.start))
    group.load_checkpoint(str(tmp_path / "foreign"))
    group.save_checkpoint(str(tmp_path / "anew"), None, 1)
    assert json.loads((tmp_path / "anew" / "equipoise.json").read_text())["updates"] == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "updates": "many"}'])
def test_a_damaged_state_is_named_in_one_line(text, group, tmp_path):
    folder = tmp_path / "damaged"
    group.save_checkpoint(str(folder), None, 0)
    (folder / "equipoise.json").write_text(text)
    with pytest.raises(Exception, match=r"InputError: \S*damaged/equipoise\.json is "):
        group.load_checkpoint(str(folder))


def test_stale_rollouts_without_their_log_probs_are_refused(group, rows):
    group.load_checkpoint(str(group.start))
    lost = {name: column for name, column in rows.items() if name != "old_log_probs"}
    with pytest.raises(Exception, match=r"InputError: the batch has no old_log_probs"):
        verl_setup.update(group, lost, **CUTS["micro-batches of 4"])


def test_with_both_features_off_the_weights_are_those_of_verls_own_loss(ray_cluster, model, rows, tmp_path):
    found = []
    for number, keys in enumerate([None, {}]):
        with group_of(model, keys, 1) as workers:
            verl_setup.update(workers, rows, epochs=UPDATES, **CUTS["packed by length"])
            found.append(verl_setup.weights(workers, tmp_path / str(number)))
    assert_same_weights(found[1], found[0], rtol=0, atol=0)
