"""The sums of an update by hand: which mask each is taken over, what it is divided by."""

import math
from dataclasses import replace

import pytest
import torch

from equipoise import BoundGrid, ClipBounds, TokenStatistics, select_bounds
from equipoise.steering import MicroBatch, Update

# Five tokens: the third carries no loss, the last is padding.
ACTION = torch.tensor([[True, True, True, True, False]])
LOSS = torch.tensor([[True, True, False, True, False]])
RATIO = torch.tensor([[1.5, 0.4, 2.5, 1.0, torch.nan]])
ADVANTAGE = torch.tensor([[1.0, -1.0, -1.0, 2.0, torch.nan]])
TENDENCY = torch.tensor([[0.5, 0.25, 1.0, -0.125, torch.nan]])
ENTROPY = torch.tensor([[1.0, 2.0, 3.0, 4.0, torch.nan]])
LOGPROB = torch.tensor([[-1.0, -2.0, -3.0, -4.0, torch.nan]])
STALENESS = torch.tensor([[0, 1, 5, 40, 7]])
BATCH = MicroBatch(
    TokenStatistics(LOGPROB, ENTROPY, TENDENCY, torch.zeros(1, 5)),
    old_logprob=None,
    ratio=RATIO,
    advantage=ADVANTAGE,
    action_mask=ACTION,
    loss_mask=LOSS,
    token_weight=None,
    staleness=STALENESS,
)


def measured(low: float, high: float, batch: MicroBatch = BATCH):
    bounds = ClipBounds(low, high)
    grid = BoundGrid(low=(low, 0.9), high=(high, 3.0))
    update = Update(0, None, grid, "gradient", None)
    update.selection = replace(selection_of(grid), bounds=bounds)
    update.add(batch, batch.contribution(grid, "gradient"))
    return update.reduce(lambda vector: vector)


def selection_of(grid):
    return select_bounds(BATCH.contribution(grid, "gradient"), grid, target_share=0.99)


def test_flows_are_over_tokens_with_loss_and_entropy_over_all_of_the_policys_own():
    measures = measured(0.3, 2.0)  # nothing with loss is clipped
    # rho A T: 1.5 * 1 * 0.5, 0.4 * -1 * 0.25, 1 * 2 * -0.125
    assert measures.expanding_flow == pytest.approx(0.75 / 4)
    assert measures.contracting_flow == pytest.approx((0.1 + 0.25) / 4)
    assert measures.metrics()["balance_authority"] == pytest.approx((0.35 - 0.75) / (0.35 + 0.75))
    assert measures.entropy == pytest.approx(10 / 4)


def test_flows_are_split_by_the_sign_of_the_advantage():
    sums = measured(0.3, 2.0).sums
    assert sums["expanding_positive_flow"] == pytest.approx(0.75)
    assert sums["contracting_positive_flow"] == pytest.approx(0.25)  # 0.1 is of a negative token
    assert sums["nonzero_advantage"] == 3, "the third token carries no loss"


def test_clipped_tokens_leave_the_flow_and_are_counted_by_side():
    measures = measured(0.5, 1.2)
    assert measures.expanding_flow == 0
    assert measures.contracting_flow == pytest.approx(0.25 / 4)
    values = measures.metrics()
    assert (values["clip_fraction_low"], values["clip_fraction_high"]) == (0.25, 0.25)
    higher = measured(0.5, 1.6).metrics()
    assert (higher["clip_fraction_low"], higher["clip_fraction_high"]) == (0.25, 0)


def test_clipped_tokens_without_loss_are_not_counted():
    batch = replace(BATCH, ratio=torch.tensor([[1.5, 1.0, 0.4, 1.0, torch.nan]]))
    assert measured(0.5, 1.6, batch).metrics()["clip_fraction_low"] == 0


def test_spread_of_the_ratio_is_over_all_of_the_policys_own_tokens():
    values = measured(0.3, 2.0).metrics()
    ratio = RATIO[ACTION].double()
    assert values["ratio_mean"] == pytest.approx(ratio.mean().item())
    assert values["ratio_std"] == pytest.approx(ratio.std(correction=0).item())
    assert values["ratio_tail_fraction"] == 0.5, "2.5 > 2 and 0.4 < 0.5"


def test_shares_before_and_after_are_at_the_start_and_at_the_bounds_found():
    values = measured(0.3, 1.2).metrics()
    # gradient: P(1.2) = 2, P(3) = 3.5, N = 0.4 at 0.3 and 0 at 0.9
    assert values["share_gradient_before"] == pytest.approx(2 / 2.4)
    assert values["share_gradient_after"] == pytest.approx(1)
    # surrogate: min(1.5, h) + 2 against max(0.4, l)
    assert values["share_surrogate_before"] == pytest.approx(3.2 / 3.6)
    steps = selection_of(BoundGrid(low=(0.3, 0.9), high=(1.2, 3.0))).bounds
    assert values["share_surrogate_after"] == pytest.approx(3.5 / (3.5 + max(0.4, steps.low)))


def test_exhausted_is_logged():
    grid = BoundGrid(low=(0.3, 0.9), high=(1.2, 3.0))
    update = Update(0, None, grid, "gradient", replace(selection_of(grid), exhausted=True))
    update.add(BATCH, BATCH.contribution(grid, "gradient"))
    assert update.reduce(lambda vector: vector).metrics()["bounds_exhausted"] == 1


def test_an_update_without_tokens_has_no_entropy_and_no_flow():
    nothing = torch.zeros_like(ACTION)
    measures = measured(0.5, 1.2, replace(BATCH, action_mask=nothing, loss_mask=nothing))
    values = measures.metrics()
    assert measures.num_tokens == 0
    assert all(math.isnan(values[name]) for name in ("entropy", "expanding_flow", "ratio_std", "clip_fraction_low"))


def test_micro_batches_add_in_one_reduction():
    calls = []

    def double(vector):
        calls.append(vector)
        return 2 * vector

    grid = BoundGrid(low=(0.5, 0.9), high=(1.2, 3.0))
    update = Update(0, None, grid, "gradient", selection_of(grid))
    update.add(BATCH, BATCH.contribution(grid, "gradient"))
    update.add(BATCH, BATCH.contribution(grid, "gradient"))
    measures = update.reduce(double)
    assert len(calls) == 1
    assert measures.num_tokens == 16
    assert measures.entropy == pytest.approx(10 / 4)
    assert measures.contribution is not None
    assert measures.contribution.positive.sum() == pytest.approx(
        4 * BATCH.contribution(grid, "gradient").positive.sum()
    )


def test_off_policy_measures_by_hand():
    values = measured(0.3, 2.0).metrics()
    ratio = RATIO[ACTION].double()
    assert values["effective_sample_fraction"] == pytest.approx((ratio.sum() ** 2 / (4 * ratio.square().sum())).item())
    assert values["behavior_kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item())
    assert values["staleness"] == pytest.approx(46 / 4)
    shares = {k: v for k, v in values.items() if k.startswith("staleness_")}
    assert shares == {
        "staleness_0_fraction": 0.25, "staleness_1_fraction": 0.25, "staleness_2_3_fraction": 0,
        "staleness_4_7_fraction": 0.25, "staleness_8_15_fraction": 0, "staleness_16_up_fraction": 0.25,
    }  # fmt: skip
    assert values["ratio_p1"] == pytest.approx(0.4, rel=0.006)
    assert values["ratio_p99"] == pytest.approx(2.5, rel=0.006)


def test_entropy_clip_covariance_and_imbalance_by_hand():
    # with loss: (logprob, A, rho) = (-1, 1, 1.5), (-2, -1, .4), (-4, 2, 1); at [.5, 1.2] only the last is unclipped
    values = measured(0.5, 1.2).metrics()
    x, y = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0.0, 0.0, 2.0])
    assert values["entropy_clip_covariance"] == pytest.approx(torch.cov(torch.stack([x, y]), correction=0)[0, 1].item())
    assert values["negative_token_fraction"] == pytest.approx(1 / 3)
    # |min(rho A, clip(rho) A)|: 1.2, 0.5, 2
    assert values["negative_loss_fraction"] == pytest.approx(0.5 / 3.7)
    assert values["negative_loss_fraction"] == pytest.approx(1 - values["share_surrogate_after"])


def test_stale_data_with_ratios_of_one_is_degenerate():
    ones = torch.ones_like(RATIO)
    assert measured(0.5, 1.2, replace(BATCH, ratio=ones)).degenerate
    assert not measured(0.5, 1.2).degenerate
    assert not measured(0.5, 1.2, replace(BATCH, ratio=ones, staleness=torch.zeros_like(STALENESS))).degenerate
