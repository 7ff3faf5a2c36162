"""A small model for the number ladder: a Llama of 66,000 parameters, supervised on random walks, and its tokenizer.

It knows the rules of the ladder and follows no goal: its walks are mostly legal, few end on the target. That is where
reinforcement starts. Nothing is loaded from a network.
"""

import os
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from equipoise.files import folder_at_once
from equipoise.models.randomness import seeded
from equipoise.models.warm_starts.supervised import (
    IGNORED_LABEL,
    new_folder,
    small_model,
    train_supervised,
)
from equipoise.tasks.ladder import MAX_COMPLETION_LENGTH, NUM_NUMBERS, OPERATIONS, SEPARATOR, random_walk_texts

EOS_TOKEN, PAD_TOKEN = "<eos>", "<pad>"


def ladder_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token per word: 50 numbers, 5 operations, "=", end of sequence and padding (58 tokens).

    There is no unknown token: text with any other word raises an exception when it is encoded. Decoding gives back the
    words separated by single spaces.
    """
    words = [*map(str, range(NUM_NUMBERS)), *OPERATIONS, SEPARATOR, EOS_TOKEN, PAD_TOKEN]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown word>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="left",
        model_max_length=3 + MAX_COMPLETION_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def warm_start_ladder(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 320,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    progress: bool = True,
) -> Path:
    """The folder of a ladder model trained on fresh random walks: an ordinary Hugging Face model and tokenizer.

    The model is written beside `folder` first and renamed at the end, so that an interruption leaves nothing behind
    that looks finished. The state of every random generator is as before afterwards.

    Args:
        folder: to create; it may exist if it is empty.
        seed: of weights and walks; the same seed gives the same weights on the same machine.
        steps: optimiser steps (AdamW, constant learning rate after 20 steps of warm-up).
        batch_size: walks per step; no walk is seen twice.
        learning_rate: after the warm-up.
        progress: show a progress bar on stderr.

    Returns:
        The folder.

    Raises:
        InputError: when the folder exists and is not empty, or is a file.
    """
    folder = new_folder(folder)
    tokenizer = ladder_tokenizer()
    with seeded(seed), folder_at_once(folder) as staging:
        model = small_model(tokenizer)
        walks = _TokenizedWalks(steps * batch_size, tokenizer, np.random.default_rng(seed))
        train_supervised(model, tokenizer, walks, staging, seed, steps, batch_size, learning_rate, progress)
    return folder


class _TokenizedWalks(torch.utils.data.Dataset):
    """Random walks as token ids, padded on the right, with labels on the response and its end of sequence only.

    There is no attention mask: attention is causal, so that no token ever sees the padding behind it.
    """

    def __init__(self, count: int, tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator) -> None:
        prompts, responses = zip(*random_walk_texts(count, generator), strict=True)
        eos = tokenizer.eos_token
        encoded = tokenizer(
            [f"{prompt} {response} {eos}" for prompt, response in zip(prompts, responses, strict=True)],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        prompt_length = len(tokenizer(prompts[0])["input_ids"])
        self.input_ids = encoded["input_ids"]
        self.labels = self.input_ids.masked_fill(encoded["attention_mask"] == 0, IGNORED_LABEL)
        self.labels[:, :prompt_length] = IGNORED_LABEL

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}
