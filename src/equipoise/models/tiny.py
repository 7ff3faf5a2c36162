"""A tiny random model with the architecture of a large one: the same code runs, on a CPU, in seconds."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from equipoise.models.architectures import architecture
from equipoise.models.warm_starts import calculator_tokenizer, ladder_tokenizer
from equipoise.models.warm_starts.supervised import quiet
from equipoise.tasks.terms import parsed_terms

MAX_MODEL_LENGTH = 2048


def tiny_model(name: str, task: str | None, folder: Path, *, seed: int = 0) -> str:
    """Write the tiny form of a model and a tokenizer for a task in a folder; returns what it is, in words.

    Args:
        name: folder or hub id of the large model, of which its shape alone is read.
        task: as `named_task` takes it.
        folder: new.
        seed: of the weights; the state of torch's generator is as before afterwards.

    Raises:
        InputError: a model whose shape is not known.
    """
    original, tokenizer = architecture(name), tokenizer_for(task)
    config = tiny_config(original, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers of {original.num_hidden_layers}, hidden "
        f"{config.hidden_size} of {original.hidden_size}, heads {config.num_attention_heads} / "
        f"{config.num_key_value_heads}, random, {sum(p.numel() for p in model.parameters()):,} parameters"
    )


def tiny_config(original: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A configuration of the same type with two narrow layers, as many query heads per key-value head, equally tied.

    Args:
        original: transformers configuration of the model.
        tokenizer: whose vocabulary the tiny model has.
    """
    heads = original.num_attention_heads
    kv_heads = getattr(original, "num_key_value_heads", None) or heads
    few = (heads // kv_heads, 1) if kv_heads < heads else (2, 2)
    head_dim = 8
    values = copy.deepcopy(original.to_dict())
    values |= {
        "num_attention_heads": few[0],
        "num_key_value_heads": few[1],
        "hidden_size": few[0] * head_dim,
        "intermediate_size": 2 * few[0] * head_dim,
        "num_hidden_layers": 2,
        "max_position_embeddings": min(original.max_position_embeddings, MAX_MODEL_LENGTH),
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "dtype": "float32",
        "initializer_range": 0.1,
    }
    if getattr(original, "head_dim", None):
        values["head_dim"] = head_dim
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:2]
    if "max_window_layers" in values:
        values["max_window_layers"] = 2
    return AutoConfig.for_model(values.pop("model_type"), **values)


CHAT_TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def tokenizer_for(task: str | None) -> PreTrainedTokenizerBase:
    """The task's own tokenizer where it has one, else one token per byte, with a chat template where prompts are chats.

    One token per byte with the alphabet of byte-level BPE: transformers builds the tokenizer of a Qwen2 folder in that
    form whatever the folder says.
    """
    names = [] if task is None else [term.name for term in parsed_terms(task, "task")]
    if "calculator" in names:
        return calculator_tokenizer()
    if "ladder" in names:
        return ladder_tokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(alphabet + special)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
