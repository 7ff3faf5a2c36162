"""Models and tokenizers by folder or hub id; every failure is one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.inputs.yaml_text import YamlError, yaml_value
from equipoise.models.folders import ADAPTER, CONFIG, adapter_config, check_model_folder, refuse_code, refuse_gguf
from equipoise.paths import check_path
from equipoise.settings.run import AdapterSettings
from equipoise.tasks.datasets import shortened


def load_model(name: str, *, on_cpu: bool, trust_remote_code: bool = False, **init_kwargs: Any) -> PreTrainedModel:
    """The causal language model of a folder or hub id; float32 on a CPU, else the type it was saved in.

    Raises:
        InputError: naming the folder or id, when there is no such model or it cannot be read.
    """
    init_kwargs.setdefault("dtype", torch.float32 if on_cpu else "auto")
    check_path(name, "model")
    adapter = adapter_config(Path(name))
    base = Path(str(adapter.get("base_model_name_or_path"))) if adapter else Path(name)
    for folder in (Path(name), base) if not trust_remote_code else ():
        refuse_code(folder)
    if (base / CONFIG).is_file():
        check_model_folder(base)
    model, found = _loaded(
        AutoModelForCausalLM, name, trust_remote_code=trust_remote_code, output_loading_info=True, **init_kwargs
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise InputError(f"model {name}: its weights lack {len(missing)} tensors that it needs, as {missing[0]}")
    return model


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
    check_path(name, "model")
    if Path(name).exists() and not (Path(name) / CONFIG).exists() and not _is_adapter(name):
        refuse_gguf(Path(name))
        raise InputError(f"model {name} is no model folder: it has no config.json")
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except Exception as error:  # transformers raises nearly everything for a model that it cannot read
        cause = " ".join(str(error).split())
        raise InputError(f"model {name} cannot be loaded: {type(error).__name__}: {cause[:300]}") from error


def _is_adapter(name: str) -> bool:
    return (Path(name) / ADAPTER).exists()


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
