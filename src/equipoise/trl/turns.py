"""Episodes on several processes, some of which have turns to generate when others have none left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from equipoise.models.randomness import seeded
from equipoise.trl.ranks import is_sharded, shares_engine


class Turns:
    """Lets every process generate in every turn that one of them still has, where none can generate alone.

    That is so when the model is sharded, and with vLLM where one engine serves several processes. TRL's loop ends on
    each process with its own last call: the others would wait for it for ever.

    Args:
        trainer: whose episodes they are.
    """

    def __init__(self, trainer: Any) -> None:
        self.accelerator = trainer.accelerator
        self.equal_numbers = shares_engine(trainer)
        self.in_step = self.accelerator.num_processes > 1 and (self.equal_numbers or is_sharded(self.accelerator))
        self._looping = False

    @contextmanager
    def loop(self, sample: Callable[..., Any], spare: list[int]) -> Iterator[None]:
        """Around TRL's loop of turns; at its end this process takes part in the turns of the others.

        Args:
            sample: TRL's generation of one turn.
            spare: a prompt to generate from where there is none; what comes of it is thrown away.
        """
        if not self.in_step:
            yield
            return
        self._looping = True
        try:
            yield
        finally:
            self._looping = False
        while most := self._most(0):
            with seeded(0):  # the samples of this process are those that it would draw alone
                sample([spare] * (most if self.equal_numbers else 1), None, {}, num_generations=1)

    def sample(self, sample: Callable[..., Any], prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """A turn of this process, at the same time as those of the others."""
        if not self._looping:
            return sample(prompt_ids, *args, **kwargs)
        own, most = len(prompt_ids), self._most(len(prompt_ids))
        if self.equal_numbers:
            prompt_ids = prompt_ids + [prompt_ids[0]] * (most - own)
        completion_ids, logprobs = sample(prompt_ids, *args, **kwargs)
        return completion_ids[:own], logprobs if logprobs is None else logprobs[:own]

    def _most(self, own: int) -> int:
        """The largest number of episodes that a process has in this turn."""
        count = torch.tensor([own], device=self.accelerator.device)
        return int(self.accelerator.gather(count).max())
