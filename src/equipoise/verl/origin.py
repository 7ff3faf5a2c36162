"""Where the rollouts of a step come from: which policy sampled them, what they earned, whether their ratios are 1.

Looked at once per step, before verl cuts it into mini-batches; what belongs to a row travels with it as a column.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from equipoise.errors import InputError
from equipoise.steering import Ranks

VERSION, SAMPLE, GROUP, REWARD = (f"equipoise_{name}" for name in ("version", "sample", "group", "reward"))
"""Columns of a step's data, one value per row: updates before the row was sampled, its number, the number of its
prompt, its reward (NaN: unknown)."""


@dataclass
class Versions:
    """How many updates stood behind each version of the weights that was sent to the rollout engine.

    verl numbers versions by global steps, of which each may have several updates.

    Attributes:
        updates: by the number that verl gave a version.
    """

    updates: dict[int, int] = field(default_factory=dict)

    KEPT = 256
    """Versions that are remembered; older trajectories count as old as the oldest of them."""

    def sent(self, version: int, updates: int) -> None:
        """Weights were sent.

        Args:
            version: verl's number of them.
            updates: optimizer updates before.
        """
        self.updates[version] = updates
        for old in sorted(self.updates)[: -self.KEPT]:
            del self.updates[old]

    def latest(self, otherwise: int) -> int:
        """Updates before the weights that were sent last; `otherwise` where none were."""
        return self.updates[max(self.updates)] if self.updates else otherwise

    def updates_before(self, version: int | None, otherwise: int) -> int:
        """Updates before the weights of a version; `otherwise` where nothing is known of it."""
        if version is None or not self.updates:
            return otherwise
        known = [number for number in self.updates if number <= version]
        return self.updates[max(known)] if known else min(self.updates.values())


@dataclass(frozen=True)
class Origin:
    """What holds for all rollouts of a step, on all ranks.

    Attributes:
        updates: optimizer updates before the step.
        old_policy: optimizer updates before the policy that verl computes old log-probs with: the weights that were
            sent last, also where a trainer makes several steps between two versions.
        from_rollout: the old log-probs are not those, but of the engine that sampled (verl's bypass mode).
        rewards: what the step's rewards are like, by name.
    """

    updates: int
    old_policy: int
    from_rollout: bool
    rewards: dict[str, float]


def examine(data: TensorDict, versions: Versions, ranks: Ranks, *, updates: int, samples: int) -> Origin:
    """Say where the rollouts of a step come from, and give its data the columns that tell it per row.

    Args:
        data: of this rank, for all mini-batches of the step.
        versions: of the weights that were sent so far.
        ranks: that share the step.
        updates: optimizer updates before the step.
        samples: rows of all ranks before the step, for numbers that are unique.

    Raises:
        InputError: on all ranks alike: no old log-probs, stale rollouts without the log-probs of who sampled them, or
            advantages that are not finite.
    """
    version = torch.tensor([versions.updates_before(number, updates) for number in _oldest_version(data)])
    has_old, has_rollout = ("old_log_probs" in data, "rollout_log_probs" in data)
    same = has_old and has_rollout and _equal(data["old_log_probs"], data["rollout_log_probs"])
    old_policy = versions.latest(updates)
    facts = [_has_nonfinite(data), not has_old, not has_rollout, bool((version < old_policy).any()), not same]
    device = data["input_ids"].device
    found = ranks.all_reduce(torch.tensor(facts, device=device).double()).bool().tolist()
    nonfinite, missing, unknown, stale, different = found
    if nonfinite:
        raise InputError("advantages must be finite, got NaN or infinities: look at the rewards, of which one is none")
    if missing:
        raise InputError("the batch has no old_log_probs: verl's trainer computes them, or copies the rollout's")
    if stale and unknown:
        raise InputError(
            "rollouts of an earlier policy have no rollout_log_probs, so nothing is known of the ratio to it: set "
            "actor_rollout_ref.rollout.calculate_log_probs=True"
        )
    reward, group = _rewards(data), _groups(data)
    size = len(version)
    start = samples + ranks.rank * size
    columns = {VERSION: version, SAMPLE: torch.arange(start, start + size), GROUP: group, REWARD: reward}
    for name, column in columns.items():
        data[name] = column.to(device)
    real = data["loss_mask"].sum(1) > 0 if not data["loss_mask"].is_nested else _any_token(data["loss_mask"])
    kept = torch.stack([group.to(device).double(), reward.to(device).double()], 1)[real]
    return Origin(updates, old_policy, not different, _reward_measures(torch.cat(ranks.all_gather(kept))))


def _equal(old: Tensor, rollout: Tensor) -> bool:
    # A token that the policy did not choose may have no log-prob, and NaN equals nothing.
    return torch.equal(*((x.values() if x.is_nested else x).nan_to_num() for x in (old, rollout)))


def _has_nonfinite(data: TensorDict) -> bool:
    """Whether an advantage of a token that the policy chose is no number."""
    if "advantages" not in data:
        return False
    rows = data.select("advantages", "loss_mask").to_padded_tensor()
    return bool((~rows["advantages"].isfinite() & rows["loss_mask"].bool()).any())


def _any_token(mask: Tensor) -> Tensor:
    return torch.stack([row.sum() > 0 for row in mask.unbind()])


def _oldest_version(data: TensorDict) -> Iterator[int | None]:
    """verl's number of the weights that began each trajectory; None where it is not told."""
    extra = tu.get(data, "extra_fields", default=None)
    for row in range(len(data)):
        told: Any = {} if extra is None else extra[row]
        told = getattr(told, "data", told)
        yield told.get("min_global_steps") if isinstance(told, dict) else None


def _rewards(data: TensorDict) -> Float[Tensor, " batch"]:
    scores = data.get("rm_scores", None)
    if scores is None:
        return torch.full((len(data),), torch.nan)
    rows = scores.unbind() if scores.is_nested else list(scores)
    return torch.stack([row.float().sum() for row in rows]).cpu()


def _groups(data: TensorDict) -> Int64[Tensor, " batch"]:
    """A number for the prompt of each row, on every rank the same: 48 bits of a hash of verl's uid (exact as float)."""
    uids = tu.get(data, "uid", default=None)
    if uids is None:
        return torch.full((len(data),), -1, dtype=torch.int64)
    names = [str(getattr(uids[row], "data", uids[row])) for row in range(len(data))]
    hashes = [hashlib.blake2b(name.encode(), digest_size=6).digest() for name in names]
    return torch.tensor([int.from_bytes(digest, "big") for digest in hashes], dtype=torch.int64)


def _reward_measures(rows: Float[Tensor, "samples 2"]) -> dict[str, float]:
    """Mean reward, mean standard deviation within a group, share of the groups in which all rewards are equal."""
    group, reward = rows[:, 0], rows[:, 1]
    if not len(rows) or reward.isnan().any():
        return {}
    groups = [reward[group == number] for number in group.unique()]
    deviations = torch.stack([values.std() if len(values) > 1 else values.new_zeros(()) for values in groups])
    return {
        "reward": float(reward.mean()),
        "reward_std": float(deviations.mean()),
        "equal_reward_fraction": float((deviations == 0).double().mean()),
    }
