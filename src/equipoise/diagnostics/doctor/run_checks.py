"""Checks of what a run logged: each is one function from the record to one finding. Keys: docs/metrics.md and TRL's."""

import math
from collections.abc import Callable

import numpy as np

from equipoise.diagnostics import metric_names as names
from equipoise.diagnostics.doctor.finding import Finding, not_checked, ok, warning, wrong
from equipoise.diagnostics.doctor.ratio_tail import check_ratio_tail
from equipoise.diagnostics.doctor.run_evidence import MIN_UPDATES, RunEvidence

ROUNDING = 1e-6
"""Ratios of one policy with itself differ from 1 by float32 rounding of the log-probs, some 1e-7."""

ENTROPY_MISMATCH = 0.1
"""Relative difference of TRL's entropy and ours, median over updates. TRL's is a mean of micro-batch means, which
unequal lengths alone move by a few percent; the same tokens cannot be 10% apart in most updates."""

TRUNCATED_WARNING, TRUNCATED_WRONG = 0.2, 0.5
"""Share of completions without an end. A truncated one is scored on half an answer, mostly as wrong; above a half the
advantages say more about length than about answers."""

EQUAL_REWARDS_WARNING, EQUAL_REWARDS_WRONG = 0.5, 0.9
"""Share of groups without an advantage: most of the sampling is for nothing; a tenth of the batch is the whole signal.
Group sizes and tasks differ, so the first is a warning only."""

LOGPROB_WARNING, LOGPROB_WRONG = 0.03, 0.1
"""Mean |log pi_sampler - log pi_trainer|, nats per token. Engines in bf16 differ by about 0.01; at 0.1 half of the
usual clip range of 0.2 is spent before the first update."""

EXHAUSTED = 0.8
"""Share of the updates that searched in which the search ended without its target: the target is out of reach rather
than missed now and then. Healthy runs with the default target are at 0.55 to 0.75 (docs/studies/staleness.md)."""

SATURATED = 0.5
"""Share of the updates after the warm-up with |phase| at 1: for most of the run the controller had no room."""

STEP_WARNING, STEP_WRONG = 0.2, 0.5
"""Standard deviation of the ratio after one update. For a relative change d of a probability, first order errs by about
d / 2 of the change. At 0.2 that is a tenth, and a third of the tokens (one standard deviation) leave the usual clip
range in a single step; at 0.5 it is a quarter, and bounds, polarity and flows describe another step than that taken."""

FLOW_WINDOW = 50
"""Updates of a window of the flow check: long enough for sampling noise to average out."""

FLOW_ERRORS = 3.0
"""Standard errors by which flow and entropy must differ from zero: by chance less than one in a thousand each."""

FLOW_SHARE = 0.02
"""Smallest relative fall of the entropy over a window that is worth a word."""

BRANCHES = ("expanding_positive", "expanding_negative", "contracting_positive", "contracting_negative")


def check_ratios(run: RunEvidence) -> Finding:
    """Ratios that are always 1 although the data is stale; or clipping that never has anything to do."""
    name = "importance ratios"
    rows = run.together("equipoise/staleness", "equipoise/ratio_std")
    if not len(rows):
        return not_checked(name, "no equipoise/ratio_std in the metrics")
    stale = rows[rows[:, 0] > 0]
    if not len(stale):
        return _on_policy(name, run, len(rows))
    if len(stale) < MIN_UPDATES:
        return not_checked(name, f"{len(stale)} updates on stale data; {MIN_UPDATES} are needed")
    if stale[:, 1].max() > ROUNDING:
        return ok(name, f"on stale data their standard deviation is {np.median(stale[:, 1]):.3g} (median)")
    evidence = f"the ratio was 1 in all {len(stale)} updates on stale data (up to {stale[:, 0].max():g} updates old)"
    if not run.values(names.LEARNING_RATE).any():
        return wrong(name, f"{evidence}; learning_rate was 0 throughout", "The policy does not move.",
                     "Give a learning_rate > 0; check the schedule and its warm-up.")  # fmt: skip
    gradients = run.values(names.GRADIENT_NORM)
    if len(gradients) and not gradients.any():
        return wrong(name, f"{evidence}; the gradient norm was always 0",
                     "There was no gradient; the policy does not move.",
                     "See the rewards: groups with equal rewards have no advantage.")  # fmt: skip
    return wrong(
        name,
        evidence,
        "Behaviour log-probs were lost on the way and replaced by the current policy's, so nothing is corrected for "
        "stale data and nothing is clipped. Or the weights that are updated are not those that are evaluated.",
        "Look at who fills old_per_token_logps (a custom rollout must return the sampler's log-probs), and whether "
        "the gradient norm is above 0.",
    )


def _on_policy(name: str, run: RunEvidence, num_updates: int) -> Finding:
    evidence = f"all {num_updates} updates used fresh data, so the ratio is 1 by construction and clipping has no part"
    if not run.is_balanced:
        return ok(name, evidence)
    return wrong(
        name, evidence, "Balanced clipping is on and never acts.",
        "Raise num_iterations or steps_per_generation above gradient_accumulation_steps (more updates per rollout "
        "batch), use replay, or set clipping: fixed.",
    )  # fmt: skip


def check_entropy_tokens(run: RunEvidence) -> Finding:
    """Entropy over other tokens than the policy chose: the host's number against ours."""
    name = "tokens in the entropy"
    rows = run.together("equipoise/entropy", names.HOST_ENTROPY)
    if not len(rows):
        return not_checked(name, "the metrics do not hold both the host's entropy and equipoise/entropy")
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-12)
    difference = float(np.median(np.abs(rows[:, 0] - rows[:, 1]) / scale))
    tools = len(run.values(names.TOOL_CALL_FREQUENCY)) > 0
    evidence = f"the host's entropy and equipoise's differ by {difference:.1%} (median over {len(rows)} updates)"
    if difference <= ENTROPY_MISMATCH:
        return ok(name, evidence + ("; tool calls were logged" if tools else ""))
    report = wrong if tools else warning
    return report(
        name,
        evidence + ("; tool calls were logged" if tools else ""),
        "The two average over different tokens: padding or tool output, which the policy did not choose, is in one of "
        "them. Controllers and comparisons then steer on the wrong number.",
        "Return an env_mask (0 on tool output) from the rollout, and look at completion_mask of a batch.",
    )


def check_truncation(run: RunEvidence) -> Finding:
    """Completions that end because the room ended."""
    name = "truncated completions"
    late = run.late(names.TRUNCATED_FRACTION)
    if not len(late):
        return not_checked(name, "no fraction of truncated completions in the metrics")
    share = float(late.mean())
    evidence = f"{share:.0%} of the completions had no end (last {len(late)} rollout batches)"
    if limit := run.settings.get("max_completion_length"):
        evidence += f"; max_completion_length is {limit}"
    if share < TRUNCATED_WARNING:
        return ok(name, evidence)
    masked = bool(run.settings.get("mask_truncated_completions"))
    why = (
        "They are masked: that share of the sampling is thrown away, and long answers are never learned from."
        if masked
        else "A truncated completion is scored as it stands, mostly as wrong, whatever its reasoning was worth."
    )
    report = wrong if share >= TRUNCATED_WRONG else warning
    return report(
        name, evidence, why,
        "Raise max_completion_length; check that the model knows its end-of-sequence token (equipoise doctor MODEL) "
        "and that the prompt asks for an end.",
    )  # fmt: skip


def check_equal_rewards(run: RunEvidence) -> Finding:
    """Groups whose completions all got the same reward give no gradient."""
    name = "groups with equal rewards"
    late = run.late(names.EQUAL_REWARD_FRACTION)
    if not len(late):
        return not_checked(name, "no fraction of groups with equal rewards in the metrics")
    share, rewards = float(late.mean()), run.late(names.REWARD)
    evidence = f"{share:.0%} of the groups had equal rewards (last {len(late)} rollout batches)"
    if len(rewards):
        evidence += f"; the mean reward was {rewards.mean():.3g}"
    if share <= EQUAL_REWARDS_WARNING:
        return ok(name, evidence)
    # Then equal rewards are equal successes.
    learned = len(rewards) > 0 and rewards.mean() > run.values(names.REWARD)[0]
    report = wrong if share > EQUAL_REWARDS_WRONG and not learned else warning
    return report(
        name, evidence,
        "Such a group has no advantage: its completions cost sampling and teach nothing, and the rest is a small, "
        "noisy batch.",
        "Take prompts of the right difficulty (near reward 0 easier ones, near the maximum harder ones), raise "
        "num_generations, or give partial reward. Near the maximum the task may simply be learned.",
    )  # fmt: skip


def check_reward_moves(run: RunEvidence) -> Finding:
    """A verifier that gives one and the same reward to everything."""
    name = "verifier"
    rows = run.together(names.REWARD, names.REWARD_STD)
    if not len(rows):
        return not_checked(name, "no mean reward and its deviation in the metrics")
    reward, deviation = rows.T
    if deviation.max() > ROUNDING or np.ptp(reward) > ROUNDING:
        return ok(name, f"rewards vary; their mean went from {reward[0]:.3g} to {reward[-1]:.3g}")
    return wrong(
        name,
        f"every completion of all {len(rows)} rollout batches got the reward {reward[0]:.3g}",
        "Nothing can be learned. Either the verifier accepts nothing (a format, a column, an exception turned into 0), "
        "or the policy never succeeds.",
        "Compare with the check of the verifier's own answers, which tells the two apart; read a few completions "
        "(log_completions: true).",
    )


def check_logprobs(run: RunEvidence) -> Finding:
    """The sampler's log-probs against the trainer's, for the same tokens and the same weights."""
    name = "sampling and training log-probs"
    engine = run.values(names.SAMPLER_DIFFERENCE)
    if len(engine):
        difference, source = float(engine.mean()), "mean |difference| of the engine's and the trainer's log-probs"
    else:
        rows = run.together("equipoise/staleness", "equipoise/ratio_std")
        fresh = rows[rows[:, 0] == 0, 1] if len(rows) else rows
        if not len(fresh):
            return not_checked(name, "no update on fresh data, and no difference of log-probs from an engine")
        difference, source = float(np.median(fresh)), "standard deviation of the ratio on fresh data, which should be 0"
    evidence = f"{difference:.3g} nats per token: {source}"
    if difference <= LOGPROB_WARNING:
        return ok(name, evidence)
    report = wrong if difference > LOGPROB_WRONG else warning
    return report(
        name, evidence,
        "Ratios then measure the difference between two programs, not between two policies: data looks stale that is "
        "not, and clipping drops the wrong tokens.",
        "Use the same precision and temperature on both sides, no top_p, top_k or penalties, and check that the engine "
        "has the current weights. equipoise doctor MODEL compares both without a run.",
    )  # fmt: skip


def check_bounds(run: RunEvidence) -> Finding:
    """A search of the bounds that always ends at the end of its grid."""
    name = "balanced bounds"
    if not run.is_balanced:
        return not_checked(name, "clipping is not balanced")
    rows = run.together("equipoise/bounds_inactive", "equipoise/bounds_exhausted", "equipoise/share_gradient_before")
    active = rows[rows[:, 0] == 0]
    if len(active) < MIN_UPDATES:
        return not_checked(name, f"{len(active)} updates with a search; {MIN_UPDATES} are needed")
    share = float(active[:, 1].mean())
    evidence = (
        f"the search ended without its target share in {share:.0%} of {len(active)} updates; before it the share is "
        f"{active[:, 2].mean():.2f}, the target {run.settings.get('bapo_target_share', 'unknown')}"
    )
    if share < EXHAUSTED:
        return ok(name, evidence)
    return warning(
        name, evidence,
        "The bounds then stand at the end of the grid whatever the data is: that is fixed clipping at those values, "
        "with the cost of a search.",
        "Lower bapo_target_share to what the bounds can reach, widen bapo_low and bapo_high, or use fixed bounds.",
    )  # fmt: skip


def check_controller(run: RunEvidence) -> Finding:
    """Polarity control at its limit."""
    name = "polarity control"
    if not run.has_papo:
        return not_checked(name, "polarity is off")
    rows = run.together("equipoise/phase", "equipoise/balance_authority", "equipoise/entropy")
    rows = rows[run.settings.get("papo_warmup_updates", 0) :]
    if len(rows) < MIN_UPDATES:
        return not_checked(name, f"{len(rows)} updates after the warm-up; {MIN_UPDATES} are needed")
    at_limit = np.abs(rows[:, 0]) >= 1
    share, strength = float(at_limit.mean()), run.settings.get("papo_strength", math.nan)
    evidence = f"|phase| was 1 in {share:.0%} of {len(rows)} updates after the warm-up"
    if share <= SATURATED:
        return ok(name, evidence)
    demanded = float(np.median(rows[at_limit, 1] * np.sign(rows[at_limit, 0])))
    evidence += f"; holding the entropy would have needed b* = {demanded:.2f} (median), papo_strength is {strength:g}"
    references = run.late("equipoise/reference_entropy")
    if len(references):
        evidence += f"; entropy {rows[-1, 2]:.3g}, reference {references[-1]:.3g}"
    return warning(
        name, evidence,
        "At |phase| 1 the controller gives all it has and no longer reacts: the entropy goes where the data takes it.",
        "Raise papo_strength above b*, lower the learning rate, or choose a papo_reference_entropy nearer to the "
        "entropy of the model.",
    )  # fmt: skip


def check_flows(run: RunEvidence) -> Finding:
    """Windows in which the entropy falls although the predicted net flow expands.

    The flow is per unit step of a tabular policy: under shared parameters and Adam it has a sign and a relative size,
    but no absolute scale. So only signs are compared: over `FLOW_WINDOW` updates, mean net flow > 0 and the entropy of
    the second half below that of the first, both by `FLOW_ERRORS` standard errors. What is compared is the flow after
    reweighting, w+ P - w- N with the logged mean branch weights. A fall that has the sign of the flow but is faster
    than usual is not seen, and neither is one that is slow.
    """
    name = "entropy against flows"
    entropy_and_flows = run.together("equipoise/entropy", "equipoise/expanding_flow", "equipoise/contracting_flow")
    weights = run.together(*(f"equipoise/weight_{branch}" for branch in BRANCHES))
    if len(entropy_and_flows) < FLOW_WINDOW:
        return not_checked(name, f"{len(entropy_and_flows)} updates with flows; {FLOW_WINDOW} are needed")
    entropy, expanding, contracting = entropy_and_flows.T
    if len(weights) == len(entropy):
        expanding, contracting = expanding * weights[:, :2].mean(axis=1), contracting * weights[:, 2:].mean(axis=1)
    net = expanding - contracting
    num_windows = len(net) // FLOW_WINDOW
    windows = [slice(i * FLOW_WINDOW, (i + 1) * FLOW_WINDOW) for i in range(num_windows)]
    against = [w for w in windows if _falls(entropy[w]) and net[w].mean() > FLOW_ERRORS * _standard_error(net[w])]
    if not against:
        return ok(name, f"in none of {num_windows} windows of {FLOW_WINDOW} updates does the entropy fall against them")
    worst = min(against, key=lambda w: _change(entropy[w]))
    return warning(
        name,
        f"in {len(against)} of {num_windows} windows of {FLOW_WINDOW} updates the entropy fell although the predicted "
        f"net flow expands; most in updates {worst.start + 1} to {worst.stop}: entropy {_change(entropy[worst]):+.3g} "
        f"nats from half to half, net flow {net[worst].mean():+.3g}",
        "Something other than the advantages of the sampled tokens moves the entropy: a KL term, weight decay, Adam's "
        "momentum, parameters shared between contexts, or tokens missing from the masks. Reweighting tokens cannot "
        "hold it.",
        "Look at kl and beta, set weight_decay: 0, lower the learning rate; equipoise probe shows for one step whether "
        "the first order holds.",
    )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _change(values: np.ndarray) -> float:
    first, second = _halves(values)
    return float(second.mean() - first.mean())


def _falls(entropy: np.ndarray) -> bool:
    first, second = _halves(entropy)
    error = math.hypot(_standard_error(first), _standard_error(second))
    fall = -_change(entropy)
    return fall > max(FLOW_ERRORS * error, FLOW_SHARE * float(first.mean()))


def check_step_size(run: RunEvidence) -> Finding:
    """How far one update moves the policy, seen on data that is one update old."""
    name = "size of a step"
    rows = run.together("equipoise/staleness", "equipoise/ratio_std", "equipoise/behavior_kl")
    if not len(rows):  # runs from before behavior_kl was logged
        rows = np.pad(run.together("equipoise/staleness", "equipoise/ratio_std"), ((0, 0), (0, 1)))
    after_one = rows[rows[:, 0] == 1] if len(rows) else rows
    if len(after_one) < MIN_UPDATES:
        return not_checked(
            name, f"{len(after_one)} updates on data that is one update old; {MIN_UPDATES} are needed "
            "(equipoise probe measures a step without a run)"
        )  # fmt: skip
    deviation, divergence = (float(value) for value in np.median(after_one[:, 1:], axis=0))
    evidence = f"after one update the ratio has a standard deviation of {deviation:.3g} (median of {len(after_one)})"
    if divergence:
        evidence += f", KL {divergence:.2g} nats per token"
    if deviation <= STEP_WARNING:
        return ok(name, evidence)
    report = wrong if deviation > STEP_WRONG else warning
    return report(
        name, evidence,
        "Clipping, polarity and the predicted flows are first-order: they describe a small step. This one changes "
        "probabilities too much for it in one update, before any clip can act.",
        "Lower learning_rate or max_grad_norm, or enlarge the batch of an update; equipoise probe reports the "
        "remainder of the first order for a learning rate.",
    )  # fmt: skip


RUN_CHECKS: tuple[Callable[[RunEvidence], Finding], ...] = (
    check_ratios,
    check_entropy_tokens,
    check_truncation,
    check_equal_rewards,
    check_reward_moves,
    check_logprobs,
    check_bounds,
    check_controller,
    check_flows,
    check_step_size,
    check_ratio_tail,
)
"""Every check of what a run logged, in the order in which they are reported among equals."""
