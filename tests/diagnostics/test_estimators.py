import itertools

import numpy as np
import pytest

from equipoise.diagnostics.estimators import bootstrap_interval, distinct_at_k, pass_at_k


def subsets(marks, k):
    return list(itertools.combinations(marks, k))


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(num_samples):
    for k in range(1, num_samples + 1):
        for num_correct in range(num_samples + 1):
            drawn = subsets([True] * num_correct + [False] * (num_samples - num_correct), k)
            expected = sum(map(any, drawn)) / len(drawn)
            assert pass_at_k(num_correct, num_samples, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_by_hand():
    # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
    np.testing.assert_allclose(pass_at_k([0, 1, 2, 4], 4, 2), [0.0, 0.5, 5 / 6, 1.0])
    np.testing.assert_allclose(pass_at_k(np.array([[0, 3], [6, 12]]), 12, 1), [[0, 0.25], [0.5, 1]])


def test_pass_at_k_is_stable_where_binomials_overflow():
    value = pass_at_k(1, 100_000, 50_000)
    assert value == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("counts", [[], [1], [2, 1], [3, 1, 1], [2, 2, 2], [6]])
def test_distinct_at_k_is_the_mean_over_subsets(counts):
    num_samples = 7
    answers = [answer for answer, count in enumerate(counts) for _ in range(count)]
    samples = answers + [None] * (num_samples - len(answers))
    for k in range(1, num_samples + 1):
        drawn = [len(set(subset) - {None}) for subset in subsets(samples, k)]
        assert distinct_at_k(counts, num_samples, k) == pytest.approx(np.mean(drawn), abs=1e-12)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_outside_the_samples_is_refused(k):
    message = rf"k must be in 1..num_samples=4, got k={k}"
    with pytest.raises(ValueError, match=message):
        pass_at_k([1, 2], 4, k)
    with pytest.raises(ValueError, match=message):
        distinct_at_k([1, 2], 4, k)


@pytest.mark.parametrize("counts", [[-1], [5], [0.5]])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="num_correct must be integers in 0..num_samples = 4"):
        pass_at_k(np.array(counts), 4, 1)


def test_more_answers_than_samples_are_refused():
    with pytest.raises(ValueError, match="counts must add up to at most num_samples = 4, got 5"):
        distinct_at_k([3, 2], 4, 1)


def test_bootstrap_interval_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values, seed=1)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)
    narrow = bootstrap_interval(values, level=0.5, seed=1)
    assert narrow[0] == pytest.approx(values.mean() - 0.674 * error, abs=0.03)
    assert narrow[1] == pytest.approx(values.mean() + 0.674 * error, abs=0.03)


def test_bootstrap_interval_is_reproducible_and_exact_for_constants():
    assert bootstrap_interval([0.0, 1.0, 1.0], seed=4) == bootstrap_interval([0.0, 1.0, 1.0], seed=4)
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)


@pytest.mark.parametrize("size", [1, 2, 292, 5000])
def test_bootstrap_interval_is_of_resamples_drawn_one_by_one(size):
    """To the last bit, so that intervals of runs before and after a change can be compared."""
    values = np.random.default_rng(size).integers(0, 9, size) / 8
    generator = np.random.default_rng(3)
    means = [values[generator.integers(size, size=size)].mean() for _ in range(500)]
    low, high = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, level=0.9, num_resamples=500, seed=3) == (low, high)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], np.zeros((2, 2))])
def test_values_that_have_no_interval_are_refused(values):
    with pytest.raises(ValueError, match="flat, non-empty sequence of finite values"):
        bootstrap_interval(values)


@pytest.mark.parametrize("settings", [{"level": 0.0}, {"level": 1.0}, {"num_resamples": 0}])
def test_bootstrap_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"(level must be in \(0, 1\)|num_resamples must be >= 1), got"):
        bootstrap_interval([1.0, 2.0], **settings)
