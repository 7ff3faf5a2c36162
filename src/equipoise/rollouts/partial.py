"""Partial rollouts: trajectories that go on from batch to batch, each segment sampled by the policy of its time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from equipoise.errors import require
from equipoise.rollouts.records import check_logprobs


@dataclass
class Trajectory:
    """A completion so far, token by token; `finished` once the policy ended it or it has its full length."""

    completion_ids: list[int] = field(default_factory=list)
    behavior_logprob: list[float] = field(default_factory=list)
    policy_version: list[int] = field(default_factory=list)
    finished: bool = False

    def __post_init__(self) -> None:
        if not len(self.completion_ids) == len(self.behavior_logprob) == len(self.policy_version):
            raise ValueError("a trajectory needs one behaviour log-prob and one policy version per token")

    def extend(self, ids: Sequence[int], logprobs: Sequence[float | None] | None, version: int) -> None:
        """Add a segment.

        Args:
            ids: sampled tokens.
            logprobs: log-prob of each under the policy that sampled it, nats.
            version: of that policy.

        Raises:
            ValueError: log-probs missing, not finite or above 0, or not one per token.
        """
        if logprobs is None or len(logprobs) != len(ids) or None in logprobs:
            raise ValueError("a sampled segment needs one behaviour log-prob per token; the sampler gave none for some")
        values = torch.tensor(logprobs, dtype=torch.float32)
        check_logprobs(values)
        self.completion_ids += ids
        self.behavior_logprob += values.tolist()
        self.policy_version += [version] * len(ids)


@dataclass
class Prompt:
    """One prompt in flight: the row of the data set that it came from and is scored with, and its trajectories."""

    row: dict[str, Any]
    prompt_ids: list[int]
    trajectories: list[Trajectory]

    @property
    def finished(self) -> bool:
        """Whether the whole group is: only then are there advantages."""
        return all(trajectory.finished for trajectory in self.trajectories)


Sampled = tuple[list[list[int]], list[list[float | None]] | list[list[float]] | None]
"""New tokens of every sequence, and the log-prob of each under the policy that sampled it; None where there is none."""

Generate = Callable[[list[list[int]], int], Sampled]
"""(sequences to continue, most new tokens) -> what was sampled, in the same order; of no sequences, nothing."""


class PartialRollouts:
    """Prompts in flight. In a round every unfinished trajectory goes on by at most `budget` tokens.

    Args:
        budget: tokens per trajectory and round, >= 1.
        max_length: longest completion, tokens, >= 1.
        eos_ids: tokens that end a completion.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, budget: int, max_length: int, eos_ids: Sequence[int]):
        for name, value in (("budget", budget), ("max_length", max_length)):
            require(name, value, ">= 1", value >= 1)
        self.budget, self.max_length, self.eos_ids = budget, max_length, frozenset(eos_ids)
        self.prompts: list[Prompt] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def open(self, row: Mapping[str, Any], prompt_ids: Sequence[int], group_size: int) -> None:
        """Begin a group."""
        self.prompts.append(Prompt(dict(row), list(prompt_ids), [Trajectory() for _ in range(group_size)]))

    @property
    def unfinished(self) -> list[tuple[Prompt, Trajectory]]:
        """Trajectories that go on, with their prompts."""
        return [(p, t) for p in self.prompts for t in p.trajectories if not t.finished]

    @property
    def growth(self) -> int:
        """Tokens by which the trajectory that has most before it grows in the next round; 0 when all are finished."""
        left = [self.max_length - len(trajectory.completion_ids) for _, trajectory in self.unfinished]
        return min(self.budget, max(left, default=0))

    @property
    def num_finished(self) -> int:
        """Groups that are finished and not taken yet."""
        return sum(prompt.finished for prompt in self.prompts)

    def advance(self, generate: Generate, version: int) -> int:
        """One round: continue every unfinished trajectory, from its prompt and all its segments; returns the tokens.

        `generate` is called when nothing is unfinished as well, with no sequences: what other processes continue may
        need this one.

        Raises:
            ValueError: the sampler gave no log-probs. What it sampled is not kept; the trajectories are as before.
        """
        open_ones = self.unfinished
        left = [self.max_length - len(trajectory.completion_ids) for _, trajectory in open_ones]
        ids, logprobs = generate([p.prompt_ids + t.completion_ids for p, t in open_ones], self.growth)
        segments = [Trajectory() for _ in open_ones]
        for i, segment in enumerate(segments):  # all are checked before the first is kept
            kept = left[i]  # tokens beyond the full length do not change those before them
            segment.extend(ids[i][:kept], None if logprobs is None else logprobs[i][:kept], version)
        for (_, trajectory), segment in zip(open_ones, segments, strict=True):
            trajectory.extend(segment.completion_ids, segment.behavior_logprob, version)
            ended = bool(segment.completion_ids) and segment.completion_ids[-1] in self.eos_ids
            trajectory.finished = ended or len(trajectory.completion_ids) >= self.max_length
        return sum(len(segment.completion_ids) for segment in segments)

    def take(self, count: int) -> list[Prompt]:
        """Finished groups, in the order in which they were begun; they are no longer in flight.

        Raises:
            ValueError: fewer are finished.
        """
        finished = [prompt for prompt in self.prompts if prompt.finished][:count]
        if len(finished) < count:
            raise ValueError(f"{count} finished groups asked for, {len(finished)} are finished")
        taken = {id(prompt) for prompt in finished}
        self.prompts = [prompt for prompt in self.prompts if id(prompt) not in taken]
        return finished

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [asdict(prompt) for prompt in self.prompts]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError, KeyError, TypeError: what was read is not what `state_dict` gave.
        """
        prompts = []
        for item in state:
            trajectories = [Trajectory(**trajectory) for trajectory in item["trajectories"]]
            for trajectory in trajectories:
                check_logprobs(torch.tensor(trajectory.behavior_logprob, dtype=torch.float32))
            prompts.append(Prompt(dict(item["row"]), list(item["prompt_ids"]), trajectories))
        self.prompts = prompts


def version_rows(prompts: Sequence[Prompt], width: int) -> Int64[Tensor, "samples {width}"]:
    """Policy version of every token of finished groups, padded on the right with -1."""
    rows = [trajectory.policy_version for prompt in prompts for trajectory in prompt.trajectories]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)
