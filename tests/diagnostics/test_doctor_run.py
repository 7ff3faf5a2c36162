"""Every check of what a run logged: one record that makes it speak, one that does not, and the edges of its limits."""

import numpy as np
import pytest

from equipoise.diagnostics.doctor import RUN_CHECKS, RunEvidence
from equipoise.diagnostics.doctor import run_checks as checks
from equipoise.diagnostics.doctor.ratio_tail import check_ratio_tail
from equipoise.diagnostics.metric_names import translated
from equipoise.diagnostics.runs import RunRecord

P = "equipoise/"


def run(settings=None, count=None, **columns):
    """A run from columns of equal length; a number stands for a constant, `_` for `/`."""
    count = count or max(len(v) for v in columns.values() if not isinstance(v, int | float))
    lists = {k: [v] * count if isinstance(v, int | float) else list(v) for k, v in columns.items()}
    metrics = [{"update": i + 1} | {k: v[i] for k, v in lists.items() if v[i] is not None} for i in range(count)]
    return RunEvidence(RunRecord("run", [translated(line) for line in metrics], []), settings or {})


def test_there_is_one_visible_list_of_checks_with_names_of_their_own():
    named = [check(run(count=1, loss=0.0)) for check in RUN_CHECKS]
    assert len({finding.name for finding in named}) == len(RUN_CHECKS) == 11
    assert {finding.severity for finding in named} == {"not checked"}, "nothing logged, nothing said"


# ---- ratios -------------------------------------------------------------------------------------------------------


def ratios(deviation, staleness=(0, 1, 2, 3, 1, 2), rate=1e-3, settings=None):
    return run(settings, **{P + "staleness": staleness, P + "ratio_std": deviation, "learning_rate": rate})


def test_ratios_that_are_always_1_on_stale_data():
    found = checks.check_ratios(ratios([0.0] * 6))
    assert found.severity == "wrong"
    assert "the ratio was 1 in all 5 updates on stale data (up to 3 updates old)" in found.evidence
    assert "Behaviour log-probs were lost" in found.why
    assert "old_per_token_logps" in found.change


def test_one_stale_update_that_moved_is_enough():
    assert checks.check_ratios(ratios([0, 0, 0, 0, 0.02, 0])).severity == "ok"
    assert checks.check_ratios(ratios([0, 0, 0, 0, 1e-7, 0])).severity == "wrong", "rounding"


def test_ratios_of_a_policy_that_does_not_move():
    found = checks.check_ratios(ratios([0.0] * 6, rate=0.0))
    assert found.severity == "wrong"
    assert "learning_rate was 0 throughout" in found.evidence


def test_ratios_of_a_policy_without_gradient():
    columns = {P + "staleness": [0, 1, 2, 3, 1], P + "ratio_std": 0.0, "learning_rate": 1e-3}
    found = checks.check_ratios(run(**columns, grad_norm=0.0))
    assert found.severity == "wrong"
    assert "gradient norm was always 0" in found.evidence
    assert "equal rewards" in found.change
    assert "Behaviour log-probs were lost" in checks.check_ratios(run(**columns, grad_norm=[0, 0, 0.1, 0, 0])).why


def test_fresh_data_has_ratio_1_by_construction():
    found = checks.check_ratios(ratios([0.0] * 6, staleness=[0] * 6))
    assert (found.severity, found.evidence[:40]) == ("ok", "all 6 updates used fresh data, so the ra")
    found = checks.check_ratios(ratios([0.0] * 6, staleness=[0] * 6, settings={"clipping": "balanced"}))
    assert found.severity == "wrong"
    assert "Balanced clipping is on and never acts" in found.why


def test_a_few_stale_updates_say_nothing():
    assert checks.check_ratios(ratios([0.0] * 6, staleness=[0, 0, 0, 1, 1, 1])).severity == "not checked"
    assert checks.check_ratios(ratios([0.0] * 6, staleness=[0, 0, 1, 1, 1, 1])).severity == "wrong"


# ---- tokens in the entropy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "severity"), [(0.5, "ok"), (0.46, "ok"), (0.44, "warning"), (0.56, "warning")])
def test_entropies_over_other_tokens(theirs, severity):
    found = checks.check_entropy_tokens(run(count=5, **{P + "entropy": 0.5, "entropy": theirs}))
    assert found.severity == severity
    if severity == "warning":
        assert "padding or tool output" in found.why
        assert "env_mask" in found.change


def test_entropies_that_differ_in_a_run_with_tools_are_wrong():
    found = checks.check_entropy_tokens(
        run(count=5, **{P + "entropy": 0.5, "entropy": 0.2, "tools/call_frequency": 1.0})
    )
    assert found.severity == "wrong"
    assert "differ by 60.0% (median over 5 updates); tool calls were logged" in found.evidence


def test_one_update_with_other_entropies_is_no_finding():
    found = checks.check_entropy_tokens(run(**{P + "entropy": [0.5] * 5, "entropy": [0.5, 0.5, 0.5, 0.1, 0.5]}))
    assert found.severity == "ok"


# ---- truncation and rewards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "severity"), [(0.1, "ok"), (0.19, "ok"), (0.21, "warning"), (0.51, "wrong")])
def test_truncated_share(share, severity):
    found = checks.check_truncation(run({"max_completion_length": 64}, 8, **{"completions/clipped_ratio": share}))
    assert found.severity == severity
    assert (
        f"{share:.0%} of the completions had no end (last 4 rollout batches); max_completion_length is 64"
        in found.evidence
    )
    assert ("Raise max_completion_length" in found.change) == (severity != "ok")


def test_truncation_looks_at_how_the_run_is_now():
    early = run(**{"completions/clipped_ratio": [0.9] * 15 + [0.0] * 5})
    assert checks.check_truncation(early).severity == "ok"
    masked = run({"mask_truncated_completions": True}, 4, **{"completions/clipped_ratio": 0.9})
    assert "They are masked" in checks.check_truncation(masked).why


@pytest.mark.parametrize(
    ("share", "rewards", "severity"),
    [
        (0.4, [0.1] * 8, "ok"),
        (0.49, [0.1] * 8, "ok"),
        (0.51, [0.1] * 8, "warning"),
        (0.91, [0.1] * 8, "wrong"),
        (0.91, [0.1] * 4 + [0.9] * 4, "warning"),
        (0.91, [0.9] * 4 + [0.1] * 4, "wrong"),
    ],
)
def test_groups_with_equal_rewards(share, rewards, severity):
    found = checks.check_equal_rewards(run(reward=rewards, frac_reward_zero_std=share))
    assert found.severity == severity
    assert f"{share:.0%} of the groups had equal rewards" in found.evidence
    assert f"the mean reward was {rewards[-1]:.3g}" in found.evidence
    assert ("num_generations" in found.change) == (severity != "ok")


def test_a_verifier_that_accepts_nothing():
    found = checks.check_reward_moves(run(count=3, reward=0.0, reward_std=0.0))
    assert found.severity == "wrong"
    assert "every completion of all 3 rollout batches got the reward 0" in found.evidence
    assert "log_completions" in found.change


@pytest.mark.parametrize(
    "columns", [{"reward": [0, 0, 0.1], "reward_std": 0.0}, {"reward": [0.5] * 3, "reward_std": 0.5}]
)
def test_rewards_that_vary_over_time_or_within_a_batch(columns):
    assert checks.check_reward_moves(run(**columns)).severity == "ok"


# ---- sampling and training log-probs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "severity"), [(0.01, "ok"), (0.029, "ok"), (0.031, "warning"), (0.11, "wrong")])
def test_log_probs_of_engine_and_trainer(difference, severity):
    engine = run(count=2, **{"sampling/sampling_logp_difference/mean": difference})
    fresh = run(**{P + "staleness": [0, 0, 1], P + "ratio_std": [difference, difference, 0.9]})
    for evidence in (engine, fresh):
        found = checks.check_logprobs(evidence)
        assert found.severity == severity
        assert f"{difference:.3g} nats per token" in found.evidence
        assert ("top_p" in found.change) == (severity != "ok")


def test_log_probs_without_fresh_data_are_not_checked():
    assert checks.check_logprobs(run(count=3, **{P + "staleness": 1, P + "ratio_std": 0.0})).severity == "not checked"


# ---- bounds and controller ----------------------------------------------------------------------------------------


def bounds(exhausted, inactive=None, clipping="balanced"):
    columns = {"bounds_exhausted": exhausted, "bounds_inactive": inactive or [0] * len(exhausted)}
    columns["share_gradient_before"] = [0.45] * len(exhausted)
    return run({"clipping": clipping, "bapo_target_share": 0.55}, **{P + k: v for k, v in columns.items()})


@pytest.mark.parametrize(
    ("exhausted", "severity"), [([1, 1, 1, 0], "ok"), ([1] * 4 + [0], "warning"), ([1] * 4, "warning")]
)
def test_bounds_that_are_always_exhausted(exhausted, severity):
    found = checks.check_bounds(bounds(exhausted))
    assert found.severity == severity
    assert "before it the share is 0.45, the target 0.55" in found.evidence
    assert ("Lower bapo_target_share" in found.change) == (severity != "ok")


def test_updates_without_a_search_do_not_count():
    found = checks.check_bounds(bounds([0] * 10 + [1] * 4, [1] * 10 + [0] * 4))
    assert found.severity == "warning"
    assert "100% of 4 updates" in found.evidence
    assert checks.check_bounds(bounds([1] * 6, [1] * 3 + [0] * 3)).severity == "not checked"
    assert checks.check_bounds(bounds([1] * 6, clipping="fixed")).severity == "not checked"


def papo(phase, demanded=0.8, **settings):
    columns = {"phase": phase, "balance_authority": demanded, "entropy": 0.2, "reference_entropy": 0.4}
    settings = {"polarity": "papo", "papo_strength": 0.5, "papo_warmup_updates": 2} | settings
    return run(settings, **{P + k: v for k, v in columns.items()})


def test_a_controller_at_its_limit():
    found = checks.check_controller(papo([0, 0, 1, 1, 1, 0.5]))
    assert found.severity == "warning"
    assert "|phase| was 1 in 75% of 4 updates after the warm-up" in found.evidence
    assert "would have needed b* = 0.80 (median), papo_strength is 0.5; entropy 0.2, reference 0.4" in found.evidence
    assert "Raise papo_strength above b*" in found.change
    falling = checks.check_controller(papo([0, 0, -1, -1, -1, -1], demanded=-0.7))
    assert "b* = 0.70" in falling.evidence, "two-sided: the sign is that of the phase"


@pytest.mark.parametrize("phase", [[0, 0, 0.9, 0.9, 0.9, 0.9], [1, 1, 1, 1, 0, 0]])
def test_a_controller_with_room(phase):
    assert checks.check_controller(papo(phase)).severity == "ok"


def test_a_controller_that_is_off_or_still_warming_up():
    assert checks.check_controller(papo([1] * 6, polarity="off")).severity == "not checked"
    assert checks.check_controller(papo([1] * 6, papo_warmup_updates=3)).severity == "not checked"


# ---- entropy against flows ----------------------------------------------------------------------------------------


def flows(slope, net, updates=100, noise=0.01, **more):
    generator = np.random.default_rng(0)
    entropy = 1.0 + slope * np.arange(updates) + noise * generator.standard_normal(updates)
    expanding = 0.01 + net + 0.001 * generator.standard_normal(updates)
    columns = {"entropy": entropy, "expanding_flow": expanding, "contracting_flow": [0.01] * updates} | more
    return run(**{P + k: v if isinstance(v, int | float) else list(v) for k, v in columns.items()})


def test_an_entropy_that_falls_although_the_flow_expands():
    found = checks.check_flows(flows(-0.004, 0.002))
    assert found.severity == "warning"
    assert "in 2 of 2 windows of 50 updates the entropy fell although" in found.evidence
    assert "weight decay" in found.why
    assert "equipoise probe" in found.change


@pytest.mark.parametrize(
    ("slope", "net"),
    [(-0.004, -0.002), (0.004, 0.002), (0.0, 0.002), (-0.004, 0.0)],
    ids=["the flow contracts", "the entropy rises", "the entropy stays", "no net flow"],
)
def test_entropies_that_go_with_the_flow(slope, net):
    assert checks.check_flows(flows(slope, net)).severity == "ok"


def test_a_fall_within_noise_or_too_small_to_matter_is_none():
    assert checks.check_flows(flows(-0.002, 0.002, noise=0.5)).severity == "ok"
    assert checks.check_flows(flows(-0.0003, 0.002, noise=1e-4)).severity == "ok", "0.75% of the entropy"


def test_the_worst_window_is_named():
    entropy = [1.0] * 50 + list(np.linspace(1.0, 0.8, 50)) + list(np.linspace(0.8, 0.7, 50))
    evidence = flows(0, 0.002, updates=150, entropy=entropy)
    assert "in 2 of 3 windows" in checks.check_flows(evidence).evidence
    assert "most in updates 51 to 100: entropy -0.1" in checks.check_flows(evidence).evidence


def test_flows_count_after_reweighting():
    weights = {f"weight_{branch}": w for branch, w in zip(checks.BRANCHES, (1.5, 1.5, 0.5, 0.5), strict=True)}
    assert checks.check_flows(flows(-0.004, -0.002)).severity == "ok"
    assert checks.check_flows(flows(-0.004, -0.002, **weights)).severity == "warning", "1.5 P - 0.5 N > 0"


def test_flows_of_a_short_run_are_not_checked():
    assert checks.check_flows(flows(-0.004, 0.002, updates=49)).severity == "not checked"
    assert checks.check_flows(flows(-0.004, 0.002, updates=50)).severity == "warning"


# ---- size of a step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deviation", "severity"), [(0.06, "ok"), (0.19, "ok"), (0.21, "warning"), (0.51, "wrong")])
def test_steps_beyond_first_order(deviation, severity):
    staleness, divergence = [0, 1, 2, 3] * 4, deviation**2 / 2
    values = [0, deviation, 3, 3] * 4
    found = checks.check_step_size(
        run(**{P + "staleness": staleness, P + "ratio_std": values, P + "behavior_kl": divergence})
    )
    assert found.severity == severity
    assert f"a standard deviation of {deviation:.3g} (median of 4), KL {divergence:.2g}" in found.evidence
    assert ("Lower learning_rate" in found.change) == (severity != "ok")


def test_steps_of_a_run_without_behavior_kl_or_without_data_of_age_1():
    found = checks.check_step_size(run(count=4, **{P + "staleness": 1, P + "ratio_std": 0.3}))
    assert found.severity == "warning"
    assert "KL" not in found.evidence
    found = checks.check_step_size(run(count=9, **{P + "staleness": 2, P + "ratio_std": 0.3}))
    assert found.severity == "not checked"
    assert "equipoise probe" in found.evidence


# ---- tail of the ratios -------------------------------------------------------------------------------------------


def tails(deviations, tail=0.01, staleness=1):
    """Of ratios with a mean of 1."""
    worth = [1 / (1 + deviation**2) for deviation in deviations]
    columns = {"staleness": staleness, "ratio_std": list(deviations), "ratio_tail_fraction": tail,
               "effective_sample_fraction": worth}  # fmt: skip
    return check_ratio_tail(run(**{P + key: value for key, value in columns.items()}))


@pytest.mark.parametrize(
    ("usual", "extreme", "severity"),
    [
        ([0.17] * 24, [], "ok"),
        ([0.17] * 23, [4.6], "warning"),  # the median is as before
        ([0.3] * 500, [6.35, 3.0], "ok"),  # the quick start
        ([0.3] * 97, [1.2] * 3, "ok"),
        ([0.3] * 90, [1.2] * 10, "warning"),
        ([0.3] * 70, [1.2] * 30, "wrong"),
        ([0.9] * 50, [], "ok"),
        ([1.1] * 50, [], "wrong"),
    ],
)
def test_a_few_updates_with_a_long_tail_are_seen_behind_a_small_median(usual, extreme, severity):
    found = tails([*usual, *extreme])
    assert found.severity == severity
    assert f"up to {max(usual + extreme):.3g}" in found.evidence
    if not extreme:
        return
    steps = run(**{P + "staleness": 1, P + "ratio_std": [*usual, *extreme]})
    assert f"standard deviation of {usual[0]:.3g}" in checks.check_step_size(steps).evidence


def test_many_tokens_outside_a_factor_of_two_are_a_tail():
    assert tails([0.5] * 20, tail=0.044).severity == "ok"
    assert tails([0.5] * 20, tail=0.11).severity == "warning"


def test_fresh_data_has_no_tail_to_judge():
    assert tails([5.0] * 20, staleness=0).severity == "not checked"
    assert tails([5.0] * 20, staleness=[0] * 17 + [1] * 3).severity == "not checked"
