"""The whole training step against TRL's GRPOTrainer: time per update, peak memory, device waits.

Every trainer gets a model of its own from the same seed, the same prompts, completions and rewards, 4 updates per
rollout batch, bf16, and TRL's defaults elsewhere (gradient checkpointing among them). Trainers run one after another,
all of them in a round, in an order that changes from round to round; an update is compared with TRL's of the same round
and number. The first rollout batch of each run warms up, and is where device waits are counted.
"""

import gc
import logging
import shutil
import time
import traceback
from typing import Any, NamedTuple

import torch

from on_a_gpu_parts import TRL, spread, step_shapes
from on_a_gpu_parts.measured_trainer import UPDATES_PER_ROLLOUT, Clock, measured
from on_a_gpu_parts.syncs import SyncCounter

BALANCED = {"clipping": "balanced"}
PAPO = BALANCED | {"polarity": "papo", "papo_warmup_updates": 1}
RECORDS = PAPO | {"record_tokens": 1}
LAGGED = {"bapo_scope": "lagged"}


class Variant(NamedTuple):
    """A trainer and how an update is cut; keys of equipoise, or None for TRL's trainer."""

    name: str
    micro_batches: int
    keys: dict[str, Any] | None


VARIANTS = [
    Variant(TRL, 4, None),
    Variant("balanced, papo, records", 4, RECORDS),
    Variant("balanced, papo, records, lagged", 4, RECORDS | LAGGED),
    Variant("everything off", 4, {}),
    Variant(TRL, 1, None),
    Variant("balanced, papo, records", 1, RECORDS),
    Variant("everything off", 1, {}),
    Variant("balanced", 1, BALANCED),
    Variant("balanced, papo", 1, PAPO),
    Variant("balanced, papo, records, lagged", 1, RECORDS | LAGGED),
]
"""In order of importance; the first rounds of a part that runs out of time have had at least those at the front."""

MOST_ROUNDS = 3


class Run(NamedTuple):
    """What was measured of one run of a trainer."""

    seconds: list[float]
    rollout_seconds: list[float]
    peak_mb: float | None
    syncs: SyncCounter | None


def measure(figures, plan) -> None:
    """Rounds until the time is used up; the first one in order of importance."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    shape, rounds = step_shapes.shape_of(plan), []
    tokenizer = step_shapes.tokenizer(shape)
    longest = 0.0
    for number in range(1 if plan.small else MOST_ROUNDS):
        order, taken = VARIANTS if number % 2 == 0 else VARIANTS[::-1], {}
        rounds.append(taken)
        for variant in order:
            begin = time.monotonic()
            if begin + 1.2 * longest > plan.end:
                figures.note(f"round {number + 1} was not finished: no time left for {variant.name}")
                return require_all(rounds)
            run = attempt(figures, variant, shape, tokenizer, plan)
            if run:
                taken[variant.name, variant.micro_batches] = run
            figures.replace(rows_of(rounds, shape))
            longest = max(longest, time.monotonic() - begin)
    return require_all(rounds)


def require_all(rounds: list[dict]) -> None:
    """The part is done when each variant has been measured once."""
    names = {(variant.name, variant.micro_batches) for variant in VARIANTS}
    if missing := names - {key for taken in rounds for key in taken}:
        raise SystemExit(f"not measured: {', '.join(f'{name} ({count})' for name, count in sorted(missing))}")


def attempt(figures, variant: Variant, shape, tokenizer, plan) -> Run | None:
    """A run; None where it fails, which the others survive."""
    try:
        return run_of(variant, shape, tokenizer, plan)
    except Exception as error:
        traceback.print_exc()  # into the part's log
        text = (str(error).splitlines() or [""])[0][:300]
        figures.note(f"{variant.name}, {variant.micro_batches} micro-batches: {type(error).__name__}: {text}")
        return None
    finally:
        gc.collect()
        if plan.device == "cuda":
            torch.cuda.empty_cache()


def run_of(variant: Variant, shape, tokenizer, plan) -> Run:
    on_gpu = plan.device == "cuda"
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else 0.0
    trainer = trainer_of(variant, shape, tokenizer, plan)
    trainer.shape, trainer.syncs = shape, SyncCounter()
    clock = Clock(trainer, count_syncs=on_gpu)
    trainer.add_callback(clock)
    try:
        trainer.train()
    finally:
        release(trainer)
    peak = None if clock.peak_mb is None else round(clock.peak_mb - before, 1)
    return Run(clock.seconds, clock.rollout_seconds, peak, trainer.syncs if on_gpu else None)


def release(trainer: Any) -> None:
    """Give up what is large, whoever still holds the trainer: hosts keep references in places of their own."""
    if trainer.optimizer is not None:
        trainer.optimizer.state.clear()
    for parameter in trainer.model.parameters():
        parameter.grad, parameter.data = None, parameter.data.new_empty(0)
    trainer.accelerator.free_memory()


def trainer_of(variant: Variant, shape, tokenizer, plan) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    from equipoise.trl import EquipoiseConfig, EquipoiseTrainer

    own = variant.keys is not None
    folder = plan.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    settings = settings_of(variant, shape, plan) | (variant.keys or {})
    return measured(EquipoiseTrainer if own else GRPOTrainer)(
        model=step_shapes.model(shape, plan.device),
        reward_funcs=step_shapes.reward,
        args=(EquipoiseConfig if own else GRPOConfig)(str(folder), **settings),
        train_dataset=step_shapes.prompts(shape, 64),
        processing_class=tokenizer,
    )


def settings_of(variant: Variant, shape, plan) -> dict[str, Any]:
    on_gpu = plan.device == "cuda"
    return {
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": shape.sequences // variant.micro_batches,
        "gradient_accumulation_steps": variant.micro_batches,
        "steps_per_generation": UPDATES_PER_ROLLOUT * variant.micro_batches,
        "num_generations": shape.sequences // 2,
        "max_completion_length": shape.completion,
        "max_steps": UPDATES_PER_ROLLOUT * (1 + shape.counted_rollouts),
        "learning_rate": 1e-4,  # steps of 1e-6 are lost in the rounding of bf16, and ratios would stay at 1
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def rows_of(rounds: list[dict], shape) -> list[dict[str, Any]]:
    """A row per variant that has run."""
    rows = []
    for variant in VARIANTS:
        key, base = (variant.name, variant.micro_batches), (TRL, variant.micro_batches)
        runs = [taken[key] for taken in rounds if key in taken]
        if not runs:
            continue
        pairs = [(taken[key], taken[base]) for taken in rounds if key in taken and base in taken]
        rows.append({
            "trainer": variant.name,
            "micro_batches": variant.micro_batches,
            "sequences": shape.sequences,
            "tokens": shape.sequences * (shape.prompt + shape.completion),
            "seconds": spread.of([x for run in runs for x in run.seconds]),
            "rollout_seconds": spread.of([x for run in runs for x in run.rollout_seconds]),
            "to_trl": ratios(pairs),
            "peak_mb": runs[-1].peak_mb,
            "peak_to_trl": peak_ratio(pairs),
            **waits(runs[0].syncs),
            "updates": sum(len(run.seconds) for run in runs),
        })  # fmt: skip
    return rows


def ratios(pairs: list[tuple[Run, Run]]) -> dict[str, float] | None:
    if not pairs:
        return None
    ours, theirs = ([x for pair in pairs for x in pair[side].seconds] for side in (0, 1))
    return spread.of_ratios(ours, theirs)


def peak_ratio(pairs: list[tuple[Run, Run]]) -> float | None:
    peaks = [(ours.peak_mb, theirs.peak_mb) for ours, theirs in pairs if ours.peak_mb and theirs.peak_mb]
    return round(max(a / b for a, b in peaks), 4) if peaks else None


def waits(syncs: SyncCounter | None) -> dict[str, Any]:
    if syncs is None:
        return {"syncs_per_update": None, "own_syncs_in_micro_batch": None, "sync_places": []}
    return {
        "syncs_per_update": syncs.per_update(),
        "own_syncs_in_micro_batch": syncs.own_in_micro_batch(),
        "sync_places": syncs.places(),
    }
