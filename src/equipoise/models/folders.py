"""Whether a model folder is whole, before anything is allocated after what it says: sizes, files, tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from equipoise.diagnostics.trust import kernels_of_hub
from equipoise.errors import InputError, shortened
from equipoise.inputs.json_text import json_object
from equipoise.tasks.datasets import one_line

CONFIG, INDEX, ADAPTER = "config.json", "model.safetensors.index.json", "adapter_config.json"
SIZES = {
    "vocab_size": 2**31, "hidden_size": 2**31, "intermediate_size": 2**31, "num_hidden_layers": 2**12,
    "num_attention_heads": 2**20, "num_key_value_heads": 2**20, "head_dim": 2**20, "max_position_embeddings": 2**36,
}  # fmt: skip
"""Whole numbers of a configuration, and what is beyond any model."""

PACKED = 16
"""Weights of a few bits are stored several to an element."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose configuration cannot be that of its weights, or whose weights are not whole.

    Weights in other forms than safetensors are left to transformers, as are adapters.

    Args:
        folder: holds config.json.

    Raises:
        InputError: naming the file, with the rule that it breaks.
    """
    config = checked_config(folder / CONFIG)
    files = _weight_files(folder)
    if not files:
        return
    shapes = {name: shape for file in files for name, shape in _shapes(file)}
    elements = sum(math.prod(shape) for shape in shapes.values())
    _check_against_weights(folder, config, len(shapes), elements)


def checked_config(path: Path) -> dict[str, Any]:
    """What a config.json says.

    Raises:
        InputError: naming it, when it is no JSON object, or a size is no whole number that a model can have.
    """
    config = json_object(path, "model file")
    for part in (config, config.get("text_config")):
        sizes = part if isinstance(part, dict) else {}
        for name, most in SIZES.items():
            value = sizes.get(name)
            if value is not None and (type(value) is not int or not 1 <= value < most):
                raise InputError(
                    f"model file {path}: {name} must be a whole number >= 1 and < {most}, got {shortened(value)}"
                )
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; none where its weights are of another form.

    Raises:
        InputError: no weights, or a file of the index that is missing.
    """
    if (folder / INDEX).is_file():
        index = json_object(folder / INDEX, "model file").get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise InputError(f"model file {folder / INDEX}: weight_map must name a file for each tensor")
        files = [folder / name for name in sorted(set(index.values()))]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise InputError(f"model {folder} is not whole: {len(missing)} of its files are missing, as {missing[0]}")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    names = {file.suffix for file in folder.iterdir() if file.is_file()}
    if names & {".safetensors", ".bin", ".h5", ".msgpack"}:
        return []
    if ".gguf" in names:
        refuse_gguf(folder)
    raise InputError(f"model {folder} has no weights: no model.safetensors, and no {INDEX}")


def refuse_code(folder: Path) -> None:
    """Refuse a model or adapter folder whose configuration lets a library import something.

    Code in the folder itself transformers refuses; this is about kernels of the hub, and Megatron, which peft imports.

    Raises:
        InputError: naming the file and the key.
    """
    kernels = kernels_of_hub(json_object(folder / CONFIG, "model file")) if (folder / CONFIG).is_file() else []
    if kernels:
        raise InputError(
            f"model file {folder / CONFIG} names code that would be fetched and run: {', '.join(kernels)}; remove it "
            "there, or say that it may be run (trust_remote_code)"
        )
    adapter = adapter_config(folder)
    if adapter.get("megatron_config"):
        module = shortened(adapter.get("megatron_core"))
        raise InputError(
            f"model file {folder / ADAPTER}: megatron_config makes peft import megatron_core, {module}, which nothing "
            "here needs: remove both"
        )


def adapter_config(folder: Path) -> dict[str, Any]:
    """What the adapter_config.json of a folder says; empty where there is none.

    Raises:
        InputError: it is no JSON object.
    """
    return json_object(folder / ADAPTER, "model file") if (folder / ADAPTER).exists() else {}


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, or a folder that holds one, with the way to what can be trained; else nothing.

    Raises:
        InputError: see above.
    """
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    name = next((file.name for file in files if file.suffix == ".gguf"), None)
    if name is not None:
        raise InputError(
            f"model {path} has its weights as GGUF alone ({name}), which cannot be trained: give the safetensors it "
            f"was made of, or make some of it: AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={name!r})"
            f".save_pretrained(NEW), the tokenizer likewise"
        )


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the tensors of a file; only its header is read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                yield name, tensors.get_slice(name).get_shape()
    except (SafetensorError, OSError) as error:
        raise InputError(f"model file {file} is damaged or cut off ({one_line(error)})") from error


def _check_against_weights(folder: Path, config: dict[str, Any], tensors: int, elements: int) -> None:
    sizes = config if config.get("hidden_size") else config.get("text_config") or {}
    hidden, layers = sizes.get("hidden_size") or 1, sizes.get("num_hidden_layers") or 1
    widest = max(sizes.get(name) or 1 for name in ("vocab_size", "intermediate_size", "hidden_size"))
    if layers > tensors or hidden * widest > PACKED * elements:
        raise InputError(
            f"model {folder}: {CONFIG} does not describe its weights: {layers:,} layers of width {hidden:,}, the "
            f"widest matrix {hidden:,} x {widest:,}, and {tensors:,} tensors of {elements:,} elements in all"
        )
