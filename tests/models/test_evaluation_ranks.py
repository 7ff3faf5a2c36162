"""Several ranks evaluate what one evaluates: the same samples for any number of them, and one error ends all.

The ranks are threads here; processes, with whole and sharded models, are in tests/trl/test_episodes_two_processes.py.
"""

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from thread_ranks import on_threads
from trainer_setup import character_tokenizer, tiny_model

from equipoise.errors import InputError
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.evaluation_ranks import EvaluationRanks, seed_of
from equipoise.models.sampling import RowNoise, Sampler

ALONE = EvaluationRanks(own_seeds=True)
SETTINGS = {"num_samples": 3, "ks": (1, 3), "max_new_tokens": 6, "batch_size": 4, "seed": 5, "progress": False}


def on_ranks(count, work, *, in_step=False):
    """What `work(ranks)` returns, or raises, on each of them."""
    return on_threads(
        count, lambda rank, gather: work(EvaluationRanks(rank, count, gather, in_step=in_step, own_seeds=True))
    )


def data(count):
    return Dataset.from_dict({"prompt": [f"{n}+{n * 7}=" for n in range(count)], "answer": ["1"] * count})


def digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


MODELS = [tiny_model() for _ in range(4)]
"""One for each thread, made before they run side by side: the same model, from torch's one generator."""


def evaluated(ranks, count=7, reward=digits, **settings):
    settings = SETTINGS | settings
    model = MODELS[0 if ranks is None else ranks.rank]
    return evaluate_policy(model, character_tokenizer(), data(count), reward, ranks=ranks, **settings)


def without_entropies(evaluation):
    """All but the entropies, which differ in their last digits with what shares a batch."""
    records = [
        record | {"completions": [{k: v for k, v in c.items() if k != "entropy"} for c in record["completions"]]}
        for record in evaluation.samples
    ]
    return replace(evaluation, mean_entropy=None, samples=records)


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize(("count", "prompts"), [(2, 7), (3, 7), (4, 2), (2, 1)])
def test_any_number_of_ranks_measures_the_same_on_every_rank(count, prompts, in_step, shards):
    alone = evaluated(ALONE, prompts)
    assert len({completion["text"] for record in alone.samples for completion in record["completions"]}) > 2
    for end in on_ranks(count, lambda ranks: evaluated(ranks, prompts), in_step=in_step):
        assert without_entropies(end) == without_entropies(alone)
        assert end.mean_entropy == pytest.approx(alone.mean_entropy, abs=1e-6)


def test_greedy_completions_are_those_of_a_process_alone():
    today = evaluated(None)
    for end in on_ranks(2, evaluated):
        assert [record["greedy"] for record in end.samples] == [record["greedy"] for record in today.samples]
        assert end.greedy == today.greedy


def test_other_seeds_and_prompts_draw_other_samples():
    first, other = evaluated(ALONE, temperature=3.0), evaluated(ALONE, temperature=3.0, seed=6)
    assert first.samples != other.samples
    texts = Counter(completion["text"] for record in first.samples for completion in record["completions"])
    assert max(texts.values()) < 4, "no two rows may share their randomness"
    assert seed_of(1, 2, 3) != seed_of(1, 3, 2)
    assert 0 <= seed_of(2**40, 5) < 2**63


def test_noise_of_its_own_samples_the_softmax_at_the_temperature():
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    count, temperature = 40_000, 1.7
    noise = RowNoise([seed_of(0, n) for n in range(count)], temperature, torch.device("cpu"))
    drawn = noise(torch.zeros(count, 1), scores.expand(count, -1)).argmax(-1)
    frequencies = np.bincount(drawn.numpy(), minlength=4) / count
    expected = (scores[0] / temperature).softmax(-1).numpy()
    np.testing.assert_allclose(frequencies, expected, atol=5 * np.sqrt(0.25 / count))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_is_sampled_from_what_is_not_finite(value):
    noise = RowNoise([1], 1.0, torch.device("cpu"))
    assert noise(torch.zeros(1, 1), torch.tensor([[0.0, -torch.inf]])).argmax() == 0
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        noise(torch.zeros(1, 1), torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("when", ["greedy", "sampled"])
@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("error", [InputError("row 3 is broken"), KeyError("cell")])
def test_a_reward_that_fails_on_one_rank_ends_all_with_its_words(when, in_step, error, shards):
    def work(ranks):
        calls = []

        def broken(completions, **columns):
            calls.append(1)
            if ranks.rank == 1 and len(calls) == 1 + (when == "sampled"):
                raise error
            return digits(completions)

        return evaluated(ranks, reward=broken)

    first, second, third = on_ranks(3, work, in_step=in_step)
    assert second is error
    for end in (first, third):
        assert isinstance(end, InputError if isinstance(error, InputError) else RuntimeError)
        assert str(error) in str(end)


def test_generation_that_fails_on_one_rank_ends_all():
    def work(ranks):
        model = tiny_model()
        if ranks.rank == 0:
            model.generate = None  # is called
        return evaluate_policy(model, character_tokenizer(), data(4), digits, ranks=ranks, **SETTINGS)

    first, second = on_ranks(2, work)
    assert isinstance(first, TypeError)
    assert "rank 0 failed: TypeError" in str(second)


@pytest.fixture
def shards(monkeypatch):
    """Ranks in step that can generate only together, as with shards of a model; counts how often each does."""
    calls = Counter()
    original = Sampler._generate

    def together(self, *args):
        if self.ranks.in_step:
            calls[self.ranks.rank] += 1
            assert self.ranks.gather("generates") == ["generates"] * self.ranks.count
        return original(self, *args)

    monkeypatch.setattr(Sampler, "_generate", together)
    return calls


def test_ranks_in_step_generate_equally_often(shards):
    on_ranks(3, lambda ranks: evaluated(ranks, 4), in_step=True)
    # The first rank has two prompts: one batch of greedy completions, two of six samples in fours.
    assert shards == {0: 3, 1: 3, 2: 3}


def test_the_bar_is_the_first_ranks(monkeypatch):
    shown = {}
    from equipoise.models import evaluation

    def bar(*args, **settings):
        shown[threading.current_thread()] = settings["shown"]
        return original(*args, **(settings | {"shown": False}))

    original = evaluation.SamplingBar
    monkeypatch.setattr(evaluation, "SamplingBar", bar)
    on_ranks(3, lambda ranks: evaluated(ranks, progress=True))
    assert sorted(shown.values()) == [False, False, True]
