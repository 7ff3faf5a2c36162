"""How long a probe says that it will take, and how its bar moves through sampling and passes."""

import sys

import pytest
import torch
from terminal import Terminal
from trainer_setup import character_tokenizer, tiny_model

from equipoise.commands import probe_time
from equipoise.commands.probe_time import PASSES, ProbeBar, ProbeTime, duration, timed_beginning
from equipoise.models.sampling import Completion, Sampler
from equipoise.models.statistics_head import add_statistics_head

FIRST, STEP, TOKEN = 0.7, 0.05, 0.002
"""Seconds of a first token with its prompts, of a further one, and of a token in a forward pass."""


class Clock:
    """Time that passes only where it is made to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(probe_time.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(probe_time.time, "monotonic", lambda: self.now)


class FakeSampler(Sampler):
    def __init__(self, clock, most, ends_after=10**6):
        self.clock, self.max_new_tokens, self.ends_after, self.asked = clock, most, ends_after, []

    def completions(self, prompt_ids, temperature, done, seeds=None):
        assert temperature is None  # no random number is drawn
        assert self.watch is None
        steps = min(self.max_new_tokens, self.ends_after)
        self.asked.append(steps)
        self.clock.now += FIRST + STEP * (steps - 1) + (5.0 if len(self.asked) == 1 else 0)
        return [Completion([1] * steps, "", True) for _ in prompt_ids]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(monkeypatch)

    def passes(model, rollout, batch_size):
        tokens = sum(len(p) + len(c.ids) for p, c in zip(rollout.prompt_ids, rollout.completions, strict=True))
        clock.now += TOKEN * tokens
        yield None

    monkeypatch.setattr(probe_time, "passes", passes)
    return clock


@pytest.mark.parametrize(("most", "ends_after"), [(100, 10**6), (100, 3), (2, 10**6)])
def test_the_time_of_a_batch_follows_from_its_beginning(clock, most, ends_after):
    sampler = FakeSampler(clock, most, ends_after)
    bar = sampler.watch = ProbeBar(5, ProbeTime(1.0, 1.0))
    prompts = [[5] * length for length in (4, 9, 9, 7, 9)]
    expected = timed_beginning(None, sampler, prompts, batch_size=2)
    assert expected.sampling == pytest.approx(3 * (FIRST + STEP * (most - 1)))
    assert expected.forward == pytest.approx(TOKEN * (4 + 9 + 9 + 7 + 9 + 5 * most))
    assert expected.seconds == pytest.approx(expected.sampling + 7 * expected.forward)
    assert (sampler.max_new_tokens, sampler.watch) == (most, bar)


def test_completions_of_one_token_are_timed_too(clock):
    expected = timed_beginning(None, FakeSampler(clock, 1), [[5] * 3] * 4, batch_size=4)
    assert expected.sampling == pytest.approx(FIRST)


def test_a_real_beginning_draws_no_random_number():
    model, tokenizer = tiny_model(), character_tokenizer()
    add_statistics_head(model, temperature=1.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    expected = timed_beginning(model.eval(), Sampler(model, tokenizer, 8, 4), [[3, 4], [5]] * 3, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert expected.sampling > 0
    assert expected.forward > 0
    assert all(p.grad is None for p in model.parameters())


def test_sampling_and_passes_share_the_time():
    expected = ProbeTime(sampling=3.0, forward=1.0)
    assert expected.share(None) == pytest.approx(0.3)
    assert [expected.share(name) for name in PASSES] == pytest.approx([0.3, 0.3, 0.1])


def test_the_bar_moves_within_sampling_and_within_each_pass(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    with ProbeBar(20, ProbeTime(3.0, 1.0)) as bar:
        bar.step(40, 5)
        assert bar.bar.n == pytest.approx(5 * 0.3)
        bar.update(10)
        assert bar.bar.n == pytest.approx(10 * 0.3)
        clock.now += 2.0
        for name, done in (("objective", 6), ("entropy", 9), ("after the step", 10)):
            with bar.passing(name) as passed:
                before = bar.bar.n
                passed(4)
                assert before < bar.bar.n < done
                clock.now += 50.0
                passed(6)
            assert bar.bar.n == pytest.approx(done)
        bar.step(60, 0)
        assert "50 tokens/s" in bar.bar.postfix  # 100 in the 2 seconds that were not spent in passes
        bar.update(10)
        bar.left_out(10)
        assert bar.bar.n == pytest.approx(20)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (59, "59 s"), (90, "1.5 min"), (900, "15 min"), (5400, "1.5 h"), (90000, "25 h")],
)
def test_durations_are_said_in_the_unit_one_thinks_in(seconds, said):
    assert duration(seconds) == said
