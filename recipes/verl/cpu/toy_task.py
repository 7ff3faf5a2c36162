"""A task that a tiny model learns in a few steps: a model of some 30,000 parameters, prompts and a reward.

The model is a Qwen2 of two layers with random weights from a fixed seed, its tokens are single characters. The reward
of an answer is its share of digits. At first about one character in four is a digit.
"""

import random
from pathlib import Path

import pandas
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

DIGITS = "0123456789"
ALPHABET = DIGITS + "abcdefghijklmnopqrstuvwxyz \n"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'][:1] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
"""verl looks for `<|im_end|>` and a newline of one token each where a model is a Qwen2."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character of `ALPHABET`, and three special ones; `<|im_end|>` ends an answer."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    characters = ALPHABET.translate({ord(" "): "Ġ", ord("\n"): "Ċ"})  # as byte-level tokenizers write them
    fast = Tokenizer(models.BPE({token: number for number, token in enumerate([*special, *characters])}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def write_model(folder: Path, seed: int = 0) -> Path:
    """A folder with the model, float32, and its tokenizer."""
    words = tokenizer()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            bos_token_id=None,
            # Far from uniform, so that entropies and polarities differ between tokens.
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_prompts(file: Path, count: int = 64, seed: int = 0) -> Path:
    """Prompts of three to five letters, as verl reads them from Parquet."""
    draw = random.Random(seed)
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": "".join(draw.choices(ALPHABET[10:36], k=draw.randint(3, 5)))}],
            "reward_model": {"style": "rule", "ground_truth": "digits"},
            "extra_info": {"index": index},
        }
        for index in range(count)
    ]
    pandas.DataFrame(rows).to_parquet(file)
    return file


def digit_share(data_source, solution_str, ground_truth, extra_info=None, **more) -> float:
    """The reward, in [0, 1]: the share of an answer's characters that are digits; 0 where there are none."""
    return sum(character in DIGITS for character in solution_str) / max(len(solution_str), 1)
