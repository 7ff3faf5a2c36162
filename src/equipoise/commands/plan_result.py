"""What `equipoise plan` found: batches and the memory of one GPU or process, for Python, for JSON, and as tables."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from equipoise.commands.plan_machine import GIB, Device
from equipoise.models.architectures import ParameterCount, Shape
from equipoise.models.memory import Term

RESERVE = 0.1
"""Part of the memory that is left to what is not calculated."""


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
        terms: of the memory of one GPU, or of one process on a CPU.
        learning_bytes: the sum while the model learns.
        sampling_bytes: the sum while completions are sampled.
        device: "gpu", or "cpu" with the memory of the machine.
        device_bytes: of one GPU; of the machine, for all processes on its CPU.
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
    device: Device
    device_bytes: int
    full_logits_bytes: int
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the larger phase leaves the reserve free."""
        sharing = self.batch.processes if self.device == "cpu" else 1
        return sharing * max(self.learning_bytes, self.sampling_bytes) <= (1 - RESERVE) * self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"fits": self.fits, "reserve": RESERVE}


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
    place = _several(batch.processes, "GPU", "GPUs")
    if made.device == "cpu":
        place = f"the CPU, {_several(batch.processes, 'process', 'processes')}"
    table = Table(title=f"batches on {place}", title_justify="left")
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
    on_cpu = made.device == "cpu"
    of = "process" if on_cpu else "GPU"
    table = Table(title=f"memory of one {of}, sharding: {made.sharding}", title_justify="left")
    for heading, justify in (("", "left"), ("GiB", "right"), ("while", "left"), ("formula", "left")):
        table.add_column(heading, justify=cast(Any, justify), overflow="fold")
    for term in made.terms:
        table.add_row(term.name, _gib(term.num_bytes), term.phase, term.formula)
    table.add_section()
    for name, value in (("learning", made.learning_bytes), ("sampling", made.sampling_bytes)):
        table.add_row(f"sum while {name}", _gib(value), "", "")
    reserve = f"{RESERVE:.0%} kept for what is not calculated"
    verdict = "fits" if made.fits else "[bold]does not fit[/bold]"
    if on_cpu and made.batch.processes > 1:
        verdict = f"{made.batch.processes} processes: {verdict}"
    table.add_row("machine" if on_cpu else "GPU", _gib(made.device_bytes), "", f"{verdict}; {reserve}")
    logits = f"one float32 tensor tokens x {made.shape.vocabulary:,}, which the statistics head does not form"
    table.add_row("(full logits)", _gib(made.full_logits_bytes), "", logits)
    return table


def _several(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
