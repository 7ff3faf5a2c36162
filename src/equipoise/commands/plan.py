"""`equipoise plan`: what a configuration means in batches and in memory, calculated before anything is started."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from equipoise.commands.plan_machine import GIB, GPU_MEMORY, Device, Machine, machine
from equipoise.commands.plan_result import Batch, Plan, print_plan
from equipoise.errors import InputError, require, shortened
from equipoise.inputs.yaml_text import yaml_mapping
from equipoise.models import memory
from equipoise.models.architectures import ParameterCount, Shape, architecture, parameter_count
from equipoise.models.memory import Sharding, Term
from equipoise.settings.presets import merged, with_preset
from equipoise.settings.run import RunSettings
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.keys import build, checked_keys, read_config

MOST_PROCESSES = 1_000_000
"""Of an accelerate configuration; more GPUs than there are in one place."""


@dataclass(frozen=True)
class PlanOptions:
    """Calculate what a run needs: parameters, optimizer state, activations, what the statistics head keeps, KV cache,
    each with its formula, summed for one GPU, or for the CPU that the run would compute on (use_cpu, or no
    accelerator); and what the batch settings mean on so many of them. Every key of a run is also a flag (equipoise
    train --help lists them). Nothing is loaded but the shape of the model (its config.json, or recipes/architectures).
    """

    config: Path | None = field(default=None, metadata={"help": "YAML file of keys, as `equipoise train` takes it."})
    accelerate: Path | None = field(default=None, metadata={"help": "Accelerate configuration: processes, sharding."})
    processes: int | None = field(
        default=None, metadata={"help": "GPUs (or processes on a CPU); unset: those of --accelerate, else 1."}
    )
    sharding: Literal["none", "fsdp2", "zero2", "zero3"] | None = field(
        default=None, metadata={"help": "Unset: as in --accelerate."}
    )
    device: Device | None = field(
        default=None,
        metadata={
            "help": "What to plan for. Unset: cpu with use_cpu, gpu where GPUs are described (--accelerate, "
            "--processes, --sharding, --gpu_memory), else what is here."
        },
    )
    gpu_memory: float | None = field(default=None, metadata={"help": f"GiB of one GPU; unset: {GPU_MEMORY:g}."})
    cpu_memory: float | None = field(default=None, metadata={"help": "GiB of a machine without; unset: this one's."})
    prompt_tokens: int = field(default=512, metadata={"help": "Longest prompt."})
    architecture: Path | None = field(default=None, metadata={"help": "config.json, where the model is not at hand."})
    json: bool = field(default=False, metadata={"help": "Print JSON, every term with its bytes and formula."})

    def __post_init__(self) -> None:
        for name in ("processes", "gpu_memory", "cpu_memory", "prompt_tokens"):
            value = getattr(self, name)
            require(f"--{name}", value, "> 0 and <= 1e9", value is None or 0 < value <= 1e9)


def plan(values: dict[str, Any], options: PlanOptions) -> Plan:
    """The plan of a run.

    Args:
        values: checked keys of a run; `output_dir` may be missing.
        options: of the machine.

    Raises:
        InputError: settings that a run would be refused for, or a model whose shape is not known.
    """
    values = with_preset({"output_dir": "runs/plan"} | values)
    place = _machine(values, options)
    with _unheard_warnings():
        settings, config = build(values)
    sharding = _sharding(options)
    config_of_model = architecture(settings.model, options.architecture)
    shape = Shape.of(config_of_model)
    parameters = parameter_count(config_of_model, _lora(settings))
    batch = _batch(values, config, sharding.processes)
    types = _types(values, config, config_of_model, sharding, place)
    terms = _state_terms(parameters, sharding, settings, config, types, place)
    layer = _layer_bytes(shape, parameters, settings, types)
    terms += _learning_terms(shape, values, config, options.prompt_tokens, layer, types, place)
    if place.device == "cpu" and shape.tied and not settings.use_peft:
        terms.append(memory.tied_gradient_term(shape, types.saved))
    sampled, notes = _sampling_terms(shape, parameters, config, batch, options.prompt_tokens, place, types)
    terms += sampled
    notes += _notes(types, sharding, settings, config, place)
    notes.append(f"for prompts of at most {options.prompt_tokens:,} tokens (--prompt_tokens)")
    sums = {
        phase: sum(term.num_bytes for term in terms if term.phase in ("always", phase))
        for phase in ("learning", "sampling")
    }
    scored = config.per_device_train_batch_size * (config.max_completion_length or 0)
    return Plan(
        settings.model,
        shape,
        parameters,
        batch,
        sharding.kind,
        terms,
        sums["learning"],
        sums["sampling"],
        place.device,
        place.num_bytes,
        memory.full_logits_bytes(shape, scored),
        notes,
    )


def _machine(values: dict[str, Any], options: PlanOptions) -> Machine:
    described = (options.accelerate, options.processes, options.sharding)
    return machine(
        values,
        device=options.device,
        accelerate=options.accelerate,
        names_gpus=any(value is not None for value in described),
        gpu_memory=options.gpu_memory,
        cpu_memory=options.cpu_memory,
    )


@dataclass(frozen=True)
class _Types:
    """Bytes of an element: as the weights are loaded, as products take it, of the residual stream."""

    saved: int
    compute: int
    residual: int
    mixed: bool


def _types(
    values: dict[str, Any], config: EquipoiseConfig, config_of_model: Any, sharding: Sharding, place: Machine
) -> _Types:
    bf16 = values.get("bf16")  # unset it is on with a GPU, off on a CPU
    mixed = bool(values.get("fp16")) or (bool(bf16) if place.device == "cpu" else bf16 is not False)
    saved = _element_bytes(config, config_of_model, place)
    # Sharded weights are gathered in the type of the products, and the residual stream with them.
    compute = memory.HALF if mixed else saved
    return _Types(saved, compute, saved if sharding.kind == "none" else compute, mixed)


@contextmanager
def _unheard_warnings() -> Iterator[None]:
    """What equipoise says about this machine is not about the one that is planned for."""
    logger = logging.getLogger("equipoise")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _sharding(options: PlanOptions) -> Sharding:
    kind, processes = "none", 1
    if options.accelerate is not None:
        kind, processes = accelerate_sharding(options.accelerate)
    kind = options.sharding or kind
    return Sharding(cast(Any, kind), options.processes or processes)


def accelerate_sharding(path: Path) -> tuple[str, int]:
    """How an accelerate configuration spreads a model ("none", "fsdp2", "zero2", "zero3"), and over how many processes.

    Raises:
        InputError: no such file, none that accelerate would read, FSDP of version 1, or DeepSpeed's stages 0 and 1.
    """
    values = yaml_mapping(path, "accelerate configuration")
    processes, distributed = values.get("num_processes"), values.get("distributed_type")
    if not isinstance(processes, int) or isinstance(processes, bool) or not 1 <= processes <= MOST_PROCESSES:
        raise InputError(
            f"accelerate configuration {path}: num_processes must be a whole number from 1 to {MOST_PROCESSES},"
            f" got {shortened(processes)}"
        )
    if distributed == "FSDP":
        version = _part(values, "fsdp_config").get("fsdp_version", 1)
        if version != 2:
            raise InputError(f"accelerate configuration {path}: fsdp_version must be 2, got {shortened(version)}")
        return "fsdp2", processes
    if distributed == "DEEPSPEED":
        stage = _part(values, "deepspeed_config").get("zero_stage")
        if stage not in (2, 3):
            raise InputError(
                f"accelerate configuration {path}: deepspeed_config must give zero_stage 2 or 3, got "
                f"{shortened(stage)}; choose with --sharding what is in a DeepSpeed file of its own"
            )
        return f"zero{stage}", processes
    if not isinstance(distributed, str):
        raise InputError(
            f"accelerate configuration {path}: distributed_type must be text such as FSDP, got {shortened(distributed)}"
        )
    return "none", processes


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _lora(settings: RunSettings) -> Any:
    if not settings.use_peft:
        return None
    from equipoise.models.loading import lora_config

    return lora_config(settings)


def _element_bytes(config: EquipoiseConfig, config_of_model: Any, place: Machine) -> int:
    """Bytes of a parameter as `load_model` loads it."""
    given = cast(dict, config.model_init_kwargs or {}).get("dtype", "float32" if place.device == "cpu" else "auto")
    dtype = str(config_of_model.dtype if given == "auto" else given)
    return memory.HALF if dtype.removeprefix("torch.") in ("bfloat16", "float16") else memory.FLOAT32


def _batch(values: dict[str, Any], config: EquipoiseConfig, processes: int) -> Batch:
    local = config.rollout_batch()
    if values.get("generation_batch_size") is not None:  # over all processes, of which there may be none here
        slices = max(1, values["generation_batch_size"] // (local.rows * processes))
        local = replace(local, micro_batches=slices)
    rollout, update = local.completions * processes, local.completions_per_update * processes
    if rollout % local.group_size:
        raise InputError(
            f"a rollout batch on {processes} processes is per_device_train_batch_size * steps_per_generation * "
            f"processes = {rollout} completions, which num_generations={local.group_size} must divide"
        )
    replayed = local.replayed_groups(config.replay_fraction) * local.group_size * processes
    return Batch(
        processes=processes,
        completions_per_update=update,
        prompts_per_update=update / local.group_size,
        completions_per_rollout=rollout,
        prompts_per_rollout=rollout / local.group_size,
        fresh_completions_per_rollout=rollout - replayed,
        updates_per_rollout=local.updates,
        most_tokens_per_rollout=(rollout - replayed) * (config.max_completion_length or 0),
        rows_per_process=local.completions,
    )


def _state_terms(
    parameters: ParameterCount,
    sharding: Sharding,
    settings: RunSettings,
    config: EquipoiseConfig,
    types: _Types,
    place: Machine,
) -> list[Term]:
    """Weights, gradients and optimizer state, and the libraries on a CPU."""
    terms = memory.model_terms(
        parameters,
        sharding,
        saved_bytes=types.saved,
        optimizer=str(getattr(config.optim, "value", config.optim)),
        mixed=types.mixed,
        reference=config.beta != 0 and not settings.use_peft,
    )
    if sharding.kind == "zero3" and config.ds3_gather_for_generation and not config.use_vllm:
        whole = memory.HALF * parameters.total
        terms.append(Term("whole model", whole, f"2 B x {parameters.total:,}: ds3_gather_for_generation", "sampling"))
    return [memory.LIBRARIES, *terms] if place.device == "cpu" else terms


def _layer_bytes(shape: Shape, parameters: ParameterCount, settings: RunSettings, types: _Types) -> int:
    """What autograd keeps of a decoder layer, per token."""
    known = parameters.adapted and set(parameters.adapted) <= set(memory.LINEAR) and not settings.lora_dropout
    if known and types.compute == types.residual == memory.FLOAT32:
        return memory.adapted_layer_activation_bytes(shape, parameters.adapted, settings.lora_r)
    return memory.layer_activation_bytes(shape, residual=types.residual, compute=types.compute)


def _learning_terms(
    shape: Shape,
    values: dict[str, Any],
    config: EquipoiseConfig,
    prompt_tokens: int,
    layer: int,
    types: _Types,
    place: Machine,
) -> list[Term]:
    rows, completion = config.per_device_train_batch_size, config.max_completion_length or 0
    attention = cast(dict, config.model_init_kwargs or {}).get("attn_implementation", "sdpa")
    asked = [values.get(name) for name in ("gradient_checkpointing", "activation_checkpointing")]
    terms = memory.activation_terms(
        shape,
        rows=rows,
        length=prompt_tokens + completion,
        layer=layer,
        residual=types.residual,
        compute=types.compute,
        checkpointing=any(asked) if place.device == "cpu" else False not in asked,
        masked=attention in ("sdpa", "eager"),
    )
    return [*terms, memory.statistics_term(shape, scored=rows * completion, compute=types.compute, device=place.device)]


def _sampling_terms(
    shape: Shape,
    parameters: ParameterCount,
    config: EquipoiseConfig,
    batch: Batch,
    prompt_tokens: int,
    place: Machine,
    types: _Types,
) -> tuple[list[Term], list[str]]:
    """KV cache, or the part of the memory that vLLM takes, and what to say about them."""
    length = prompt_tokens + (config.max_completion_length or 0)
    token = memory.kv_cache_bytes(shape, types.compute)
    sequence = token * length
    each = f"{token:,} B a token, {sequence / GIB:.2f} GiB for {length:,} tokens"
    if not config.use_vllm:
        rows = batch.rows_per_process * batch.fresh_completions_per_rollout // batch.completions_per_rollout
        whole = memory.HALF * parameters.total
        formula = f"2 x {shape.layers} layers x {shape.kv_heads} heads x {shape.head_dim} x {types.compute} B"
        cache = Term("KV cache", sequence * rows, f"{formula} x {rows} rows x {length:,} tokens", "sampling")
        of = "GPU" if place.device == "gpu" else "process"
        note = f"transformers samples all {rows} completions of a {of} at once ({each})"
        if batch.processes == 1 or place.device == "cpu":
            return [cache], [f"{note}."]
        return [cache], [f"{note}; sharded weights are gathered: {whole / GIB:.1f} GiB more while sampling."]
    if config.vllm_mode == "server":
        return [], [f"vLLM serves from GPUs of its own: not in this sum. KV cache there: {each}."]
    share = config.vllm_gpu_memory_utilization
    held = int(share * place.num_bytes)
    weights = memory.HALF * parameters.total // config.vllm_tensor_parallel_size
    room = held - weights
    phase = "sampling" if config.vllm_enable_sleep_mode else "always"
    term = Term("vLLM", held, f"vllm_gpu_memory_utilization {share} x {place.num_bytes / GIB:g} GiB", phase)
    at_once = room * config.vllm_tensor_parallel_size // sequence
    inside = f"weights {weights / GIB:.1f} GiB, room for KV cache {room / GIB:.1f} GiB"
    if room < 0 or not at_once:
        return [term], [f"vLLM does not fit into its share: {inside}, and one sequence takes {each}."]
    return [term], [f"vLLM: {inside}: {at_once} sequences of full length at once ({each})."]


def _notes(
    types: _Types, sharding: Sharding, settings: RunSettings, config: EquipoiseConfig, place: Machine
) -> list[str]:
    notes = [] if place.note is None else [place.note]
    if types.saved == memory.HALF and sharding.kind == "none" and not settings.use_peft:
        notes.append(
            "The weights are trained in the 16 bits they are saved in: steps of a learning rate as small as "
            f"{config.learning_rate:g} are lost in rounding. "
            "Set model_init_kwargs: {dtype: float32}, or shard (FSDP2)."
        )
    if sharding.kind == "fsdp2" and settings.use_peft:
        notes.append("FSDP2 gathers adapter and model together; LoRA on whole weights (DDP) needs less communication.")
    if not types.mixed and place.device == "gpu":
        notes.append("Without mixed precision all products are in the type of the weights.")
    return notes


def run_plan(options: PlanOptions, keys: Mapping[str, Any]) -> None:
    """Make the plan of a configuration and print it, as tables or as JSON.

    Args:
        options: of the machine, and the configuration file.
        keys: unchecked keys of the run, which override those of the file.

    Raises:
        InputError: keys that are not known or of another type, or as `plan`.
    """
    flags = checked_keys(keys, "flag --", beside=vars(options))
    made = plan(merged({} if options.config is None else read_config(options.config), flags), options)
    if options.json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        print_plan(made)
