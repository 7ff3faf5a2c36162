"""PolarityController: hand numbers, the closed loop, saturation, resumption, refusals."""

import json
import logging
import math

import pytest
import torch
from core_reference import every_target

from equipoise import (
    BranchWeights,
    PolarityController,
    ReferenceSignal,
    entropy_polarity,
    reweight_by_polarity,
    token_statistics,
)
from equipoise.controllers.polarity import SATURATION_PATIENCE
from equipoise.polarity import balance_authority


def observed(controller, *entropies, expanding_flow=1.0, contracting_flow=1.0):
    for entropy in entropies:
        controller.observe(entropy=entropy, expanding_flow=expanding_flow, contracting_flow=contracting_flow)
    return controller


SIGNAL = {"width", "two_sided"}


def ready(**changes):
    """Active from the first update on, two-sided, reference 1 nat."""
    settings = {"strength": 0.4, "reference_entropy": 1.0, "smoothing": 0.75, "warmup_updates": 0}
    signal = ReferenceSignal(**{"width": 0.5, "two_sided": True} | {k: changes.pop(k) for k in SIGNAL & changes.keys()})
    return PolarityController(**{**settings, "signal": signal, **changes})


def pairs_of(weights):
    """(w+, w-) of the plain form, whose quadrants are two equal pairs."""
    assert weights == BranchWeights.of_branches(weights.expanding_positive, weights.contracting_positive)
    return weights.expanding_positive, weights.contracting_positive


def test_golden_smoothing_starts_at_the_first_entropy():
    controller = observed(ready(), 1.2)
    assert controller.smoothed_entropy == pytest.approx(1.2, rel=1e-15)
    observed(controller, 0.8)
    assert controller.smoothed_entropy == pytest.approx(0.75 * 1.2 + 0.25 * 0.8, rel=1e-14)
    observed(controller, 0.0)
    assert controller.smoothed_entropy == pytest.approx(0.75 * 1.1, rel=1e-14)


def test_golden_phase_and_weights_below_the_reference():
    controller = observed(ready(), 1.0, 0.5)  # H~ = 0.875, gap 0.125 of a width of 0.5
    assert controller.phase == pytest.approx(0.25, rel=1e-14)
    assert pairs_of(controller.weights) == pytest.approx((1.1, 0.9), rel=1e-14)


def test_golden_phase_and_weights_above_the_reference():
    controller = observed(ready(reference_entropy=2.0), 2.25)  # the width is relative: 0.5 * 2 nats
    assert controller.phase == pytest.approx(-0.25, rel=1e-14)
    assert pairs_of(controller.weights) == pytest.approx((0.9, 1.1), rel=1e-14)


def test_one_sided_never_favours_contraction():
    assert observed(ready(two_sided=False), 1.25).phase == 0.0
    assert observed(ready(two_sided=False), 0.875).phase == pytest.approx(0.25, rel=1e-14)
    assert PolarityController().signal == ReferenceSignal(width=0.25, two_sided=False)


@pytest.mark.parametrize(("entropy", "phase"), [(0.5, 1.0), (0.1, 1.0), (1.5, -1.0), (9.0, -1.0)])
def test_phase_saturates_on_both_sides(entropy, phase):
    controller = observed(ready(), entropy)
    assert controller.phase == phase
    assert controller.weights == BranchWeights.of_branches(1 + 0.4 * phase, 1 - 0.4 * phase)


def test_weights_are_neutral_before_anything_is_observed():
    assert ready().weights == BranchWeights()
    assert ready().phase == 0.0


def test_strength_zero_is_the_base_method():
    assert observed(ready(strength=0.0), 0.1).weights == BranchWeights()


def test_phase_is_zero_during_the_warmup():
    controller = ready(warmup_updates=3)
    assert [observed(controller, 0.5).phase for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_golden_reference_from_the_warmup():
    controller = PolarityController(
        signal=ReferenceSignal(width=0.5), reference_fraction=0.4, warmup_updates=3, smoothing=0.5, strength=0.5
    )
    assert controller.reference_entropy is None
    observed(controller, 3.0, 2.0, 1.0)
    assert controller.reference_entropy == pytest.approx(0.8, rel=1e-14)
    observed(controller, 0.1, 0.1, 0.1)  # H~ = 1.75, then .925, .5125, .30625
    assert controller.reference_entropy == pytest.approx(0.8, rel=1e-14)
    assert controller.smoothed_entropy == pytest.approx(0.30625, rel=1e-14)
    assert controller.phase == 1.0
    observed(controller, 0.99375)  # H~ = 0.65, gap 0.15 of a width of 0.4
    assert controller.phase == pytest.approx(0.375, rel=1e-12)


def test_given_reference_is_not_replaced_by_the_warmup():
    assert observed(ready(warmup_updates=2), 3.0, 3.0, 3.0).reference_entropy == 1.0


def test_warmup_without_entropy_leaves_the_phase_defined():
    controller = observed(PolarityController(warmup_updates=1, smoothing=0.0), 0.0)
    assert controller.reference_entropy > 0
    assert 0 <= controller.phase <= 1


@pytest.mark.parametrize(("flows", "authority"), [((1, 3), 0.5), ((3, 1), -0.5), ((0, 2), 1.0), ((0, 0), 0.0)])
def test_golden_demanded_authority(flows, authority):
    expanding, contracting = map(float, flows)
    assert balance_authority(expanding, contracting) == authority
    controller = observed(ready(), 1.0, expanding_flow=expanding, contracting_flow=contracting)
    assert controller.demanded_authority == authority
    if sum(flows):
        assert (1 + authority) * expanding == pytest.approx((1 - authority) * contracting)


class Heard(logging.Handler):
    """Warnings of the package, in order."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def heard():
    handler, package = Heard(), logging.getLogger("equipoise")
    package.addHandler(handler)
    yield handler.lines
    package.removeHandler(handler)


def updates_until_warning(controller, heard, entropy=0.1, **flows):
    heard.clear()
    for update in range(1, 3 * SATURATION_PATIENCE):
        observed(controller, entropy, **flows)
        if heard:
            return update
    return None


def test_warns_once_when_saturated_for_long(heard):
    controller = ready()
    observed(controller, *[0.1] * 60, contracting_flow=3.0)
    assert heard == [
        "polarity control is saturated: for 20 updates raising the entropy has needed an authority b* that its weights "
        "do not reach (now b*=0.500, strength=0.4). Either raise the strength or lower the learning rate or lower the "
        "reference entropy."
    ]


def test_warns_of_an_entropy_that_cannot_be_lowered(heard):
    assert updates_until_warning(ready(), heard, entropy=9.0, expanding_flow=3.0) == 20
    assert "lowering the entropy" in heard[0]
    assert "b*=-0.500" in heard[0]
    assert "raise the reference entropy" in heard[0]
    assert updates_until_warning(ready(two_sided=False), heard, entropy=9.0, expanding_flow=3.0) is None


def test_saturation_is_told_for_every_update():
    controller = observed(ready(), 0.1, contracting_flow=3.0)
    assert controller.saturated
    assert not observed(controller, 0.1, contracting_flow=2.0).saturated
    # on one quadrant: b* = (3 - 1) / 1, and 1 + 0.4 does not reach it
    one = ready(quadrants=["expanding_positive"], two_sided=False)
    one.observe(entropy=0.1, expanding_flow=2.0, contracting_flow=3.0, expanding_positive_flow=1.0)
    assert (one.saturated, one.demanded_authority) == (True, 1.0)
    wide = ready(quadrants=["expanding_positive"], two_sided=False, strength=1.5)
    wide.observe(entropy=0.1, expanding_flow=2.0, contracting_flow=3.0, expanding_positive_flow=1.0)
    assert not wide.saturated
    bounded = ready(quadrants=["expanding_positive"], strength=1.5, weight_bounds=(0.5, 1.5))
    bounded.observe(entropy=0.1, expanding_flow=2.0, contracting_flow=3.0, expanding_positive_flow=1.0)
    assert bounded.saturated, "the bound on the weight, not the strength, is what it lacks"


def test_saturation_is_counted_in_a_row(heard):
    assert SATURATION_PATIENCE == 20
    assert updates_until_warning(ready(), heard, contracting_flow=3.0) == 20
    interrupted = observed(ready(), *[0.1] * 15, contracting_flow=3.0)
    observed(interrupted, 0.1, contracting_flow=1.0)
    assert updates_until_warning(interrupted, heard, contracting_flow=3.0) == 20


def test_no_warning_while_the_strength_suffices_or_the_phase_is_not_at_its_end(heard):
    assert updates_until_warning(ready(), heard, contracting_flow=2.0) is None  # b* = 1/3 < 0.4
    assert updates_until_warning(ready(reference_entropy=0.15, width=1.0), heard, contracting_flow=3.0) is None


def toy_entropies(wrong_sign=False):
    """A policy under advantages without any signal: only the reweighting moves its entropy, from 0.4 nats."""
    logits = torch.tensor([4.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    controller = PolarityController(strength=0.5, reference_entropy=0.9, smoothing=0.8, warmup_updates=0)
    entropies = []
    for _ in range(1000):
        statistics = token_statistics(*every_target(logits))
        weights = controller.weights
        if wrong_sign:
            weights = BranchWeights.of_branches(weights.contracting_positive, weights.expanding_positive)
        # Each action is rewarded half the time and punished half the time: the expected plain update is zero.
        reward = torch.ones_like(logits)
        advantage = sum(
            0.5 * reweight_by_polarity(sign * reward, entropy_polarity(statistics, sign * reward), weights)
            for sign in (1, -1)
        )
        p = logits.softmax(-1)
        logits = logits + 0.1 * p * (advantage - (p * advantage).sum())
        entropies.append(float(statistics.entropy[0]))
        controller.observe(entropy=entropies[-1], expanding_flow=1.0, contracting_flow=1.0)
    return entropies


def test_closed_loop_raises_the_entropy_to_the_reference():
    entropies = toy_entropies()
    assert entropies[0] < 0.45
    assert entropies[-1] == pytest.approx(0.9, rel=0.02)
    assert max(entropies) < 1.1 * 0.9


@pytest.mark.slow
def test_closed_loop_with_the_wrong_sign_would_collapse():
    entropies = toy_entropies(wrong_sign=True)
    assert entropies[-1] < 0.5 * entropies[0]


TRAJECTORY = [2.0, 1.5, 1.7, 0.9, 0.4, 0.6, 0.3, 0.2]


@pytest.mark.parametrize("interrupted_after", range(9))
def test_resumed_equals_uninterrupted(interrupted_after):
    settings = {"warmup_updates": 3, "smoothing": 0.6, "strength": 0.3}
    whole = observed(PolarityController(**settings), *TRAJECTORY, contracting_flow=4.0)
    first = observed(PolarityController(**settings), *TRAJECTORY[:interrupted_after], contracting_flow=4.0)
    resumed = PolarityController(**settings)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    observed(resumed, *TRAJECTORY[interrupted_after:], contracting_flow=4.0)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.weights == whole.weights
    assert whole.weights != BranchWeights()


def test_resumed_warns_at_the_same_update(heard):
    first = observed(ready(), *[0.1] * 12, contracting_flow=3.0)
    resumed = ready()
    resumed.load_state_dict(first.state_dict())
    assert updates_until_warning(resumed, heard, contracting_flow=3.0) == 8


@pytest.mark.parametrize("change", [lambda state: state.pop("num_updates"), lambda state: state.update(more=1)])
def test_refuses_a_state_of_other_keys(change):
    state = ready().state_dict()
    change(state)
    with pytest.raises(ValueError, match=r"controller state must have the keys .*'num_updates'.*, got \["):
        ready().load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("strength", -0.1, ">= 0 and finite"),
        ("strength", math.nan, ">= 0 and finite"),
        ("slow_smoothing", 0.9, r"in \(smoothing=0.9, 1\)"),
        ("slow_smoothing", 1.0, r"in \(smoothing=0.9, 1\)"),
        ("release_after", 0.0, r"in \(0, 1\]"),
        ("release_after", 1.1, r"in \(0, 1\]"),
        ("smoothing", 1.0, r"in \[0, 1\)"),
        ("smoothing", -0.1, r"in \[0, 1\)"),
        ("warmup_updates", -1, ">= 0"),
        ("warmup_updates", 0, ">= 1 when reference_entropy is not given"),
        ("reference_fraction", 0.0, "> 0 and finite"),
        ("reference_fraction", math.inf, "> 0 and finite"),
        ("reference_entropy", 0.0, "> 0 nats and finite"),
        ("reference_entropy", math.inf, "> 0 nats and finite"),
    ],
)
def test_refuses_settings(name, value, rule):
    with pytest.raises(ValueError, match=f"{name} must be {rule}, got {name}={value}"):
        PolarityController(**{name: value})


@pytest.mark.parametrize("name", ["entropy", "expanding_flow", "contracting_flow"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_refuses_observations_and_keeps_its_state(name, value):
    controller = observed(ready(), 0.7)
    before = controller.state_dict()
    with pytest.raises(ValueError, match=f"{name} must be finite and >= 0, got {name}={value}"):
        controller.observe(**{"entropy": 1.0, "expanding_flow": 1.0, "contracting_flow": 1.0, name: value})
    assert controller.state_dict() == before
