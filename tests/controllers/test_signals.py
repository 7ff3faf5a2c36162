"""Phase signals: one contract for all, hand numbers for each; quadrants, weight bounds and release."""

import json
import math

import pytest

from equipoise import (
    BalanceSignal,
    BranchWeights,
    PolarityController,
    ReferenceSignal,
    ScheduleSignal,
    TrendSignal,
)
from equipoise.controllers.signals import PhaseSignal, Trajectory

SIGNALS = [
    ReferenceSignal(),
    ReferenceSignal(two_sided=True, width=0.1),
    TrendSignal(),
    BalanceSignal(),
    ScheduleSignal(),
    ScheduleSignal((0.5, -1.0, 0.0)),
]
FIRST = ["expanding_positive"]


def at(**changes):
    """A trajectory in which every signal but the schedule has phase 0."""
    still = {"entropy": 1.0, "slow": 1.0, "reference": 1.0, "authority": 0.0, "strength": 0.5, "progress": 0.0}
    return Trajectory(**{**still, **changes})


# ---- the contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", SIGNALS, ids=repr)
def test_every_signal_stays_within_the_extremes_it_tells(signal):
    assert isinstance(signal, PhaseSignal)
    least, most = signal.extremes
    phases = [
        signal.phase(at(entropy=entropy, slow=slow, authority=authority, progress=progress))
        for entropy in (0.0, 0.3, 1.0, 50.0)
        for slow in (0.0, 0.5, 1.0, 50.0)
        for authority in (-9.0, 0.2, 9.0)
        for progress in (0.0, 0.3, 0.5, 1.0)
    ]
    assert -1 <= least == min(phases) <= max(phases) == most <= 1


@pytest.mark.parametrize("signal", SIGNALS, ids=repr)
def test_every_closed_loop_favours_expansion_when_the_entropy_falls_and_not_when_it_rises(signal):
    falling = signal.phase(at(entropy=0.5, slow=1.0, authority=0.4))
    rising = signal.phase(at(entropy=1.5, slow=1.0, authority=-0.4))
    if signal.closed_loop:
        assert falling > 0 >= rising
        assert signal.phase(at()) == 0
    else:
        assert falling == rising


@pytest.mark.parametrize("signal", SIGNALS, ids=repr)
@pytest.mark.parametrize("interrupted_after", [0, 2, 5, 8])
def test_every_signal_resumes_exactly_through_json(signal, interrupted_after):
    settings = {
        "signal": signal, "smoothing": 0.6, "slow_smoothing": 0.8, "strength": 0.3, "warmup_updates": 2,
        "reference_fraction": 0.8, "quadrants": ["expanding_positive", "contracting_negative"],
    }  # fmt: skip
    updates = [
        {
            "entropy": entropy, "expanding_flow": 1.0 + entropy, "contracting_flow": 2.0, "progress": (i + 1) / 10,
            "expanding_positive_flow": 0.25, "contracting_positive_flow": 1.5 * entropy / 2,
        }
        for i, entropy in enumerate([2.0, 1.5, 1.7, 0.9, 0.4, 0.6, 0.3, 0.2])
    ]  # fmt: skip

    def run(controller, part):
        weights = []
        for update in part:
            controller.observe(**update)
            weights.append(controller.weights)
        return weights

    whole = PolarityController(**settings)
    expected = run(whole, updates)
    first, resumed = PolarityController(**settings), PolarityController(**settings)
    before = run(first, updates[:interrupted_after])
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + run(resumed, updates[interrupted_after:]) == expected
    assert resumed.state_dict() == whole.state_dict()
    assert len(set(expected)) > 1


# ---- hand numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "trajectory", "phase"),
    [
        (ReferenceSignal(width=0.5), at(reference=2.0, entropy=1.75), 0.25),
        (ReferenceSignal(width=0.5), at(reference=2.0, entropy=2.25), 0.0),
        (ReferenceSignal(width=0.5, two_sided=True), at(reference=2.0, entropy=2.25), -0.25),
        (TrendSignal(width=0.5), at(slow=0.8, entropy=0.7), 0.25),
        (TrendSignal(width=0.5), at(slow=0.8, entropy=0.9), -0.25),
        (TrendSignal(width=0.5), at(slow=0.8, entropy=0.2), 1.0),
        (TrendSignal(), at(slow=0.0, entropy=0.0), 0.0),
        (BalanceSignal(), at(authority=0.1, strength=0.4), 0.25),
        (BalanceSignal(), at(authority=-0.1, strength=0.4), -0.25),
        (BalanceSignal(), at(authority=0.5, strength=0.4), 1.0),
        (BalanceSignal(), at(authority=0.5, strength=0.0), 0.0),
        (ScheduleSignal((0.5,)), at(progress=0.9), 0.5),
        (ScheduleSignal((1.0, 0.0)), at(progress=0.25), 0.75),
        (ScheduleSignal((0.0, 1.0, -1.0)), at(progress=0.75), 0.0),
        (ScheduleSignal((0.0, 1.0, -1.0)), at(progress=1.0), -1.0),
    ],
)
def test_golden_phases(signal, trajectory, phase):
    assert signal.phase(trajectory) == pytest.approx(phase, rel=1e-12, abs=1e-15)


def test_golden_trend_from_slow_and_fast_average():
    controller = PolarityController(
        signal=TrendSignal(width=0.5), strength=0.5, smoothing=0.5, slow_smoothing=0.75, warmup_updates=0
    )
    for entropy in (1.0, 0.6):
        controller.observe(entropy=entropy, expanding_flow=1.0, contracting_flow=1.0)
    assert (controller.slow_entropy, controller.smoothed_entropy) == pytest.approx((0.9, 0.8))
    assert controller.phase == pytest.approx(0.1 / 0.45)


def net_flow(weights, flows):
    signed = {name: flow if name.startswith("expanding") else -flow for name, flow in flows.items()}
    return sum(getattr(weights, name) * flow for name, flow in signed.items())


FLOWS = {"expanding_positive": 1.0, "expanding_negative": 2.0, "contracting_positive": 3.0, "contracting_negative": 0.8}


@pytest.mark.parametrize("quadrants", [list(FLOWS), FIRST, ["expanding_negative", "contracting_positive"]])
def test_balance_makes_the_predicted_net_flow_zero_whatever_it_acts_on(quadrants):
    controller = PolarityController(
        signal=BalanceSignal(), strength=0.9, quadrants=quadrants, warmup_updates=0, weight_bounds=(0.01, 9.0)
    )
    controller.observe(
        entropy=1.0, expanding_flow=3.0, contracting_flow=3.8, expanding_positive_flow=1.0,
        contracting_positive_flow=3.0,
    )  # fmt: skip
    assert controller.demanded_authority == pytest.approx(0.8 / sum(FLOWS[name] for name in quadrants))
    assert net_flow(controller.weights, FLOWS) == pytest.approx(0, abs=1e-12)
    assert net_flow(BranchWeights(), FLOWS) == pytest.approx(-0.8)
    assert not controller.saturated


# ---- quadrants, bounds, release ----------------------------------------------------------------------------------


def test_the_phase_acts_on_the_named_quadrants_only():
    controller = PolarityController(
        signal=ScheduleSignal(), strength=0.25, quadrants=["contracting_negative", "expanding_positive"],
        warmup_updates=0,
    )  # fmt: skip
    assert controller.weights == BranchWeights(expanding_positive=1.25, contracting_negative=0.75)


def test_weights_are_clipped_to_their_bounds():
    controller = PolarityController(
        signal=ScheduleSignal((1.0, -1.0)), strength=4.0, weight_bounds=(0.5, 3.0), warmup_updates=0
    )
    assert controller.weights == BranchWeights.of_branches(3.0, 0.5)
    controller.observe(entropy=1.0, expanding_flow=1.0, contracting_flow=1.0, progress=1.0)
    assert controller.weights == BranchWeights.of_branches(0.5, 3.0)


def test_phase_is_released_for_the_last_part_of_the_run():
    controller = PolarityController(signal=ScheduleSignal(), strength=0.5, warmup_updates=1, release_after=0.7)
    phases = [controller.phase]
    for done in range(1, 11):
        controller.observe(entropy=1.0, expanding_flow=1.0, contracting_flow=1.0, progress=done / 10)
        phases.append(controller.phase)
    assert phases == [0.0, *[1.0] * 6, *[0.0] * 4]


def test_without_release_the_end_of_the_run_is_like_the_rest():
    controller = PolarityController(signal=ScheduleSignal(), warmup_updates=0)
    controller.observe(entropy=1.0, expanding_flow=1.0, contracting_flow=1.0, progress=1.0)
    assert controller.phase == 1.0


def test_a_schedule_is_an_open_loop_and_never_saturated():
    controller = PolarityController(signal=ScheduleSignal(), strength=0.1, warmup_updates=0)
    controller.observe(entropy=0.1, expanding_flow=1.0, contracting_flow=9.0)
    assert not controller.saturated


@pytest.mark.parametrize("signal", [TrendSignal(), BalanceSignal(), ScheduleSignal()])
def test_only_the_reference_needs_a_warmup(signal):
    assert PolarityController(signal=signal, warmup_updates=0).weights is not None
    with pytest.raises(ValueError, match="warmup_updates must be >= 1 when reference_entropy is not given"):
        PolarityController(warmup_updates=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReferenceSignal(width=0.0), "width must be > 0 and finite, got width=0.0"),
        (lambda: ReferenceSignal(width=math.inf), "width must be > 0"),
        (lambda: TrendSignal(width=math.nan), "width must be > 0"),
        (lambda: ScheduleSignal(()), r"phases must be one or more numbers in \[-1, 1\], got phases=\[\]"),
        (lambda: ScheduleSignal((0.5, 1.5)), r"phases must be .* got phases=\[0.5, 1.5\]"),
        (lambda: ScheduleSignal((math.nan,)), "phases must be"),
        (lambda: PolarityController(strength=1.0), "strength=1.0, which brings contracting_positive to 0; keep it bel"),
        (lambda: PolarityController(strength=1.5, quadrants=FIRST, signal=TrendSignal()), "expanding_positive to -0.5"),
        (lambda: PolarityController(quadrants="expanding_positive"), "quadrants must be one or more of"),
        (lambda: PolarityController(weight_bounds=(0.5, 0.9)), r"weight_bounds must be .* weight_bounds=\[0.5, 0.9\]"),
        (lambda: PolarityController(weight_bounds=(0.5, math.inf)), "weight_bounds must be two numbers"),
    ],
)
def test_refuses_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expanding_positive_flow is needed: the quadrants acted on split the expanding branch"),
        ({"expanding_positive_flow": 1.5}, r"expanding_positive_flow must be in \[0, expanding_flow=1.0\]"),
        ({"expanding_positive_flow": -0.1}, "expanding_positive_flow must be in"),
        ({"expanding_positive_flow": 0.5, "progress": 1.5}, r"progress must be in \[0, 1\], got progress=1.5"),
        ({"expanding_positive_flow": 0.5, "progress": math.nan}, "progress must be in"),
    ],
)
def test_refuses_observations_and_keeps_its_state(changes, message):
    controller = PolarityController(quadrants=FIRST)
    before = controller.state_dict()
    with pytest.raises(ValueError, match=message):
        controller.observe(entropy=1.0, expanding_flow=1.0, contracting_flow=1.0, **changes)
    assert controller.state_dict() == before


def test_any_strength_where_no_weight_reaches_zero():
    controller = PolarityController(strength=3.0, quadrants=FIRST, reference_entropy=1.0, warmup_updates=0)
    controller.observe(entropy=0.1, expanding_flow=1.0, contracting_flow=1.0, expanding_positive_flow=0.5)
    assert controller.weights == BranchWeights(expanding_positive=4.0)
