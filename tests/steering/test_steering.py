"""One update on plain tensors: no host, no waiting within a micro-batch, the same for any split and on every rank."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from steering_rows import BALANCED, CONTROLS, PAPO, ROWS, TIME, WHOLE, carried_out, micro_batches, rows, steering
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise import TokenStatistics
from equipoise.steering import DivergedError, MicroBatch, Ranks


class Waiting(TorchDispatchMode):
    """Notes every operation for which the host would wait on a GPU: its result, or its shape, is read."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal", "item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in self.WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_what_counts_waiting_sees_it():
    x = torch.arange(4.0)
    with Waiting() as waiting:
        x.sum().item()
        bool(x.any())
        x[x > 1]
        x.nonzero()
        torch.bincount(torch.tensor([1, 2]))
    assert len(waiting.seen) >= 5


@pytest.mark.parametrize(
    "keys",
    [
        {},
        BALANCED,
        BALANCED | {"bapo_scope": "lagged"},
        BALANCED | {"bapo_measure": "surrogate", "bapo_token_weight": "rollout"},
        PAPO,
        PAPO | {"papo_tanh_scale": 0.1},
        {"polarity": "positive_only"},
        BALANCED | PAPO,
        *({"entropy_control": name} for name in CONTROLS),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_parts", [1, 4])
def test_nothing_waits_within_an_update_and_the_end_brings_one_vector(keys, num_parts, monkeypatch):
    subject = steering(**keys)
    known, weight = rows(), keys.get("bapo_token_weight") == "rollout"
    carried_out(subject, micro_batches(known, num_parts, rollout_weight=weight))  # copies the grid to the device
    brought, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: brought.append(self) or original(self))
    with Waiting() as waiting:
        batches = micro_batches(known, num_parts, rollout_weight=weight)
        update = subject.open(1, moved=True, several=num_parts > 1)
        if update.needs_preview:
            subject.preview(update, batches)
        for batch in batches:
            subject.steer(update, batch)
    assert waiting.seen == []
    assert brought == []
    subject.close(update, progress=0.0)
    assert len(brought) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for():
    subject = steering(**BALANCED, **PAPO)
    known = {
        k: TokenStatistics(*(x.cuda() for x in v)) if k == "statistics" else v.cuda() for k, v in rows().items()
    }  # fmt: skip
    carried_out(subject, micro_batches(known, 4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = micro_batches(known, 4)
        update = subject.open(1, moved=True, several=True)
        subject.preview(update, batches)
        for batch in batches:
            subject.steer(update, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    subject.close(update, progress=0.0)


@pytest.mark.parametrize(
    "keys",
    [
        BALANCED,
        BALANCED | PAPO,
        *({"entropy_control": name} for name in (*WHOLE, *CONTROLS)),
    ],
    ids=str,
)
def test_an_update_is_the_same_for_any_split(keys):
    whole, whole_metrics = carried_out(steering(**keys), micro_batches(rows(), 1))
    for num_parts in (2, 8):
        parts, metrics = carried_out(steering(**keys), micro_batches(rows(), num_parts))
        assert torch.equal(torch.cat([part.advantage for part in parts]), whole[0].advantage)
        assert {float(part.bounds.high) for part in parts} == {float(whole[0].bounds.high)}
        assert metrics == pytest.approx(whole_metrics, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("kl_cov", {"fraction": 0.5}), ("clip_cov", {"fraction": 0.5, "covariance_low": 0.0, "covariance_high": 1e-9})],
)
def test_a_selection_does_not_follow_the_rounding_of_a_mean(name, settings):
    known = rows()
    # Half of the advantages are their mean: how far they are from it, and on which side, is the rounding of the sum.
    known["advantage"] = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3], dtype=torch.float64)
    known["action_mask"] = known["loss_mask"] = torch.ones_like(known["loss_mask"])
    known["old_logprob"] = known["statistics"].logprob
    keys = {"entropy_control": name, "entropy_control_args": settings}
    expected, _ = carried_out(steering(**keys), micro_batches(known, 1))
    for seed in range(8):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
        moved = {key: value[order] for key, value in known.items() if key != "statistics"}
        moved["statistics"] = TokenStatistics(*(x[order] for x in known["statistics"]))
        parts, _ = carried_out(steering(**keys), micro_batches(moved, 8))
        assert torch.equal(torch.cat([part.advantage for part in parts]), expected[0].advantage[order])


@dataclass
class Other:
    """The second rank of two, whose vectors are given."""

    vectors: list

    def all_reduce(self, vector):
        return vector + self.vectors.pop(0)


def test_ranks_have_the_bounds_and_metrics_of_the_whole():
    _, whole = carried_out(steering(**BALANCED), micro_batches(rows(), 1))
    first, second = micro_batches(rows(), 2)
    sent = []
    carried_out(steering(Ranks(all_reduce=lambda v: sent.append(v) or v), **BALANCED), [second])
    # The sums of an update depend on the bounds, which two ranks find together: the other's are formed at those.
    contribution, _ = sent
    ranks = Ranks(all_reduce=lambda v: v + contribution if v.numel() == contribution.numel() else v)
    subject = steering(ranks, **BALANCED)
    update = subject.open(0, moved=True, several=False)
    subject.steer(update, first)
    subject.steer(update, second)
    assert float(update.bounds.high) == whole["bounds_high"]
    assert float(update.bounds.low) == whole["bounds_low"]


@pytest.mark.parametrize("field", ["ratio", "advantage", "token_weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("keys", [{}, BALANCED], ids=str)
def test_divergence_is_said_by_every_rank_before_the_optimizer_steps(field, value, keys):
    known = rows()
    (sound,) = micro_batches(known, 1)
    sound = replace(sound, token_weight=torch.ones_like(sound.ratio))
    spoilt = getattr(sound, field).clone()
    spoilt[1, 0] = value
    sent = []
    spoilt_rank = steering(Ranks(all_reduce=lambda v: sent.append(v.clone()) or v), **keys)
    with pytest.raises(DivergedError, match="update 1: training has diverged.*learning_rate"):
        carried_out(spoilt_rank, [replace(sound, **{field: spoilt})])
    other = Other(sent)
    with pytest.raises(DivergedError):  # the rank whose own tokens are sound
        carried_out(steering(Ranks(all_reduce=other.all_reduce), **keys), [sound])
    assert sent == []


@pytest.mark.parametrize("field", ["logprob", "entropy", "tendency"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_statistics_that_are_not_finite_are_divergence_too(field, value):
    (sound,) = micro_batches(rows(), 1)
    spoilt = getattr(sound.statistics, field).clone()
    spoilt[1, 0] = value
    batch = replace(sound, statistics=sound.statistics._replace(**{field: spoilt}))
    with pytest.raises(DivergedError):
        carried_out(steering(**PAPO), [batch])


@pytest.mark.parametrize("keys", [{}, BALANCED | PAPO, *({"entropy_control": name} for name in WHOLE)], ids=str)
@pytest.mark.parametrize("shift", [200.0, -80.0])
def test_ratios_at_the_ends_of_float32_are_measured(shift, keys):
    known = rows()
    known["old_logprob"] = known["statistics"].logprob + shift
    _, metrics = carried_out(steering(**keys), micro_batches(known, 2))
    assert {name for name, value in metrics.items() if math.isinf(value)} == set()
    assert metrics["behavior_kl"] > 70


@pytest.mark.parametrize("keys", [{}, BALANCED, PAPO, *({"entropy_control": name} for name in WHOLE)], ids=str)
@pytest.mark.parametrize("masks", [("action_mask", "loss_mask"), ("loss_mask",)], ids=str)
def test_an_update_without_tokens_is_carried_out(masks, keys):
    known = rows()
    known |= {name: torch.zeros_like(known[name]) for name in masks}
    _, metrics = carried_out(steering(**keys), micro_batches(known, 2))
    assert math.isnan(metrics["entropy"]) == (len(masks) == 2)


def test_what_lies_outside_the_mask_is_never_read():
    (sound,) = micro_batches(rows(), 1)
    outside = ~sound.action_mask
    poison = {
        name: getattr(sound, name).masked_fill(outside, torch.nan) for name in ("ratio", "advantage", "old_logprob")
    }
    statistics = TokenStatistics(*(x.masked_fill(outside, torch.nan) for x in sound.statistics))
    for keys in (BALANCED | PAPO, {"entropy_control": "steer"}, {"entropy_control": "kl_cov"}):
        expected, metrics = carried_out(steering(**keys), [sound])
        found, poisoned = carried_out(steering(**keys), [replace(sound, statistics=statistics, **poison)])
        assert poisoned == metrics
        inside = sound.loss_mask
        assert torch.equal(found[0].advantage[inside], expected[0].advantage[inside])


def test_the_ratio_of_a_sequence_is_over_all_tokens_that_the_policy_chose():
    known = rows()
    (batch,) = micro_batches(known, 1, sequence_ratio=True)
    log_ratio = known["statistics"].logprob - known["old_logprob"]
    assert (known["loss_mask"] != known["action_mask"]).any()
    for row, mask in enumerate(known["action_mask"]):
        expected = log_ratio[row][mask].mean().exp()
        assert batch.ratio[row].tolist() == pytest.approx([expected.item()] * TIME)


def test_the_weight_of_a_token_in_the_share_is_the_rollouts_probability_times_the_hosts_correction():
    known, correction = rows(), torch.linspace(0.5, 1.5, ROWS)[:, None]
    probability = known["old_logprob"].exp()
    inside = known["action_mask"]
    for options, expected in (
        ({"rollout_weight": True}, probability),
        ({"correction": correction}, correction.expand(ROWS, TIME)),
        ({"rollout_weight": True, "correction": correction}, probability * correction),
    ):
        batch = MicroBatch.of(**known, **options)
        assert torch.equal(batch.token_weight[inside], expected[inside])
    assert MicroBatch.of(**known).token_weight is None


def test_state_goes_through_a_checkpoint():
    keys = BALANCED | {"bapo_scope": "lagged", "polarity": "papo", "papo_warmup_updates": 1}
    subject, resumed = steering(**keys), steering(**keys)
    carried_out(subject, micro_batches(rows(), 2))
    resumed.load_state_dict(subject.state_dict(), progress=0.5)
    assert resumed.state_dict()["lagged_bounds"] == subject.state_dict()["lagged_bounds"]
    assert resumed.controller.progress == 0.5
    assert resumed.controller.reference_entropy == subject.controller.reference_entropy
    for one in (subject, resumed):
        one.last_entropy = 0.0
    assert carried_out(subject, micro_batches(rows(1), 2))[1] == carried_out(resumed, micro_batches(rows(1), 2))[1]
