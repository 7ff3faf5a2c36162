"""Models with the shapes of Qwen2.5 and random weights, a tokenizer of as many words, and fixed rollouts."""

import random
from typing import Any, NamedTuple

import torch


class Shape(NamedTuple):
    """A Qwen2 and the sequences of an update."""

    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int
    vocabulary: int = 151_936
    sequences: int = 16
    prompt: int = 128
    completion: int = 512
    counted_rollouts: int = 1


SHAPES = {
    "0.5b": Shape(24, 896, 4864, 14, 2, counted_rollouts=2),
    "1.5b": Shape(28, 1536, 8960, 12, 2),
}
SMALL = Shape(2, 32, 64, 4, 2, vocabulary=512, sequences=8, prompt=4, completion=8)


def shape_of(plan) -> Shape:
    return SMALL if plan.small else SHAPES[plan.model]


def model(shape: Shape, device: str, seed: int = 0) -> Any:
    """Made on the device, where a billion draws take a moment; bf16 on a GPU, as the hub has these models."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    dtype, before = torch.bfloat16 if device == "cuda" else torch.float32, torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    made.config.dtype = dtype
    return made


def tokenizer(shape: Shape) -> Any:
    """A word per entry: text of any ids is decoded, and read again as those ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, shape.vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left",
        model_max_length=shape.prompt + shape.completion,
    )  # fmt: skip


def prompts(shape: Shape, count: int) -> Any:
    """Prompts of the shape's length."""
    from datasets import Dataset

    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(2, shape.vocabulary)}" for _ in range(shape.prompt)) for _ in range(count)]
    return Dataset.from_dict({"prompt": texts})


def completions(shape: Shape, count: int, number: int) -> list[list[int]]:
    """The completions of a rollout batch: the same for every trainer; half of them end early."""
    draw, made = random.Random(1000 + number), []
    for row in range(count):
        length = shape.completion if row % 2 else draw.randint(shape.completion // 2, shape.completion - 1)
        ids = [draw.randrange(2, shape.vocabulary) for _ in range(length)]
        made.append(ids if length == shape.completion else [*ids, 1])
    return made


def reward(completions, completion_ids, **columns) -> list[float]:
    """Differs within every group, and is the same for all trainers."""
    return [random.Random(sum(ids)).random() for ids in completion_ids]
