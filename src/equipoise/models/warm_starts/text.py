"""A small model for a task of short texts, supervised for a while on the task's own prompts and answers.

Too short to master the task: what it can do now and then is what reinforcement has to find and strengthen.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from equipoise.errors import InputError
from equipoise.files import folder_at_once
from equipoise.models.randomness import seeded
from equipoise.models.warm_starts.supervised import (
    IGNORED_LABEL,
    new_folder,
    small_model,
    train_supervised,
)
from equipoise.tasks.task import Task

PAD, EOS = "<pad>", "<eos>"
LONGEST_TEXT = 256
"""Characters of a prompt with its answer: a small model of characters on a CPU is for short texts."""


def warm_start_text(
    task: Task,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 400,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    progress: bool = True,
) -> Path:
    """The folder of a model of characters trained on training prompts and answers, or the right completions of a task.

    Args:
        task: its training data have text prompts and answers; its held-out data are not seen, but for their characters.
        folder: to create; it may exist if it is empty.
        seed: of weights and order; the same seed gives the same weights on the same machine.
        steps: optimiser steps (AdamW, constant learning rate after 20 steps of warm-up).
        batch_size: texts per step.
        learning_rate: after the warm-up.
        progress: show a progress bar on stderr.

    Returns:
        The folder: an ordinary Hugging Face model and tokenizer.

    Raises:
        InputError: a folder that is not empty, data without text prompts and answers, or texts that are too long.
    """
    folder = new_folder(folder)
    pairs = _pairs(task)
    tokenizer = _character_tokenizer(task, [answer for _, answer in pairs])
    with seeded(seed), folder_at_once(folder) as staging:
        model = small_model(tokenizer, max_positions=LONGEST_TEXT + 1)
        texts = _TokenizedPairs(pairs, tokenizer, steps * batch_size, np.random.default_rng(seed))
        train_supervised(model, tokenizer, texts, staging, seed, steps, batch_size, learning_rate, progress)
    return folder


def _pairs(task: Task) -> list[tuple[str, str]]:
    columns = task.train.column_names
    if "prompt" not in columns or "answer" not in columns or not isinstance(task.train[0]["prompt"], str):
        raise InputError(f"a warm start needs text prompts and answers, task {task.name} has {', '.join(columns)}")
    answers = map(str, task.train["answer"]) if task.right_completions is None else task.right_completions(task.train)
    pairs = list(zip(task.train["prompt"], answers, strict=True))
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    if longest > LONGEST_TEXT:
        raise InputError(
            f"a warm start is for texts of at most {LONGEST_TEXT} characters, task {task.name} has one of {longest}"
        )
    return pairs


def _character_tokenizer(task: Task, answers: list[str]) -> PreTrainedTokenizerBase:
    """One token per character that occurs in the task, held-out prompts included, so that each can be encoded."""
    texts = [text for data in (task.train, task.held_out) if data is not None for text in data["prompt"]]
    texts += answers
    characters = sorted(set().union(*texts))
    vocabulary = {PAD: 0, EOS: 1} | {character: number for number, character in enumerate(characters, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class _TokenizedPairs(torch.utils.data.Dataset):
    """Pairs drawn with replacement, as token ids padded on the right, with labels on the answer and its end only."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        count: int,
        generator: np.random.Generator,
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        length = max(len(prompt) + len(answer) for prompt, answer in pairs) + 1
        self.input_ids = torch.full((len(pairs), length), vocabulary[PAD])
        self.labels = torch.full((len(pairs), length), IGNORED_LABEL)
        for row, (prompt, answer) in enumerate(pairs):
            ids = torch.tensor([vocabulary[character] for character in prompt + answer] + [vocabulary[EOS]])
            self.input_ids[row, : len(ids)] = ids
            self.labels[row, len(prompt) : len(ids)] = ids[len(prompt) :]
        self.rows = generator.integers(len(pairs), size=count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        return {"input_ids": self.input_ids[row], "labels": self.labels[row]}
