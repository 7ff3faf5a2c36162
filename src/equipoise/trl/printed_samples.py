"""A few samples of the rollout batch in use, on stdout every N updates: what the policy is asked, and what it says."""

import math
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback

from equipoise.diagnostics.previews import answer_of, beginning, ending, question_of

NUM_PRINTED = 3
"""Samples at a time, of as many prompts where there are so many."""

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 200, 400


class Printed(NamedTuple):
    """One sample: texts on one line each, the reward, NaN where it is not known."""

    prompt: str
    completion: str
    reward: float


class PrintedSamples(TrainerCallback):
    """Keeps the first samples of a rollout batch, and prints them after every N-th update, on the main process alone.

    It draws no random number: training goes on as without it.

    Args:
        every: updates between prints, >= 1.
        tokenizer: of the policy.
        group_size: completions per prompt.
    """

    def __init__(self, every: int, tokenizer: PreTrainedTokenizerBase, group_size: int) -> None:
        self.every, self.tokenizer, self.group_size = every, tokenizer, group_size
        self.samples: list[Printed] = []

    def observe(self, batch: dict[str, Any], rewards: Tensor, weights: Tensor) -> None:
        """Take in a rollout batch.

        Args:
            batch: what TRL made of the prompts of this process, the main one.
            rewards: of every reward function [scored samples of all ranks, functions]; NaN where one does not apply.
                Those of this process are first; a replayed sample, behind them, is not printed.
            weights: of the functions.
        """
        total = (rewards * weights.to(rewards.device)).nansum(dim=1)
        total = total.where(~rewards.isnan().all(dim=1), math.nan).tolist()
        count = min(len(batch["completion_ids"]), len(total))
        rows = range(0, count, max(1, min(self.group_size, count // NUM_PRINTED)))[:NUM_PRINTED]
        self.samples = [
            Printed(
                ending(_printable(question_of(self._text(batch, "prompt", row))), PROMPT_CHARACTERS),
                beginning(_printable(answer_of([self._text(batch, "completion", row)])), COMPLETION_CHARACTERS),
                total[row],
            )
            for row in rows
        ]

    def on_step_end(self, args, state, control, **kwargs):
        """Print what was kept, through the bars that are drawn."""
        if state.is_world_process_zero and self.samples and state.global_step % self.every == 0:
            tqdm.write(printed_text(state.global_step, self.samples))

    def _text(self, batch: dict[str, Any], name: str, row: int) -> str:
        ids = batch[f"{name}_ids"][row][batch[f"{name}_mask"][row].bool()].tolist()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def printed_text(update: int, samples: list[Printed]) -> str:
    """Lines for a terminal."""
    lines = [f"samples of the rollout batch of update {update}:"]
    for sample in samples:
        lines += [f"  reward {sample.reward:.3g}", f"    prompt      {sample.prompt}",
                  f"    completion  {sample.completion or '(empty)'}"]  # fmt: skip
    return "\n".join(lines)


def _printable(text: str) -> str:
    """A model may write what a terminal obeys."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
