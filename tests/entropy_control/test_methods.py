"""The baselines of entropy control: hand numbers, invariances, draws, the entropy they are after, refusals."""

import math

import pytest
import torch
from paper_losses import ce_gppo_loss, kl_cov_loss

from equipoise import ClipBounds, PolicyBatch, TokenStatistics, token_statistics
from equipoise.entropy_control import (
    CONTROLS,
    EntropyControl,
    UpdateTokens,
    ce_gppo_coefficient,
    clip_b_weight,
    clip_cov_weight,
    kl_cov_coefficient,
    kl_cov_selection,
    stare_weight,
    steer_weight,
    surprisal_weight,
    token_covariance,
    token_draw,
)
from equipoise.entropy_control.draw import row_identity
from equipoise.objectives import ppo_clip

LN2 = math.log(2)
BOUNDS = ClipBounds(0.8, 1.2)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def tokens_of(probability, advantage, *, entropy=None, old=None, draw=None):
    logprob = doubles(*probability).log()
    return UpdateTokens(
        logprob,
        logprob.clone() if old is None else doubles(*old).log(),
        torch.ones_like(logprob) if entropy is None else doubles(*entropy),
        doubles(*advantage),
        torch.arange(len(logprob)) if draw is None else torch.tensor(draw),
    )


def random_tokens(num=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    logprob = -3 * torch.rand(num, generator=g, dtype=torch.float64)
    return UpdateTokens(
        logprob,
        logprob + 0.3 * torch.randn(num, generator=g, dtype=torch.float64),
        0.5 * torch.rand(num, generator=g, dtype=torch.float64),
        torch.randn(num, generator=g, dtype=torch.float64),
        torch.randperm(num, generator=g),
    )


FOUR = tokens_of([0.5, 0.25, 0.125, 0.5], [1.0, -1.0, 2.0, 0.0])  # mean A = 0.5, mean log pi = -1.75 ln 2


# ---- hand numbers ------------------------------------------------------------------------------------------------


def test_golden_covariance():
    expected = [0.5 * 0.75 * LN2, 1.5 * 0.25 * LN2, -1.5 * 1.25 * LN2, -0.5 * 0.75 * LN2]
    assert token_covariance(FOUR).tolist() == pytest.approx(expected, rel=1e-12)


def test_golden_clip_cov_draws_candidates_in_the_order_of_the_draw():
    # c = 0.375 ln 2 twice, then below 0
    tokens = FOUR._replace(draw=torch.tensor([7, 3, 0, 1]))
    settings = {"covariance_low": 0.0, "covariance_high": 1.0}
    assert clip_cov_weight(tokens, fraction=0.25, **settings).tolist() == [1, 0, 1, 1]
    assert clip_cov_weight(tokens, fraction=1.0, **settings).tolist() == [0, 0, 1, 1]
    assert clip_cov_weight(tokens, fraction=1e-9, **settings).tolist() == [1, 0, 1, 1], "at least one"
    assert clip_cov_weight(tokens).tolist() == [1, 1, 1, 1], "none within (1, 5)"


def test_clip_cov_excludes_the_ends_of_its_range():
    low, high = token_covariance(FOUR)[[0, 1]].tolist()
    ends = {"covariance_low": low, "covariance_high": 9.0}
    assert clip_cov_weight(FOUR, fraction=1.0, **ends).tolist()[0] == 1
    assert clip_cov_weight(FOUR, fraction=1.0, covariance_low=0.0, covariance_high=high).tolist()[1] == 1


def test_golden_kl_cov_takes_the_largest_and_breaks_ties_by_the_draw():
    tokens = tokens_of([0.5, 0.25, 0.5, 0.25], [1.0, 1.0, -1.0, -1.0], draw=[3, 0, 1, 2])  # c: first and last, equal
    assert kl_cov_selection(tokens, fraction=0.25).tolist() == [False, False, False, True]
    assert kl_cov_selection(tokens, fraction=0.5).tolist() == [True, False, False, True]
    assert kl_cov_selection(tokens, fraction=1e-9).sum() == 1


def test_golden_kl_cov_gradient():
    log_ratio, advantage = doubles(1.1, 1.1, 0.9, 1.3, 1.3, 0.7).log(), doubles(2, -2, 2, 2, -2, -2)
    actual = kl_cov_coefficient(log_ratio, advantage, BOUNDS, coefficient=0.5)
    # surrogate: 1.1 * 2, 1.1 * -2, 0.9 * 2, clipped, 1.3 * -2, clipped; penalty against the move
    assert actual.tolist() == pytest.approx([2.2 - 0.5, -2.2 - 0.5, 1.8 + 0.5, -0.5, -2.6 - 0.5, 0.5], rel=1e-12)


@pytest.mark.parametrize(("num", "dropped"), [(8, True), (7, False)])
def test_golden_clip_b_drops_beyond_two_and_a_half_deviations(num, dropped):
    # one of n values that stands apart lies sqrt(n - 1) population deviations from the mean
    entropy = [0.0, *[2.0] * (num - 1)]
    weight = clip_b_weight(tokens_of([0.5] * num, [-1.0, *[1.0] * (num - 1)], entropy=entropy))
    assert weight.tolist() == [0.0 if dropped else 1.0, *[1.0] * (num - 1)]
    assert clip_b_weight(tokens_of([0.5] * num, [1.0] * num, entropy=entropy)).min() == 1, "A >= 0 is kept"
    above = clip_b_weight(tokens_of([0.5] * num, [-1.0] * num, entropy=[4.0, *[2.0] * (num - 1)]))
    assert above.min() == 1, "only what lies below the mean"


def test_golden_clip_b_strength_is_weighted_by_the_probability():
    # S = pi (log pi + H): a token that is nearly impossible has none, whatever its entropy
    tokens = tokens_of([1e-9, *[0.5] * 8], [-1.0] * 9, entropy=[-50.0, *[LN2 + 1e-9] * 8])
    assert clip_b_weight(tokens, deviations=2.9).min() == 1
    assert clip_b_weight(tokens._replace(logprob=doubles(*[0.5] * 9).log()), deviations=2.8)[0] == 0


def test_golden_steer():
    tokens = tokens_of([0.5, 0.5, 0.9], [2.0, -2.0, 100.0], entropy=[1.0, 1.0, 1.0], old=[0.25, 0.5, 0.9])
    omega = 2.0 / 0.25 * 0.5 * 0.5 * (1 - LN2)
    weight = steer_weight(tokens, decay=0.1, least=0.8).tolist()
    assert weight == pytest.approx([math.exp(-0.1 * omega), math.exp(-0.05 * omega), 0.8], rel=1e-12)
    assert steer_weight(tokens, decay=0.0).tolist() == [1, 1, 1]


def test_golden_stare_weights_the_most_surprising_of_each_side_while_the_entropy_is_low():
    probability, advantage = [0.9, 0.1, 0.8, 0.2, 0.01], [1.0, 1.0, -1.0, -1.0, 0.0]
    low = tokens_of(probability, advantage, entropy=[0.29] * 5)
    assert stare_weight(low, fraction=0.5).tolist() == pytest.approx([1, 1.1, 1, 0.9, 1])
    assert stare_weight(low, fraction=0.5, gain=0.5).tolist() == pytest.approx([1, 1.5, 1, 0.5, 1])
    high = tokens_of(probability, advantage, entropy=[0.3] * 5)
    assert stare_weight(high, fraction=0.5).tolist() == [1] * 5


def test_golden_ce_gppo():
    log_ratio = doubles(0.5, 0.5, 1.5, 1.5, 1.0, math.nan).log()
    advantage = doubles(-2, 2, 2, -2, 2, 1)
    gradient, is_set = ce_gppo_coefficient(log_ratio, advantage, BOUNDS, beta_low=0.75, beta_high=0.9)
    assert is_set.tolist() == [True, False, True, False, False, False]
    assert gradient.tolist() == pytest.approx([0.75 * 0.8 * -2, 0, 0.9 * 1.2 * 2, 0, 0, 0], rel=1e-12)
    assert gradient.dtype == torch.float64
    unbounded = ce_gppo_coefficient(log_ratio, advantage, ClipBounds(0.8, math.inf))
    assert unbounded[0].tolist() == pytest.approx([0.5 * 0.8 * -2, 0, 0, 0, 0, 0])


# ---- the papers' losses hold the coefficients to autograd ----------------------------------------------------------


def objective_problem():
    g = torch.Generator().manual_seed(3)
    behavior, shift, advantage = torch.randn(3, 4, 9, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=g) < 0.8
    logprob = (behavior + 0.4 * shift).masked_fill(~mask, math.nan).requires_grad_()
    poisoned = PolicyBatch(advantage.masked_fill(~mask, math.nan), behavior.masked_fill(~mask, math.nan), mask)
    return TokenStatistics(logprob, logprob.detach(), logprob.detach(), logprob.detach()), poisoned


def gradient_of(loss, logprob, mask):
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    assert (gradient[~mask] == 0).all()
    assert (loss[~mask] == 0).all()
    return gradient[mask]


def test_ce_gppo_loss_has_the_gradient_of_its_coefficient_and_the_papers_value():
    statistics, batch = objective_problem()
    mask = batch.action_mask
    loss = ce_gppo_loss(statistics, batch, bounds=BOUNDS, beta_low=0.6, beta_high=0.9)
    log_ratio, advantage = (statistics.logprob - batch.behavior_logprob).detach()[mask], batch.advantage[mask]
    coefficient, is_set = ce_gppo_coefficient(log_ratio, advantage, BOUNDS, beta_low=0.6, beta_high=0.9)
    plain = gradient_of(ppo_clip(statistics, batch, bounds=BOUNDS).loss, statistics.logprob, mask)
    assert (plain[is_set] == 0).all()
    assert is_set.sum() >= 4
    torch.testing.assert_close(gradient_of(loss, statistics.logprob, mask), torch.where(is_set, -coefficient, plain))
    torch.testing.assert_close(loss[mask][is_set], -coefficient[is_set])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_cov_does_not_pull_where_nothing_moved_but_the_rounding(dtype):
    eps = torch.finfo(dtype).eps
    log_ratio = torch.tensor([-4 * eps, 4 * eps, 0.0, -1e-4, 1e-4], dtype=dtype)
    pull = kl_cov_coefficient(log_ratio, torch.zeros(5, dtype=dtype), BOUNDS, coefficient=0.5)
    assert pull.tolist() == [0.0, 0.0, 0.0, 0.5, -0.5]


def test_kl_cov_loss_has_the_gradient_of_its_coefficient():
    statistics, batch = objective_problem()
    mask = batch.action_mask
    selected = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    loss = kl_cov_loss(statistics, batch, bounds=BOUNDS, selected=selected, coefficient=0.3)
    log_ratio, advantage = (statistics.logprob - batch.behavior_logprob).detach()[mask], batch.advantage[mask]
    coefficient = kl_cov_coefficient(log_ratio, advantage, BOUNDS, coefficient=0.3)
    plain = gradient_of(ppo_clip(statistics, batch, bounds=BOUNDS).loss, statistics.logprob, mask)
    expected = torch.where(selected[mask], -coefficient, plain)
    torch.testing.assert_close(gradient_of(loss, statistics.logprob, mask), expected)


# ---- what the methods are after ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip_cov", {"fraction": 0.2, "covariance_low": 0.1}),
        ("clip_b", {"deviations": 0.5}),
        ("stare", {"fraction": 0.4, "entropy_below": 9.0}),
    ],
)
def test_weights_raise_the_predicted_entropy_change(name, settings):
    """One state, every action seen as often as the policy takes it, rewarded and punished alike."""
    p = doubles(0.5, 0.3, 0.12, 0.08)
    actions = torch.tensor([a for a, n in enumerate((50, 30, 12, 8)) for _ in range(n)] * 2)
    advantage = doubles(*[1.0] * 100, *[-1.0] * 100)
    statistics = token_statistics(p.log().expand(200, 4), actions)
    draw = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    tokens = UpdateTokens(statistics.logprob, statistics.logprob, statistics.entropy, advantage, draw)
    weight = EntropyControl(name, settings).mark(tokens)
    change = (advantage * statistics.tendency * weight).sum()
    assert abs((advantage * statistics.tendency).sum()) < 1e-12
    assert change > 0.01


def test_steer_shrinks_the_predicted_entropy_change_and_kl_cov_the_move():
    tokens = random_tokens()
    weight = steer_weight(tokens, decay=0.5)
    assert (weight < 1).any()
    assert ((weight >= 0.8) & (weight <= 1)).all()
    log_ratio = tokens.logprob - tokens.old_logprob
    plain = kl_cov_coefficient(log_ratio, tokens.advantage, BOUNDS, coefficient=0.0)
    pulled = kl_cov_coefficient(log_ratio, tokens.advantage, BOUNDS, coefficient=0.1)
    torch.testing.assert_close((pulled - plain) * log_ratio.sign(), torch.full_like(plain, -0.1))


def test_golden_surprisal():
    # rarer than the entropy expects: -log .25 > 1; not: -log .5 < 1; A < 0 and A = 0 never
    tokens = tokens_of([0.25, 0.5, 0.25, 0.25], [2.0, 2.0, -2.0, 0.0], entropy=[1.0] * 4)
    assert surprisal_weight(tokens, boost=0.5).tolist() == [1.5, 1, 1, 1]
    assert surprisal_weight(tokens).tolist() == [2, 1, 1, 1]


# ---- one contract for all ----------------------------------------------------------------------------------------

ACTIVE = {
    "clip_cov": {"fraction": 0.05, "covariance_low": 0.1},
    "kl_cov": {"fraction": 0.05},
    "clip_b": {"deviations": 1.0},
    "steer": {"decay": 0.3},
    "stare": {},
    "surprisal": {"boost": 0.5},
    "ce_gppo": {},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_every_mark_moves_with_its_token(name):
    tokens = random_tokens()
    control = EntropyControl(name, ACTIVE[name])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    mark = control.mark(tokens)
    assert mark.dtype == torch.float64
    assert mark.shape == (200,)
    torch.testing.assert_close(control.mark(UpdateTokens(*(x[order] for x in tokens))), mark[order], rtol=1e-12, atol=0)
    if name != "ce_gppo":
        assert len(mark.unique()) > 1


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("num", [0, 1])
def test_every_mark_of_next_to_nothing_is_finite(name, num):
    mark = EntropyControl(name).mark(UpdateTokens(*(x[:num] for x in random_tokens())))
    assert mark.shape == (num,)
    assert mark.isfinite().all()


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_leaves_an_untouched_token_as_it_is(name):
    control = EntropyControl(name)
    advantage, near = doubles(1.0, -2.0), doubles(1.1, 0.9).log()
    untouched = torch.zeros_like(advantage) if name == "kl_cov" else torch.ones_like(advantage)
    steered, is_set = control.steer(advantage, untouched, near, BOUNDS)
    assert torch.equal(steered, advantage)
    assert not is_set.any()


def test_steering_goes_onto_the_advantage_it_is_given():
    advantage, log_ratio = doubles(2.0, -2.0), doubles(1.5, 0.5).log()
    weighted, _ = EntropyControl("stare").steer(advantage, doubles(1.1, 0.9), log_ratio, BOUNDS)
    assert weighted.tolist() == pytest.approx([2.2, -1.8])
    set_to, is_set = EntropyControl("ce_gppo", {"beta_high": 0.5}).steer(advantage, doubles(1, 1), log_ratio, BOUNDS)
    assert is_set.all()
    assert set_to.tolist() == pytest.approx([0.5 * 1.2 * 2, 0.5 * 0.8 * -2])
    pulled, is_set = EntropyControl("kl_cov", {"coefficient": 0.25}).steer(advantage, doubles(0, 1), log_ratio, BOUNDS)
    assert is_set.tolist() == [False, True]
    assert pulled.tolist() == pytest.approx([2.0, 0.25])


def test_defaults_are_those_of_the_papers():
    assert {name: control.defaults for name, control in CONTROLS.items()} == {
        "clip_cov": {"fraction": 2e-4, "covariance_low": 1.0, "covariance_high": 5.0},
        "kl_cov": {"fraction": 2e-3, "coefficient": 1.0},
        "clip_b": {"deviations": 2.5},
        "steer": {"decay": 1.0, "least": 0.8},
        "stare": {"fraction": 0.1, "gain": 0.1, "entropy_below": 0.3},
        "surprisal": {"boost": 1.0},
        "ce_gppo": {"beta_low": 0.5, "beta_high": 1.0},
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip", {}, "entropy control must be one of clip_cov, .*, got 'clip'"),
        ("clip_cov", {"gain": 1.0}, "clip_cov has the settings fraction, covariance_low, covariance_high, got 'gain'"),
        ("clip_cov", {"fraction": 0.0}, r"fraction of clip_cov must be in \(0, 1\], got fraction of clip_cov=0.0"),
        ("kl_cov", {"fraction": 1.1}, r"fraction of kl_cov must be in \(0, 1\]"),
        ("kl_cov", {"coefficient": -1.0}, "coefficient of kl_cov must be >= 0"),
        ("clip_cov", {"covariance_low": 5.0}, "covariance_low of clip_cov must be below covariance_high"),
        ("clip_cov", {"covariance_high": math.inf}, "covariance_high of clip_cov must be finite"),
        ("clip_b", {"deviations": 0.0}, "deviations of clip_b must be > 0"),
        ("steer", {"decay": -1.0}, "decay of steer must be >= 0"),
        ("steer", {"least": 1.5}, r"least of steer must be in \[0, 1\]"),
        ("stare", {"gain": 1.0}, r"gain of stare must be in \[0, 1\)"),
        ("stare", {"entropy_below": 0.0}, "entropy_below of stare must be > 0 nats"),
        ("surprisal", {"boost": -0.5}, "boost of surprisal must be >= 0"),
        ("ce_gppo", {"beta_low": math.nan}, "beta_low of ce_gppo must be >= 0"),
        ("ce_gppo", {"beta_high": math.inf}, "beta_high of ce_gppo must be >= 0"),
    ],
)
def test_refuses_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        EntropyControl(name, settings)


# ---- draws ---------------------------------------------------------------------------------------------------------


def test_draws_belong_to_tokens():
    row, position = torch.tensor([5, 5, -9, -9, 5]), torch.tensor([0, 1, 0, 1, 0])
    draw = token_draw(row, position, seed=3, update=7)
    assert len(draw.unique()) == 5, "the last repeats the first, and is another token"
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(token_draw(row[order], position[order], seed=3, update=7), draw[order])
    for other in ({"seed": 4, "update": 7}, {"seed": 3, "update": 8}, {"seed": 7, "update": 3}):
        assert not (token_draw(row, position, **other) == draw).any()
    assert len(token_draw(row[:0], position[:0], seed=0, update=0)) == 0


def test_draws_are_uniform():
    draw = token_draw(torch.zeros(20000, dtype=torch.int64), torch.arange(20000), seed=0, update=0).double() / 2**63
    assert abs(draw.mean()) < 0.02
    assert draw.var(correction=0).item() == pytest.approx(1 / 3, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([draw[1:], draw[:-1]]))[0, 1]) < 0.03


def test_identity_of_a_sequence_does_not_know_its_padding():
    def identity(prompt, prompt_mask, completion, completion_mask):
        arguments = (prompt, prompt_mask, completion, completion_mask)
        return int(row_identity(*(torch.tensor([x]) for x in arguments)))

    plain = identity([3, 4], [1, 1], [5, 6], [1, 1])
    assert identity([9, 9, 3, 4], [0, 0, 1, 1], [5, 6, 7], [1, 1, 0]) == plain
    others = [
        identity([4, 3], [1, 1], [5, 6], [1, 1]), identity([3, 4], [1, 1], [6, 5], [1, 1]),
        identity([5, 6], [1, 1], [3, 4], [1, 1]), identity([3, 4], [1, 1], [5], [1]),
    ]  # fmt: skip
    assert len({plain, *others}) == 5
