"""Samples and groups for tests of the rollouts."""

import torch

from equipoise.rollouts import Group, Sample


def sample(num_tokens: int = 4, *, version: int = 0, advantage: float = 1.0, seed: int = 0, **changes) -> Sample:
    g = torch.Generator().manual_seed(seed)
    fields = {
        "prompt_ids": torch.randint(2, 17, (3 + seed % 3,), generator=g),
        "completion_ids": torch.randint(2, 17, (num_tokens,), generator=g),
        "behavior_logprob": -torch.rand(num_tokens, generator=g) - 0.1,
        "policy_version": torch.full((num_tokens,), version),
        "action_mask": torch.ones(num_tokens, dtype=torch.bool),
        "advantage": advantage,
    }
    return Sample(**(fields | changes))


def group(version: int = 0, *, advantage: float = 1.0, seed: int = 0, size: int = 2) -> Group:
    signs = [advantage if i % 2 == 0 else -advantage for i in range(size)]
    return Group(tuple(sample(2 + i, version=version, advantage=a, seed=seed * 10 + i) for i, a in enumerate(signs)))


def same(one: Sample, other: Sample) -> bool:
    return one.advantage == other.advantage and all(
        (value is None and vars(other)[name] is None) or torch.equal(value, vars(other)[name])
        for name, value in vars(one).items()
        if name != "advantage"
    )
