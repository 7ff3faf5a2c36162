"""What the engine that samples and the trainer differ by is logged apart from staleness, before any truncation."""

import math

import pytest
import torch
from trainer_runs import own
from trainer_setup import prompts, trainer

pytestmark = pytest.mark.slow

LOG_RATIOS = (0.3, -0.1, 0.0, math.log(3))
"""Of the trainer's probability to the engine's, of the first tokens; 0 after them."""


def engine(subject_of, offsets=LOG_RATIOS):
    """A rollout function whose log-probs are off by known amounts."""

    def rollout(prompts, trainer):
        rows = trainer.processing_class(prompts)["input_ids"]
        g = torch.Generator().manual_seed(trainer.state.global_step)
        completions = torch.randint(2, 17, (len(rows), 6), generator=g)
        logprobs = []
        with torch.no_grad():
            for row, completion in zip(rows, completions, strict=True):
                ids = torch.tensor([[*row, *completion.tolist()]])
                exact = trainer.model(input_ids=ids).logits[0, len(row) - 1 : -1].log_softmax(-1)
                exact = exact.gather(1, completion[:, None])[:, 0]
                logprobs.append((exact - torch.tensor([*offsets, 0.0, 0.0])).clamp(max=0.0).tolist())
                assert (exact - torch.tensor([*offsets, 0.0, 0.0]) <= 0).all()
        return {"prompt_ids": rows, "completion_ids": completions.tolist(), "logprobs": logprobs}

    return rollout


def log_of(folder, **settings):
    subject = trainer(folder, dataset=prompts(16), max_steps=4, learning_rate=1e-3, **settings)
    subject.rollout_func = engine(subject)
    subject.train()
    return [own(entry) for entry in subject.state.log_history if "loss" in entry]


RATIOS = torch.tensor([*LOG_RATIOS, 0.0, 0.0]).double().exp()


def assert_as_made(entry):
    assert entry["engine_ratio_mean"] == pytest.approx(RATIOS.mean().item(), rel=1e-4)
    assert entry["engine_ratio_std"] == pytest.approx(RATIOS.std(correction=0).item(), rel=1e-4)
    assert entry["engine_ratio_tail_fraction"] == pytest.approx(1 / 6)
    assert entry["engine_logprob_error"] == pytest.approx(sum(map(abs, LOG_RATIOS)) / 6, rel=1e-4)


def test_the_two_parts_of_the_ratio_are_logged_apart(tmp_path):
    fresh, stale, *_ = log_of(tmp_path, num_iterations=2)
    for entry in (fresh, stale):  # the engine's part is that of the rollout policy: staleness is not in it
        assert_as_made(entry)
        assert entry["engine_known_fraction"] == 1
    assert fresh["ratio_std"] == pytest.approx(0, abs=1e-6)
    assert stale["ratio_std"] > 1e-3


def test_with_replay_the_fresh_tokens_tell(tmp_path):
    first, second, *_ = log_of(tmp_path, replay_fraction=0.5, replay_capacity=4)
    assert_as_made(first)
    assert_as_made(second)
    assert (first["engine_known_fraction"], second["engine_known_fraction"]) == (1, 0.5)
    assert second["ratio_mean"] != pytest.approx(second["engine_ratio_mean"], abs=1e-4)


def test_nothing_is_logged_where_the_trainers_own_model_samples(tmp_path):
    for features in ({}, {"replay_fraction": 0.5}):
        subject = trainer(tmp_path, max_steps=2, **features)
        subject.train()
        assert not [name for name in subject.state.log_history[-2] if "engine_" in name]
