"""A small model for the calculator, supervised on scripted episodes most of which go wrong, and its tokenizer."""

import os
import random
from pathlib import Path
from typing import Any

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
from equipoise.tasks.environments.calculator import CALL, END_CALL, ERROR, NUM_NUMBERS, scripted_episode

EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN = "<eos>", "<pad>", "<unknown>"
USER, ASSISTANT, TOOL = "<user>", "<assistant>", "<tool>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}<user> {{ message.content }} {% elif message.role == 'tool' -%}
<tool> {{ message.content }} {% elif message.tool_calls -%}
<assistant> {% for call in message.tool_calls -%}
{%- set function = call.function if call.function is defined else call -%}
<call> {% if function.name != 'calculate' %}{{ function.name }} {% endif -%}
{%- for name, value in function.arguments.items() -%}
{% if name != 'expression' %}{{ name }} {% endif %}{{ value }} {% endfor -%}
</call> {% endfor -%}<eos> {% else -%}<assistant> {{ message.content }} <eos> {% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant> {% endif -%}"""

RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open": CALL,
            "close_pattern": rf"{END_CALL}\s*",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "calculate", "arguments": {"expression": "{content}"}},
            },
        },
        "content": {"close_pattern": rf"{EOS_TOKEN}\s*", "content": "text"},
    },
}


def calculator_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with a chat template and the response template by which TRL finds the tool calls."""
    words = [str(n) for n in range(NUM_NUMBERS)] + ["+", "-", "=", USER, ASSISTANT, CALL, END_CALL, TOOL, ERROR]
    words += [EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.response_template = RESPONSE_TEMPLATE  # pyright: ignore[reportAttributeAccessIssue]
    return fast


def warm_start_calculator(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 400,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    progress: bool = True,
) -> Path:
    """The folder of a calculator model trained on fresh scripted episodes: an ordinary model, tokenizer and template.

    Only the model's own turns are learned, as in reinforcement. Nothing that looks finished is left behind by an
    interruption, and the state of every random generator is as before afterwards.

    Args:
        folder: to create; it may exist if it is empty.
        seed: of weights and episodes.
        steps: optimiser steps (AdamW, constant learning rate after 20 steps of warm-up).
        batch_size: episodes per step; none is seen twice.
        learning_rate: after the warm-up.
        progress: show a progress bar on stderr.

    Raises:
        InputError: when the folder exists and is not empty, or is a file.
    """
    folder = new_folder(folder)
    tokenizer = calculator_tokenizer()
    with seeded(seed), folder_at_once(folder) as staging:
        model = small_model(tokenizer)
        episodes = TokenizedEpisodes(steps * batch_size, tokenizer, random.Random(seed))
        train_supervised(model, tokenizer, episodes, staging, seed, steps, batch_size, learning_rate, progress)
    return folder


class TokenizedEpisodes(torch.utils.data.Dataset):
    """Scripted episodes as token ids, padded on the right, with labels on the model's own turns only."""

    def __init__(self, count: int, tokenizer: PreTrainedTokenizerBase, generator: random.Random) -> None:
        rows = [_labelled_words(*scripted_episode(generator)) for _ in range(count)]
        length = max(len(row) for row in rows)
        vocabulary = tokenizer.get_vocab()
        self.input_ids = torch.full((count, length), vocabulary[str(tokenizer.pad_token)])
        self.labels = torch.full((count, length), IGNORED_LABEL)
        for number, row in enumerate(rows):
            ids = torch.tensor([vocabulary[word] for word, _ in row])
            own = torch.tensor([is_own for _, is_own in row])
            self.input_ids[number, : len(row)] = ids
            self.labels[number, : len(row)] = torch.where(own, ids, IGNORED_LABEL)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def _labelled_words(prompt: str, turns: list[list[str]]) -> list[tuple[str, bool]]:
    """The words of an episode as the chat template writes them, and which of them the model says."""
    words = [(word, False) for word in [USER, *prompt.split(), ASSISTANT]]
    for number, turn in enumerate(turns):
        if number % 2 == 0:
            words += [(word, True) for word in [*turn, EOS_TOKEN]]
        else:
            words += [(word, False) for word in [TOOL, *turn, ASSISTANT]]
    return words
