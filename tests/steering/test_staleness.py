"""Counts that add, quantiles to half a percent, and estimators against their definitions."""

import math

import numpy as np
import pytest
import torch

from equipoise.steering.staleness import (
    LOG_RATIO_END,
    STALENESS_BUCKETS,
    behavior_kl,
    covariance,
    effective_sample_fraction,
    ratio_counts,
    ratio_quantile,
    staleness_counts,
)


def counted(ratio):
    return ratio_counts(ratio, torch.ones_like(ratio, dtype=torch.bool))


def test_what_lies_outside_the_mask_is_not_counted():
    ratio, mask = torch.tensor([1.0, torch.nan, 0.0, 2.0]), torch.tensor([True, False, False, True])
    assert ratio_counts(ratio, mask).tolist() == counted(torch.tensor([1.0, 2.0])).tolist()
    assert staleness_counts(torch.tensor([0, 1, -7, 20]), mask).tolist() == [1, 0, 0, 0, 0, 1]


def test_every_staleness_lies_in_its_bucket():
    for staleness in range(40):
        counts = staleness_counts(torch.tensor([staleness]), torch.tensor([True]))
        (bucket,) = [i for i, (first, last) in enumerate(STALENESS_BUCKETS.values()) if first <= staleness <= last]
        assert counts.tolist() == [float(i == bucket) for i in range(len(STALENESS_BUCKETS))]


def test_counts_add():
    ratio = torch.rand(100) * 3 + 0.01
    torch.testing.assert_close(counted(ratio), counted(ratio[:37]) + counted(ratio[37:]))
    assert counted(ratio).sum() == 100
    assert counted(torch.empty(0)).sum() == 0


@pytest.mark.parametrize("quantile", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_quantiles_are_right_to_half_a_percent(quantile):
    ratio = torch.randn(20001, generator=torch.Generator().manual_seed(0)).mul(0.5).exp()
    exact = float(np.quantile(ratio.double().numpy(), quantile, method="inverted_cdf"))
    assert ratio_quantile(counted(ratio), quantile) == pytest.approx(exact, rel=0.0051)


def test_a_ratio_of_one_is_one_and_what_lies_beyond_is_at_the_end():
    assert ratio_quantile(counted(torch.ones(3)), 0.5) == 1
    assert ratio_quantile(counted(torch.tensor([1e-9])), 0.5) == pytest.approx(math.exp(-LOG_RATIO_END))
    assert ratio_quantile(counted(torch.tensor([1e9])), 0.5) == pytest.approx(math.exp(LOG_RATIO_END))
    assert math.isnan(ratio_quantile(counted(torch.empty(0)), 0.5))


def test_effective_sample_fraction():
    assert effective_sample_fraction(4, 4, 4) == 1
    assert effective_sample_fraction(4, 4, 16) == 0.25  # one token has all the weight
    assert math.isnan(effective_sample_fraction(0, 0, 0))


def test_behavior_kl_estimates_the_divergence_of_the_policies():
    mu, pi = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    ratio = pi / mu
    exact = (mu * (mu / pi).log()).sum().item()
    counts = 1000 * mu  # the expectation under mu, exactly
    estimate = behavior_kl(1000, (counts * ratio).sum().item(), (counts * ratio.log()).sum().item())
    assert estimate == pytest.approx(exact, rel=1e-4)
    assert behavior_kl(3, 3, 0) == 0


def test_covariance():
    x, y = torch.randn(2, 50, dtype=torch.float64)
    expected = torch.cov(torch.stack([x, y]), correction=0)[0, 1].item()
    assert covariance(50, x.sum().item(), y.sum().item(), (x * y).sum().item()) == pytest.approx(expected)
    assert math.isnan(covariance(0, 0, 0, 0))
