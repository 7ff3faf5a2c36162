"""What a training run records: the numbers of its own update, whole after an interruption."""

import re

import numpy as np
import pytest
import torch
from resume_setup import SETTINGS
from trainer_setup import digit_reward, prompts, trainer

from equipoise.diagnostics.records import read_records

pytestmark = pytest.mark.slow

KEY = ["update", "sample", "position"]


def make(folder, **settings):
    return trainer(folder, **(SETTINGS | {"record_tokens": 1} | settings), dataset=prompts(16))


def frame(folder):
    return read_records(folder).to_pandas().sort_values(KEY, ignore_index=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    subject = make(folder)
    subject.train()
    return folder, frame(folder), {entry["step"]: entry for entry in subject.state.log_history if "loss" in entry}


@pytest.mark.slow
def test_records_add_up_to_the_metrics_of_their_update(run):
    _, records, metrics = run
    assert sorted(set(records["update"])) == list(range(1, SETTINGS["max_steps"] + 1))
    some_clipped = some_reweighted = 0
    for update, tokens in records.groupby("update"):
        logged = {k.removeprefix("equipoise/"): v for k, v in metrics[update].items()}
        assert tokens["action_mask"].all()
        assert tokens["entropy"].mean() == pytest.approx(logged["entropy"], rel=1e-5)
        assert tokens["ratio"].mean() == pytest.approx(logged["ratio_mean"], rel=1e-5)
        assert tokens["clipped_low"].mean() == pytest.approx(logged["clip_fraction_low"], abs=1e-9)
        assert tokens["clipped_high"].mean() == pytest.approx(logged["clip_fraction_high"], abs=1e-9)
        change = np.where(tokens["clipped_low"] | tokens["clipped_high"], 0, tokens["ratio"] * tokens["polarity"])
        assert np.maximum(change, 0).mean() == pytest.approx(logged["expanding_flow"], rel=1e-4, abs=1e-9)
        assert np.maximum(-change, 0).mean() == pytest.approx(logged["contracting_flow"], rel=1e-4, abs=1e-9)
        assert set(update - 1 - tokens["policy_version"]) == {logged["staleness"]}
        weight = {True: logged["weight_expanding_positive"], False: logged["weight_contracting_positive"]}
        moved = tokens[tokens["polarity"] != 0]
        expected = moved["advantage"] * (moved["polarity"] > 0).map(weight)
        np.testing.assert_allclose(moved["reweighted_advantage"], expected, rtol=1e-5)
        some_clipped += tokens["clipped_low"].sum() + tokens["clipped_high"].sum()
        some_reweighted += (moved["reweighted_advantage"] != moved["advantage"]).sum()
    assert some_clipped
    assert some_reweighted


@pytest.mark.slow
def test_ratio_is_that_of_the_recorded_logprobs_and_first_updates_are_on_policy(run):
    _, records, _ = run
    np.testing.assert_allclose(records["ratio"], np.exp(records["logprob"] - records["old_logprob"]), rtol=1e-5)
    assert (records["behavior_logprob"] == records["old_logprob"]).all()
    fresh = records["policy_version"] == records["update"] - 1
    np.testing.assert_allclose(records["ratio"][fresh], 1, rtol=1e-5)
    assert (records["ratio"][~fresh] - 1).abs().max() > 0.01


@pytest.mark.slow
def test_sample_group_text_and_reward_belong_together(run):
    _, records, _ = run
    texts = records.groupby(["update", "sample"]).agg(
        text=("token", lambda pieces: " ".join(p for p in pieces if not p.startswith("<"))),
        reward=("reward", "first"), prompt=("prompt", "first"), group=("group", "first"), spread=("reward", "nunique"),
    )  # fmt: skip
    assert set(texts["spread"]) == {1}
    np.testing.assert_allclose(texts["reward"], digit_reward(list(texts["text"])), rtol=1e-6)
    assert set(texts["prompt"].str.fullmatch(r"[\d +]+=")) == {True}
    per_group = texts.reset_index().groupby("group")
    assert set(per_group["prompt"].nunique()) == {1}
    assert set(per_group["sample"].nunique()) == {4}
    assert per_group.ngroups == texts.reset_index()["sample"].nunique() // 4
    # A reinforced sample is better than its group.
    means = texts.groupby("group")["reward"].transform("mean")
    advantage = records.groupby(["update", "sample"])["advantage"].first()
    clear = (texts["reward"] - means).abs() > 1e-3
    assert (np.sign(advantage[clear]) == np.sign((texts["reward"] - means)[clear])).all()


@pytest.mark.slow
def test_samples_are_used_again_in_the_second_pass_over_a_rollout_batch(run):
    _, records, _ = run
    uses = records.groupby("sample")["update"].nunique()
    assert set(uses[uses.index < uses.index.max() - 16]) == {2}


@pytest.mark.slow
def test_every_nth_update_the_first_included_and_a_share_of_whole_samples(run, tmp_path):
    _, everything, _ = run
    make(tmp_path, record_tokens=3, record_tokens_fraction=0.5).train()
    some = frame(tmp_path)
    assert sorted(set(some["update"])) == [1, 4, 7, 10, 13, 16, 19, 22]
    chosen = everything.merge(some[["update", "sample"]].drop_duplicates())
    columns = [c for c in some.columns if c not in ("run", "token")]
    assert 0 < len(some) < (everything["update"] % 3 == 1).sum()
    assert chosen.sort_values(KEY, ignore_index=True)[columns].equals(some[columns])


@pytest.mark.slow
def test_recording_changes_nothing_that_is_trained(tmp_path):
    weights = []
    for every in (0, 1):
        subject = make(tmp_path / str(every), record_tokens=every, max_steps=5, save_strategy="no")
        subject.train()
        weights.append(subject.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not (tmp_path / "0" / "tokens").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 6])
def test_an_interrupted_and_resumed_run_has_every_record_once(run, tmp_path, stop):
    _, whole, _ = run
    first = make(tmp_path)
    original = first._close_update

    def interrupt(update):
        original(update)
        if first.state.global_step == stop + 1:  # in the update after the one that follows the checkpoint
            raise KeyboardInterrupt

    first._close_update = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert max(frame(tmp_path)["update"]) == stop + 2
    make(tmp_path).train(resume_from_checkpoint=True)
    records = frame(tmp_path)
    columns = [c for c in whole.columns if c not in ("run", "token")]
    assert records[columns].equals(whole[columns])
    assert list(records["token"]) == list(whole["token"])


@pytest.mark.slow
def test_a_run_that_is_resumed_to_be_recorded_says_what_it_does_not_know(tmp_path):
    make(tmp_path, record_tokens=0, max_steps=5).train()  # in the middle of a rollout batch
    make(tmp_path, max_steps=9).train(resume_from_checkpoint=True)
    records = frame(tmp_path)
    unknown = records[records["update"] <= 8]
    assert set(unknown["sample"]) == {-1}
    assert unknown["reward"].isna().all()
    assert set(records["update"]) == {6, 7, 8, 9}
    assert records[records["update"] == 9]["reward"].notna().all()


@pytest.mark.parametrize("loss_type", ["cispo", "sapo"])
def test_losses_without_two_sided_bounds_record_no_clip_state(tmp_path, loss_type):
    make(tmp_path, loss_type=loss_type, clipping="fixed", max_steps=2, save_strategy="no").train()
    records = frame(tmp_path)
    assert records["clipped_low"].isna().all()
    assert records["clipped_high"].isna().all()


def test_sequence_ratios_are_recorded_as_clipped(tmp_path):
    make(tmp_path, importance_sampling_level="sequence", max_steps=3, save_strategy="no").train()
    records = frame(tmp_path)
    spread = records.groupby(["update", "sample"])["ratio"].agg(lambda r: r.max() - r.min())
    assert spread.max() < 1e-6
    assert (records["ratio"] - 1).abs().max() > 1e-3


def test_a_folder_that_cannot_be_made_and_settings_out_of_range(tmp_path):
    (tmp_path / "tokens").write_text("")
    with pytest.raises(ValueError, match="tokens must be a folder to be written to"):
        make(tmp_path, save_strategy="no").train()
    with pytest.raises(ValueError, match="record_tokens must be >= 0, got record_tokens=-1"):
        make(tmp_path, record_tokens=-1)
    with pytest.raises(ValueError, match=re.escape("record_tokens_fraction must be in (0, 1], got")):
        make(tmp_path, record_tokens_fraction=0.0)


def test_replayed_samples_are_recorded_without_a_reward(tmp_path):
    subject = trainer(
        tmp_path, record_tokens=1, replay_fraction=0.5, num_iterations=2, max_steps=6, replay_max_age=20,
        per_device_train_batch_size=8,
    )  # fmt: skip
    subject.train()
    table = read_records(tmp_path, columns=["update", "policy_version", "reward", "ratio"]).to_pandas()
    replayed = table[table["policy_version"] < (table["update"] - 1) // 2 * 2]
    assert len(replayed)
    assert replayed["reward"].isna().all()
    assert (replayed["ratio"] != 1).mean() > 0.9
    assert table[table["policy_version"] == (table["update"] - 1) // 2 * 2]["reward"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_cov", "ce_gppo"])
def test_controls_that_set_gradients_leave_the_records_true(tmp_path, name):
    subject = trainer(
        tmp_path, record_tokens=1, entropy_control=name, num_iterations=2, max_steps=6, learning_rate=0.05,
        entropy_control_args={"fraction": 0.2} if name == "kl_cov" else {},
    )  # fmt: skip
    subject.train()
    table = read_records(tmp_path).to_pandas()
    log_ratio = table["logprob"].to_numpy() - table["old_logprob"].to_numpy()
    np.testing.assert_allclose(np.exp(log_ratio), table["ratio"], rtol=1e-4)
    assert (np.abs(log_ratio) > 0.01).mean() > 0.2
    if name == "ce_gppo":  # g = beta bound A on the tokens beyond the bounds; recorded is g over the ratio
        beyond = (table["ratio"] > 1.2) & (table["advantage"] > 0)
        assert beyond.any()
        np.testing.assert_allclose(
            table["reweighted_advantage"][beyond] * table["ratio"][beyond], 1.2 * table["advantage"][beyond], rtol=1e-4
        )
        assert not table["clipped_high"][beyond].any()
