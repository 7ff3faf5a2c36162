"""A replay buffer: finished groups of earlier policies, drawn again until they are too old."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from equipoise.errors import require
from equipoise.rollouts.records import Group, pack, unpack

SAMPLING = ("uniform", "age", "advantage")


class ReplayBuffer:
    """Groups in the order in which they were stored; the oldest goes first when there is no room.

    Drawing neither removes a group nor depends on anything but what is stored, the policy version and the state of its
    own random generator, so that a run which is interrupted draws what it would have drawn.

    Args:
        capacity: groups, >= 1.
        max_age: a group whose oldest token was sampled more policy versions ago is dropped, >= 1.
        sampling: 'uniform'; 'age', weight 1 / (1 + age); 'advantage', weight mean |A| of the group.
        seed: of the generator.

    Raises:
        ValueError: a setting outside its range, by name.
    """

    def __init__(self, capacity: int, max_age: int, sampling: str = "uniform", *, seed: int = 0):
        for name, value in (("capacity", capacity), ("max_age", max_age)):
            require(name, value, ">= 1", value >= 1)
        if sampling not in SAMPLING:
            raise ValueError(f"sampling must be one of {', '.join(map(repr, SAMPLING))}, got sampling={sampling!r}")
        self.capacity, self.max_age, self.sampling = capacity, max_age, sampling
        self.groups: list[Group] = []
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, groups: list[Group]) -> None:
        """Store the groups that carry a gradient (some advantage is not 0); evicts the oldest beyond the capacity."""
        self.groups += [group for group in groups if group.advantage_magnitude > 0]
        self.groups.sort(key=lambda group: group.policy_version)  # stable: equally old ones stay in order of arrival
        self.groups = self.groups[-self.capacity :]

    def drop_older(self, version: int) -> None:
        """Drop groups that are more than `max_age` versions old for a policy of this version."""
        self.groups = [group for group in self.groups if version - group.policy_version <= self.max_age]

    def draw(self, count: int, version: int) -> list[Group]:
        """Different groups, at random as `sampling` says; drops those too old first.

        Args:
            count: groups to draw.
            version: of the current policy.

        Raises:
            ValueError: fewer than `count` groups are stored.
        """
        self.drop_older(version)
        if count > len(self.groups):
            raise ValueError(f"{count} groups asked for, {len(self.groups)} are stored")
        if count == 0:
            return []
        chosen = torch.multinomial(self._weights(version), count, generator=self._generator)
        return [self.groups[i] for i in chosen.tolist()]

    def _weights(self, version: int) -> Float64[Tensor, " groups"]:
        if self.sampling == "age":
            weights = [1 / (1 + version - group.policy_version) for group in self.groups]
        elif self.sampling == "advantage":
            weights = [group.advantage_magnitude for group in self.groups]
        else:
            weights = [1.0] * len(self.groups)
        return torch.tensor(weights, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {"groups": pack(self.groups), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; capacity and age are those of this buffer.

        Raises:
            ValueError, KeyError, RuntimeError: what was read is not what `state_dict` gave.
        """
        self.groups = unpack(state["groups"])[-self.capacity :]
        self._generator.set_state(state["generator"])
