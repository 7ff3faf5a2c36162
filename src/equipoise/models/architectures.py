"""The shape of a model without its weights: from its folder, the recipes' own table, or the hub."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equipoise
from equipoise.errors import InputError
from equipoise.models.folders import CONFIG, checked_config
from equipoise.paths import check_path
from equipoise.tasks.datasets import one_line


def recipe_folder() -> Path:
    """Where the recipes are: inside the installed package, or at the root of a checkout."""
    installed = Path(equipoise.__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(equipoise.__file__).parents[2] / "recipes"


def architecture(model: str, file: Path | None = None) -> Any:
    """The transformers configuration of a model, of its language part where it has several.

    Args:
        model: folder or hub id.
        file: a config.json to take instead.

    Raises:
        InputError: nothing that can be read describes the model.
    """
    from transformers import AutoConfig

    check_path(model, "model")
    shipped = recipe_folder() / "architectures" / (model.replace("/", "--") + ".json")
    if file is None and not (Path(model) / "config.json").is_file() and shipped.is_file():
        file = shipped
    if file is not None:
        return _from_file(file)
    if (Path(model) / CONFIG).is_file():
        checked_config(Path(model) / CONFIG)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    except Exception as error:  # transformers raises nearly everything for a model that it cannot read
        cause = " ".join(str(error).split())
        raise InputError(
            f"model {model}: its config.json cannot be read ({type(error).__name__}: {cause[:200]}); "
            f"give a file of that form with --architecture FILE"
        ) from error


def _from_file(file: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**checked_config(file)).get_text_config()
    except InputError as error:
        raise InputError(f"architecture {file} is no config.json of a model: {error}") from error
    except Exception as error:  # transformers raises nearly everything for values that it cannot use
        raise InputError(f"architecture {file} is no config.json of a model: {one_line(error, 200)}") from error


@dataclass(frozen=True)
class Shape:
    """What the memory of a decoder of the Llama type follows from: Llama, Mistral, Qwen2, Qwen3 and the like.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the gated feed-forward part.
        layers: decoder layers.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: width of a head.
        vocabulary: rows of the LM head.
        normed_heads: queries and keys are normalised head by head (Qwen3).
        tied: the LM head is the embedding.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    normed_heads: bool
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape that a transformers configuration describes.

        Raises:
            InputError: a mixture of experts or a model without these sizes, for which the formulas do not hold.
        """
        missing = [n for n in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
                   if not isinstance(getattr(config, n, None), int)]  # fmt: skip
        experts = next(
            (n for n in ("num_experts", "num_local_experts", "n_routed_experts") if hasattr(config, n)), None
        )
        if missing or experts:
            raise InputError(
                f"the memory of a model of type {config.model_type!r} is not known here: it "
                + (f"is a mixture of experts ({experts})" if experts else f"has no {', '.join(missing)}")
                + "; the formulas are for dense decoders of the Llama type"
            )
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            normed_heads=config.model_type == "qwen3",
            tied=bool(config.tie_word_embeddings),
        )


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
        total: all, an adapter included.
        trainable: those that get a gradient.
        layer: of the largest decoder layer.
        outside: not in a decoder layer: embedding, LM head, final norm.
        adapted: linear parts of a decoder layer that have an adapter, by name (`q_proj`).
    """

    total: int
    trainable: int
    layer: int
    outside: int
    adapted: tuple[str, ...] = ()


def parameter_count(config: Any, lora: Any = None) -> ParameterCount:
    """The parameters of a model, counted in one without memory (torch's meta device).

    Args:
        config: transformers configuration.
        lora: a peft configuration, where only an adapter is trained.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)  # from_config writes the type into it
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        base = sum(p.numel() for p in model.parameters())
        layers = [sum(p.numel() for p in layer.parameters()) for layer in model.base_model.layers]
        if lora is None:
            return ParameterCount(base, base, max(layers), base - sum(layers))
        from peft import get_peft_model

        adapted = get_peft_model(model, lora)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        names = {name.split(".")[-2] for name, _ in adapted.named_modules() if name.endswith(".lora_A")}
    return ParameterCount(base + trainable, trainable, max(layers), base - sum(layers), tuple(sorted(names)))
