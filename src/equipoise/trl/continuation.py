"""Partial rollouts in TRL's trainer: each process continues its own prompts, all of them round by round together.

Sampling is collective wherever weights are gathered for it (FSDP, ZeRO-3) or several processes share an engine (vLLM's
server, tensor parallelism), and so is the transfer of weights to vLLM. So all processes go through the same number of
rounds, and a process with nothing to continue takes part with a row that is thrown away.
"""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from equipoise.errors import InputError
from equipoise.rollouts import PartialRollouts, Prompt
from equipoise.rollouts.partial import Sampled
from equipoise.trl.ranks import shares_engine

Rows = list[dict[str, Any]]
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Round:
    """What the next round asks of every process: the largest over the processes of each.

    Attributes:
        missing: groups that are not finished yet.
        sequences: trajectories to continue.
        growth: tokens by which one may grow.
    """

    missing: int
    sequences: int
    growth: int


class Continuation:
    """The prompts in flight of one process, and how they go on.

    Args:
        trainer: an `EquipoiseTrainer` with a `rollout_token_budget`.
        group_size: completions per prompt.

    Raises:
        InputError: what the trainer was given does not go with partial rollouts.
    """

    def __init__(self, trainer: Any, group_size: int):
        _check(trainer)
        self.trainer, self.group_size = trainer, group_size
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Nothing in flight.

        Args:
            seed: of the draw of further prompts.
        """
        args = self.trainer.args
        self.prompts = PartialRollouts(
            args.rollout_token_budget, args.max_completion_length, self.trainer.eos_token_ids
        )
        self.extra_rows = torch.Generator().manual_seed(seed)

    def finished(self, rows: Rows, version: int) -> tuple[list[Prompt], dict[str, int]]:
        """As many finished groups as `rows` holds, and what is to be measured of the rounds they took.

        The groups of `rows` begin now, but no more than make two batches in flight (which happens only where replay
        has made the batches smaller). While a process has finished too few, it begins as many more as are missing,
        within the same limit; all unfinished ones go on for another round with the same policy, those of a process
        that has enough as well.

        Args:
            rows: rows of the data set, whole groups.
            version: of the policy.
        """
        needed, rounds, tokens = len(rows) // self.group_size, 0, 0
        self._open(rows[:: self.group_size][: self._room(needed)])
        with self._awake():
            while True:
                missing = needed - self.prompts.num_finished
                if rounds:
                    self._open(self._more_rows(min(missing, self._room(needed))))
                agreed = self._agreed(missing)
                if rounds and agreed.missing <= 0:
                    break
                tokens += self.prompts.advance(functools.partial(self._sample, agreed), version)
                rounds += 1
        finished = self.prompts.take(needed)
        measured = {"rollout_rounds": rounds, "rollout_tokens": tokens, "rollout_carried_over": len(self.prompts)}
        return finished, measured

    def _room(self, needed: int) -> int:
        """Groups that may begin."""
        return max(0, 2 * needed - len(self.prompts))

    def _agreed(self, missing: int) -> Round:
        own = [missing, len(self.prompts.unfinished), self.prompts.growth]
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return Round(*own)
        return Round(*accelerator.gather(torch.tensor([own], device=accelerator.device)).amax(0).tolist())

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _open(self, rows: Rows) -> None:
        if not rows:
            return
        for row in rows:
            _check_plain(row)
        prompt_ids, images, _ = self.trainer._tokenize_prompts([row["prompt"] for row in rows])
        if images is not None:
            raise InputError("rollout_token_budget supports text prompts only, got images in the training data")
        for row, ids in zip(rows, prompt_ids, strict=True):
            self.prompts.open(row, ids, self.group_size)

    def _more_rows(self, count: int) -> Rows:
        """Rows beyond those of the sampler, at random: the lead that lets long completions be carried over."""
        data = self.trainer.train_dataset
        numbers = torch.randint(len(data), (max(count, 0),), generator=self.extra_rows).tolist()
        return [data[number] for number in numbers]

    # ---- sampling -----------------------------------------------------------------------------------------------

    def _sample(self, agreed: Round, sequences: list[list[int]], _growth: int) -> Sampled:
        """Continue this process's sequences, by as much as the longest of all; every call fills its KV cache anew."""
        idle = self._rows_asked(agreed) - len(sequences)
        sequences = sequences + [[self.trainer._tokenizer.pad_token_id]] * idle
        if not sequences:
            return [], []
        with self._limited(agreed.growth):
            # every sequence is a prompt of its own here: they have grown apart
            ids, logprobs = self.trainer._generate_single_turn(sequences, None, {}, 1)
        own = len(sequences) - idle
        return ids[:own], None if logprobs is None else logprobs[:own]

    def _rows_asked(self, agreed: Round) -> int:
        """Rows with which this process takes part at least."""
        trainer = self.trainer
        if trainer.accelerator.num_processes == 1 or not agreed.sequences:
            return 0
        # TRL cuts what a shared engine answers into slices of one size.
        return agreed.sequences if shares_engine(trainer) else 1

    @contextmanager
    def _limited(self, most: int) -> Iterator[None]:
        """Within the block, completions have at most so many tokens."""
        trainer = self.trainer
        if trainer.use_vllm:
            holder, name = trainer.vllm_generation, "max_completion_length"
        else:
            holder, name = trainer.generation_config, "max_new_tokens"
        before = getattr(holder, name)
        setattr(holder, name, most)
        try:
            yield
        finally:
            setattr(holder, name, before)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Within the block, an engine with sleep mode stays awake, or it would be sent the weights in every round."""
        trainer = self.trainer
        engine = trainer.vllm_generation if trainer.use_vllm else None
        if engine is None or trainer.vllm_mode != "colocate" or not engine.enable_sleep_mode:
            yield
            return
        engine.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
        engine.llm.wake_up(tags=["kv_cache"])
        engine.enable_sleep_mode = False
        try:
            yield
        finally:
            engine.enable_sleep_mode = True
            engine.llm.sleep(level=2)
            engine._llm_weights_sleeping = True


def _check(trainer: Any) -> None:
    refused = {
        "a rollout_func": trainer.rollout_func is not None,
        "tools or environments": bool(trainer.tools) or trainer.environment_factories is not None,
        "a streamed (iterable) data set": not hasattr(trainer.train_dataset, "__len__"),
    }
    for what, present in refused.items():
        if present:
            raise InputError(f"rollout_token_budget does not go with {what}; leave one of them out")


def _check_plain(row: Mapping[str, Any]) -> None:
    """A row waits in the checkpoint while its completions are in flight: it must be plain data."""
    for column, value in row.items():
        if not _is_plain(value):
            raise InputError(
                f"rollout_token_budget: column {column!r} of the training data holds {type(value).__name__}; only "
                f"text, numbers, and lists and dicts of them can wait in a checkpoint"
            )


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if type(value) is list else type(value) in PLAIN
