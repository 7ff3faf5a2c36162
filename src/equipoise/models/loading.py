"""Models and tokenizers by folder or hub id, and prompts as their tokens; every failure is one line."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.inputs.yaml_text import YamlError, yaml_value
from equipoise.settings.run import AdapterSettings
from equipoise.tasks.datasets import one_line, shortened

Result = TypeVar("Result")


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


def template_settings(value: Any, key: str = "chat_template_kwargs") -> dict[str, Any]:
    """What a chat template is told beside the messages, such as enable_thinking; from a mapping, or YAML or JSON text.

    Args:
        value: as a run's settings or a flag give it; None: nothing.
        key: what to call it in messages.

    Raises:
        InputError: text that is no mapping.
    """
    try:
        read = yaml_value(value) if isinstance(value, str) else value
    except YamlError as error:
        raise InputError(f"{key} cannot be read, got {shortened(value)} ({error.problem})") from error
    if read is not None and not (isinstance(read, Mapping) and all(isinstance(name, str) for name in read)):
        raise InputError(f'{key} must be a mapping such as {{"enable_thinking": false}}, got {shortened(value)}')
    return dict(read or {})


def encoded_prompt(
    tokenizer: Any, prompt: str | list, row: int, template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a prompt, as training forms it: text as it is, chat messages through the chat template.

    Args:
        tokenizer: of the model.
        prompt: text or chat messages.
        row: for messages, from 1.
        template_kwargs: what the template is told beside the messages, as `chat_template_kwargs` of a run.

    Raises:
        InputError: naming the row, for chat messages without a template, for text the tokenizer cannot encode, and for
            a message that the template leaves out: its role is one that the template does not know.
    """
    if isinstance(prompt, str):
        return _encoded(lambda: list(tokenizer(prompt)["input_ids"]), prompt, row)
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"row {row}: the prompt is a list of chat messages, but the tokenizer has no chat template")
    apply = functools.partial(tokenizer.apply_chat_template, add_generation_prompt=True, **template_kwargs or {})
    left_out = _encoded(lambda: _left_out(functools.partial(apply, tokenize=False), prompt), prompt, row)
    if left_out is not None:
        raise InputError(
            f"row {row}: the chat template leaves out the message of the role {left_out.get('role')!r}, got"
            f" {shortened(left_out.get('content'))}; use a role that it knows, such as 'user'"
        )
    return _encoded(lambda: list(apply(prompt, tokenize=True, return_dict=True)["input_ids"]), prompt, row)


def _encoded(encode: Callable[[], Result], prompt: str | list, row: int) -> Result:
    try:
        return encode()
    except Exception as error:  # tokenizers and templates raise plain exceptions
        raise InputError(f"row {row}: the prompt {shortened(prompt)} cannot be encoded ({one_line(error)})") from error


def _left_out(render: Callable[[list], str], messages: list) -> dict | None:
    """The first message whose content changes nothing of what the template makes of all; None when all count.

    Templates trim and rewrite content, so that looking for it in the result would not do.
    """
    whole = render(messages)
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) and content.strip():
            other: Any = content + "\n#other#"
        elif isinstance(content, list) and content:
            other = [*content, {"type": "text", "text": "#other#"}]
        else:
            continue
        if render([*messages[:index], {**message, "content": other}, *messages[index + 1 :]]) == whole:
            return message
    return None


def check_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: str, template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Refuse, before training, prompts that `encoded_prompt` refuses for the model (the first 10,000 are tried)."""
    for row, prompt in enumerate(dataset.select(range(min(len(dataset), 10_000)))["prompt"], start=1):
        try:
            encoded_prompt(tokenizer, prompt, row, template_kwargs)
        except InputError as error:
            raise InputError(f"model {model}, {error}") from error
