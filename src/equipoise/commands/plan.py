"""`equipoise plan`: what a configuration means in batches and in memory, calculated before anything is started."""

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from rich.console import Console
from rich.table import Table

from equipoise.errors import InputError
from equipoise.models import memory
from equipoise.models.architectures import ParameterCount, Shape, architecture, parameter_count
from equipoise.models.memory import Sharding, Term
from equipoise.settings.presets import with_preset
from equipoise.settings.reading import build
from equipoise.settings.run import RunSettings
from equipoise.trl.config import EquipoiseConfig

GIB = 2**30
RESERVE = 0.1
"""Part of a GPU that is left to what is not calculated."""


@dataclass(frozen=True)
class Batch:
    """The arithmetic of a rollout batch.

    Attributes:
        processes: one per GPU.
        completions_per_update: over all processes.
        prompts_per_update: groups of `num_generations`.
        completions_per_rollout: in a rollout batch, over all processes.
        prompts_per_rollout: groups of them.
        fresh_completions_per_rollout: sampled for it; the others are replayed.
        updates_per_rollout: staleness: optimizer steps on one rollout batch.
        most_tokens_per_rollout: of completions that are sampled, where each has its greatest length.
        rows_per_process: completions of a rollout batch on one GPU.
    """

    processes: int
    completions_per_update: int
    prompts_per_update: float
    completions_per_rollout: int
    prompts_per_rollout: float
    fresh_completions_per_rollout: int
    updates_per_rollout: float
    most_tokens_per_rollout: int
    rows_per_process: int


@dataclass(frozen=True)
class Plan:
    """What `equipoise plan` prints.

    Attributes:
        model: folder or hub id.
        shape: of the model.
        parameters: of the model, with an adapter where there is one.
        batch: the arithmetic of batches.
        sharding: "none", "fsdp2", "zero2" or "zero3".
        terms: of the memory of one GPU.
        learning_bytes: the sum while the model learns.
        sampling_bytes: the sum while completions are sampled.
        gpu_bytes: of one GPU.
        full_logits_bytes: what the statistics head does not form.
        notes: what the numbers do not say.
    """

    model: str
    shape: Shape
    parameters: ParameterCount
    batch: Batch
    sharding: str
    terms: list[Term]
    learning_bytes: int
    sampling_bytes: int
    gpu_bytes: int
    full_logits_bytes: int
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the larger phase leaves the reserve free."""
        return max(self.learning_bytes, self.sampling_bytes) <= (1 - RESERVE) * self.gpu_bytes

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"fits": self.fits, "reserve": RESERVE}


def plan(values: dict[str, Any], options: argparse.Namespace) -> Plan:
    """The plan of a run.

    Args:
        values: checked keys of a run; `output_dir` may be missing.
        options: `accelerate`, `processes`, `sharding`, `gpu_memory` (GiB), `prompt_tokens`, `architecture`.

    Raises:
        InputError: settings that a run would be refused for, or a model whose shape is not known.
    """
    for name in ("processes", "gpu_memory", "prompt_tokens"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name} must be > 0, got {value}")
    values = with_preset({"output_dir": "runs/plan"} | values)
    with _unheard_warnings():
        settings, config = build(values)
    sharding = _sharding(options)
    config_of_model = architecture(settings.model, options.architecture)
    shape = Shape.of(config_of_model)
    parameters = parameter_count(config_of_model, _lora(settings))
    batch = _batch(values, config, sharding.processes)
    gpu_bytes = int(options.gpu_memory * GIB)
    mixed = values.get("bf16") is not False or bool(values.get("fp16"))
    saved = _element_bytes(config, config_of_model)
    terms = memory.model_terms(
        parameters,
        sharding,
        saved_bytes=saved,
        optimizer=str(getattr(config.optim, "value", config.optim)),
        mixed=mixed,
        reference=config.beta != 0 and not settings.use_peft,
    )
    if sharding.kind == "zero3" and config.ds3_gather_for_generation and not config.use_vllm:
        whole = memory.HALF * parameters.total
        terms.append(Term("whole model", whole, f"2 B x {parameters.total:,}: ds3_gather_for_generation", "sampling"))
    # Sharded weights are gathered in the type of the products, and the residual stream with them.
    compute = memory.HALF if mixed else saved
    residual = saved if sharding.kind == "none" else compute
    terms += _learning_terms(shape, values, config, options.prompt_tokens, residual, compute)
    sampled, notes = _sampling_terms(shape, parameters, config, batch, options.prompt_tokens, gpu_bytes, compute)
    terms += sampled
    notes += _notes(saved, sharding, settings, config, mixed)
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
        gpu_bytes,
        memory.full_logits_bytes(shape, scored),
        notes,
    )


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


def _sharding(options: argparse.Namespace) -> Sharding:
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
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        processes = int(values["num_processes"])
        distributed = str(values["distributed_type"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"accelerate configuration {path} cannot be read: {error!r}") from error
    if distributed == "FSDP":
        if int((values.get("fsdp_config") or {}).get("fsdp_version", 1)) != 2:
            raise InputError(f"accelerate configuration {path}: fsdp_version must be 2")
        return "fsdp2", processes
    if distributed == "DEEPSPEED":
        stage = (values.get("deepspeed_config") or {}).get("zero_stage")
        if stage not in (2, 3):
            raise InputError(
                f"accelerate configuration {path}: deepspeed_config must give zero_stage 2 or 3, got {stage!r}; choose "
                f"with --sharding what is in a DeepSpeed file of its own"
            )
        return f"zero{stage}", processes
    return "none", processes


def _lora(settings: RunSettings) -> Any:
    if not settings.use_peft:
        return None
    from equipoise.models.loading import lora_config

    return lora_config(settings)


def _element_bytes(config: EquipoiseConfig, config_of_model: Any) -> int:
    """Bytes of a parameter as `load_model` loads it on an accelerator."""
    given = cast(dict, config.model_init_kwargs or {}).get("dtype", "auto")
    dtype = str(config_of_model.dtype if given == "auto" else given)
    return memory.HALF if dtype.removeprefix("torch.") in ("bfloat16", "float16") else memory.FLOAT32


def _batch(values: dict[str, Any], config: EquipoiseConfig, processes: int) -> Batch:
    per_device, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    generations = config.num_generations or 1
    slices = config.steps_per_generation or 1
    if values.get("generation_batch_size") is not None:
        slices = max(1, values["generation_batch_size"] // (per_device * processes))
    update, rollout = per_device * accumulated * processes, per_device * slices * processes
    if rollout % generations:
        raise InputError(
            f"a rollout batch on {processes} processes is per_device_train_batch_size * steps_per_generation * "
            f"processes = {rollout} completions, which num_generations={generations} must divide"
        )
    replayed = int(config.replay_fraction * (per_device * slices // generations) + 1e-9) * generations * processes
    return Batch(
        processes=processes,
        completions_per_update=update,
        prompts_per_update=update / generations,
        completions_per_rollout=rollout,
        prompts_per_rollout=rollout / generations,
        fresh_completions_per_rollout=rollout - replayed,
        updates_per_rollout=slices * config.num_iterations / accumulated,
        most_tokens_per_rollout=(rollout - replayed) * (config.max_completion_length or 0),
        rows_per_process=per_device * slices,
    )


def _learning_terms(
    shape: Shape, values: dict[str, Any], config: EquipoiseConfig, prompt_tokens: int, residual: int, compute: int
) -> list[Term]:
    rows, completion = config.per_device_train_batch_size, config.max_completion_length or 0
    attention = cast(dict, config.model_init_kwargs or {}).get("attn_implementation", "sdpa")
    off = [values.get(name) is False for name in ("gradient_checkpointing", "activation_checkpointing")]
    terms = memory.activation_terms(
        shape,
        rows=rows,
        length=prompt_tokens + completion,
        residual=residual,
        compute=compute,
        checkpointing=not any(off),
        masked=attention in ("sdpa", "eager"),
    )
    return [*terms, memory.statistics_term(shape, scored=rows * completion, compute=compute)]


def _sampling_terms(
    shape: Shape,
    parameters: ParameterCount,
    config: EquipoiseConfig,
    batch: Batch,
    prompt_tokens: int,
    gpu_bytes: int,
    compute: int,
) -> tuple[list[Term], list[str]]:
    """KV cache, or the part of the GPU that vLLM takes, and what to say about them."""
    length = prompt_tokens + (config.max_completion_length or 0)
    token = memory.kv_cache_bytes(shape, compute)
    sequence = token * length
    each = f"{token:,} B a token, {sequence / GIB:.2f} GiB for {length:,} tokens"
    if not config.use_vllm:
        rows = batch.rows_per_process * batch.fresh_completions_per_rollout // batch.completions_per_rollout
        whole = memory.HALF * parameters.total
        formula = f"2 x {shape.layers} layers x {shape.kv_heads} heads x {shape.head_dim} x {compute} B x {rows} rows"
        cache = Term("KV cache", sequence * rows, f"{formula} x {length:,} tokens", "sampling")
        note = f"transformers samples all {rows} completions of a GPU at once ({each}); sharded weights are gathered"
        return [cache], [f"{note}: {whole / GIB:.1f} GiB more while sampling." if batch.processes > 1 else f"{note}."]
    if config.vllm_mode == "server":
        return [], [f"vLLM serves from GPUs of its own: not in this sum. KV cache there: {each}."]
    share = config.vllm_gpu_memory_utilization
    weights = memory.HALF * parameters.total // config.vllm_tensor_parallel_size
    room = int(share * gpu_bytes) - weights
    phase = "sampling" if config.vllm_enable_sleep_mode else "always"
    term = Term("vLLM", int(share * gpu_bytes), f"vllm_gpu_memory_utilization {share} x {gpu_bytes / GIB:g} GiB", phase)
    at_once = room * config.vllm_tensor_parallel_size // sequence
    inside = f"weights {weights / GIB:.1f} GiB, room for KV cache {room / GIB:.1f} GiB"
    if room < 0 or not at_once:
        return [term], [f"vLLM does not fit into its share: {inside}, and one sequence takes {each}."]
    return [term], [f"vLLM: {inside}: {at_once} sequences of full length at once ({each})."]


def _notes(saved: int, sharding: Sharding, settings: RunSettings, config: EquipoiseConfig, mixed: bool) -> list[str]:
    notes = []
    if saved == memory.HALF and sharding.kind == "none" and not settings.use_peft:
        notes.append(
            "The weights are trained in the 16 bits they are saved in: steps of a learning rate as small as "
            f"{config.learning_rate:g} are lost in rounding. "
            "Set model_init_kwargs: {dtype: float32}, or shard (FSDP2)."
        )
    if sharding.kind == "fsdp2" and settings.use_peft:
        notes.append("FSDP2 gathers adapter and model together; LoRA on whole weights (DDP) needs less communication.")
    if not mixed:
        notes.append("Without mixed precision all products are in the type of the weights.")
    return notes


def print_plan(made: Plan) -> None:
    """Two tables and the notes on stdout."""
    console = Console(width=None if Console().is_terminal else 150)
    shape, count, batch = made.shape, made.parameters, made.batch
    trained = "" if count.trainable == count.total else f", {count.trainable:,} of them trained"
    console.print(f"[bold]{made.model}[/bold]: {count.total:,} parameters{trained}", highlight=False)
    console.print(
        f"{shape.layers} layers, hidden {shape.hidden:,}, intermediate {shape.intermediate:,}, heads {shape.heads} / "
        f"{shape.kv_heads} of {shape.head_dim}, vocabulary {shape.vocabulary:,}{' (tied)' if shape.tied else ''}",
        highlight=False,
    )
    table = Table(title=f"batches on {batch.processes} GPU{'s' if batch.processes > 1 else ''}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("completions per update", f"{batch.completions_per_update:,} ({batch.prompts_per_update:g} prompts)"),
        ("completions per rollout batch", f"{batch.completions_per_rollout:,} ({batch.prompts_per_rollout:g} prompts)"),
        ("of these sampled, not replayed", f"{batch.fresh_completions_per_rollout:,}"),
        ("updates per rollout batch (staleness)", f"{batch.updates_per_rollout:g}"),
        ("tokens sampled per rollout batch, at most", f"{batch.most_tokens_per_rollout:,}"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(_memory_table(made))
    for note in made.notes:
        console.print(f"- {note}", highlight=False)


def _memory_table(made: Plan) -> Table:
    table = Table(title=f"memory of one GPU, sharding: {made.sharding}", title_justify="left")
    for heading, justify in (("", "left"), ("GiB", "right"), ("while", "left"), ("formula", "left")):
        table.add_column(heading, justify=cast(Any, justify), overflow="fold")
    for term in made.terms:
        table.add_row(term.name, _gib(term.num_bytes), term.phase, term.formula)
    table.add_section()
    for name, value in (("learning", made.learning_bytes), ("sampling", made.sampling_bytes)):
        table.add_row(f"sum while {name}", _gib(value), "", "")
    reserve = f"{RESERVE:.0%} kept for what is not calculated"
    verdict = "fits" if made.fits else "[bold]does not fit[/bold]"
    table.add_row("GPU", _gib(made.gpu_bytes), "", f"{verdict}; {reserve}")
    logits = f"one float32 tensor tokens x {made.shape.vocabulary:,}, which the statistics head does not form"
    table.add_row("(full logits)", _gib(made.full_logits_bytes), "", logits)
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"


def run_plan(values: dict[str, Any], options: argparse.Namespace) -> None:
    """Make the plan and print it, as tables or as JSON."""
    made = plan(values, options)
    if options.json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        print_plan(made)
