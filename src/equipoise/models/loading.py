"""Models and tokenizers by folder or hub id, and prompts as their tokens; every failure is one line."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.settings.run import AdapterSettings
from equipoise.tasks.datasets import one_line, shortened


def load_model(name: str, *, on_cpu: bool, trust_remote_code: bool = False, **init_kwargs: Any) -> PreTrainedModel:
    """The causal language model of a folder or hub id; float32 on a CPU, else the type it was saved in.

    Raises:
        InputError: naming the folder or id, when there is no such model or it cannot be read.
    """
    init_kwargs.setdefault("dtype", torch.float32 if on_cpu else "auto")
    return _loaded(AutoModelForCausalLM, name, trust_remote_code=trust_remote_code, **init_kwargs)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left as generation needs it.

    Raises:
        InputError: as `load_model`, or a tokenizer without an end-of-sequence token.
    """
    tokenizer = _loaded(AutoTokenizer, name, trust_remote_code=trust_remote_code, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {name}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def lora_config(settings: AdapterSettings) -> Any:
    """The adapter that `use_peft` trains, as peft's configuration.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("use_peft needs the package peft: pip install 'equipoise[peft]'") from error
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
    )


def _loaded(auto_class: Any, name: str, **kwargs: Any) -> Any:
    if Path(name).exists() and not (Path(name) / "config.json").exists() and not _is_adapter(name):
        raise InputError(f"model {name} is no model folder: it has no config.json")
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except Exception as error:  # transformers raises nearly everything for a model that it cannot read
        cause = " ".join(str(error).split())
        raise InputError(f"model {name} cannot be loaded: {type(error).__name__}: {cause[:300]}") from error


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").exists()


def encoded_prompt(tokenizer: Any, prompt: str | list, row: int) -> list[int]:
    """Token ids of a prompt: text as it is, chat messages through the chat template.

    Raises:
        InputError: naming the row, for chat messages without a template and for text the tokenizer cannot encode.
    """
    if not isinstance(prompt, str) and getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"row {row}: the prompt is a list of chat messages, but the tokenizer has no chat template")
    try:
        if isinstance(prompt, str):
            return list(tokenizer(prompt)["input_ids"])
        encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(encoded["input_ids"])
    except Exception as error:  # tokenizers and templates raise plain exceptions
        raise InputError(f"row {row}: the prompt {shortened(prompt)} cannot be encoded ({one_line(error)})") from error


def check_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Refuse, before training, prompts that the model's tokenizer cannot encode (the first 10,000 are tried)."""
    for row, prompt in enumerate(dataset.select(range(min(len(dataset), 10_000)))["prompt"], start=1):
        try:
            encoded_prompt(tokenizer, prompt, row)
        except InputError as error:
            raise InputError(f"model {model}, {error}") from error
