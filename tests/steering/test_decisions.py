"""What steering decides beside the sums: when it looks ahead, what its controllers are told, what it warns of."""

import itertools
import logging

import pytest
import torch
from steering_rows import (
    BALANCED,
    BOUNDS,
    CONTROLS,
    PAPO,
    ROWS,
    TIME,
    WHOLE,
    carried_out,
    micro_batches,
    rows,
    steering,
)

from equipoise.polarity import predicted_entropy_change
from equipoise.steering import Ranks
from equipoise.steering.token_control import token_columns
from equipoise.steering.watches import DEGENERATE_UPDATES, IDLE_UPDATES

LAGGED = BALANCED | {"bapo_scope": "lagged"}


def without_tokens(known):
    nothing = torch.zeros(ROWS, TIME, dtype=torch.bool)
    return known | {"action_mask": nothing, "loss_mask": nothing}


@pytest.mark.parametrize(
    ("keys", "looks_ahead"),
    [
        (BALANCED, True), *(({"entropy_control": name}, True) for name in WHOLE),
        ({}, False), (LAGGED, False), (PAPO, False), *(({"entropy_control": name}, False) for name in CONTROLS),
    ],
    ids=str,
)  # fmt: skip
def test_only_several_micro_batches_are_looked_at_ahead(keys, looks_ahead):
    assert steering(**keys).open(0, moved=True, several=True).needs_preview == looks_ahead
    assert not steering(**keys).open(0, moved=True, several=False).needs_preview


def test_data_of_the_policy_itself_needs_no_search():
    subject = steering(**BALANCED)
    update = subject.open(0, moved=False, several=True)
    assert not update.needs_preview
    for batch in micro_batches(rows(), 2):
        subject.steer(update, batch)
    metrics = subject.close(update, progress=0.0)
    assert (metrics["bounds_inactive"], metrics["bounds_low"], metrics["bounds_high"]) == (1, 0.6, 1.2)


@pytest.mark.parametrize("keys", [LAGGED, PAPO | {"papo_signal": "reference", "papo_warmup_updates": 1}], ids=str)
def test_an_update_without_tokens_tells_the_controllers_nothing(keys):
    subject = steering(**keys)
    carried_out(subject, micro_batches(rows(), 2))
    before = subject.state_dict()
    carried_out(subject, micro_batches(without_tokens(rows(1)), 2))
    assert subject.state_dict() == before


def test_the_controller_is_told_what_the_update_measured(monkeypatch):
    told = []
    subject = steering(**PAPO)
    monkeypatch.setattr(subject.controller, "observe", lambda **values: told.append(values))
    (batch,) = micro_batches(rows(), 1)
    update = subject.open(0, moved=True, several=False)
    subject.steer(update, batch)
    metrics = subject.close(update, progress=0.25)
    change = predicted_entropy_change(batch.statistics, batch.advantage, batch.ratio, BOUNDS).double()
    change = torch.where(batch.loss_mask & (batch.advantage > 0), change, 0) / batch.action_mask.sum()
    assert told == [
        {
            "entropy": metrics["entropy"],
            "expanding_flow": metrics["expanding_flow"],
            "contracting_flow": metrics["contracting_flow"],
            "expanding_positive_flow": pytest.approx(change.clamp(min=0).sum().item()),
            "contracting_positive_flow": pytest.approx(-change.clamp(max=0).sum().item()),
            "progress": 0.25,
        }
    ]
    assert 0 < told[0]["expanding_positive_flow"] < told[0]["expanding_flow"]


def test_phase_and_weights_are_logged_as_they_were_in_force():
    subject = steering(polarity="papo", papo_signal="balance", papo_warmup_updates=1)
    _, first = carried_out(subject, micro_batches(rows(), 1))
    phase, weights = subject.controller.phase, vars(subject.controller.weights)
    assert first["phase"] == 0 != phase
    _, second = carried_out(subject, micro_batches(rows(1), 1))
    assert second["phase"] == phase
    assert {name: second[f"weight_{name}"] for name in weights} == weights


@pytest.mark.parametrize("name", ["positive_only", "negative_only", "hard", "soft"])
def test_advantages_are_reweighted_by_the_sign_of_their_polarity(name):
    scale = {"papo_tanh_scale": 0.1} if name == "soft" else {}
    keys = {"polarity": name} if name.endswith("only") else PAPO | scale
    (batch,) = micro_batches(rows(), 1)
    ((steered,), _) = carried_out(steering(**keys), [batch])
    tendency, advantage = batch.statistics.tendency, batch.advantage
    polarity = tendency * advantage
    weight = {
        "positive_only": (polarity > 0).float(),
        "negative_only": (polarity < 0).float(),
        "hard": 1 + 0.5 * polarity.sign(),
        "soft": 1 + 0.5 * polarity.sign() * (tendency.abs() / 0.1).tanh(),
    }
    inside = batch.action_mask
    torch.testing.assert_close(steered.advantage[inside], (advantage * weight[name])[inside])


def test_the_change_of_the_entropy_is_to_the_update_before():
    subject = steering()
    metrics = [carried_out(subject, micro_batches(rows(seed), 1))[1] for seed in range(3)]
    assert "entropy_change" not in metrics[0]
    for before, after in itertools.pairwise(metrics):
        assert after["entropy_change"] == after["entropy"] - before["entropy"] != 0


@pytest.mark.parametrize("name", WHOLE)
def test_two_ranks_mark_as_one_does(name):
    (whole,), metrics = carried_out(steering(entropy_control=name), micro_batches(rows(), 1))
    parts = micro_batches(rows(), 2)
    columns = [token_columns(part) for part in parts]

    def gather(own):
        return [keys if own.dtype == torch.int64 else values for values, keys in columns]

    touched = 0.0
    for rank, part in enumerate(parts):
        subject = steering(Ranks(all_gather=gather, rank=rank), entropy_control=name)
        (steered,), measured = carried_out(subject, [part])
        assert torch.equal(steered.advantage, whole.advantage[4 * rank : 4 * rank + 4])
        touched += measured["controlled_fraction"] * part.action_mask.sum().item()
    assert touched == pytest.approx(metrics["controlled_fraction"] * sum(p.action_mask.sum().item() for p in parts))


def warned(caplog, updates, known):
    subject = steering()
    with caplog.at_level(logging.WARNING, "equipoise"):
        for number in range(updates):
            update = subject.open(number, moved=True, several=False)
            subject.steer(update, micro_batches(known(number), 1)[0])
            subject.close(update, progress=0.0)
    return [record.getMessage() for record in caplog.records]


def test_updates_without_any_advantage_are_said_once_by_number(caplog):
    def known(number):
        # One without tokens says nothing about the rewards, and does not interrupt the count.
        return without_tokens(rows()) if number == 2 else rows() | {"advantage": torch.zeros(ROWS)}

    (line,) = warned(caplog, IDLE_UPDATES + 4, known)
    assert line.startswith(f"Update {IDLE_UPDATES + 1}:")


@pytest.mark.parametrize("moves_at", [None, 1])
def test_stale_data_at_ratios_of_one_is_said_once_by_number(caplog, moves_at):
    def known(number):
        same = rows()
        return same if number == moves_at else same | {"old_logprob": same["statistics"].logprob}

    (line,) = warned(caplog, DEGENERATE_UPDATES + 3, known)
    assert line.startswith(f"Update {DEGENERATE_UPDATES + (0 if moves_at is None else moves_at + 1)}:")


def test_an_update_that_needs_a_preview_is_not_steered_without_one():
    subject = steering(**BALANCED)
    update = subject.open(0, moved=True, several=True)
    batches = micro_batches(rows(), 2)
    with pytest.raises(RuntimeError, match="needs a preview"):
        subject.steer(update, batches[0])
    subject.preview(update, batches)
    for batch in batches:
        subject.steer(update, batch)
