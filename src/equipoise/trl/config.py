"""`EquipoiseConfig`: TRL's `GRPOConfig` with the fields of balanced clipping and of polarity control."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import cast, get_args

import torch
from trl.trainer.grpo_config import GRPOConfig

from equipoise.balance import BoundGrid, Measure
from equipoise.controllers import (
    BalanceSignal,
    PhaseSignal,
    PolarityController,
    ReferenceSignal,
    ScheduleSignal,
    TrendSignal,
)
from equipoise.controllers.polarity import QUADRANTS
from equipoise.entropy_control import EntropyControl
from equipoise.settings import token_control as control_settings
from equipoise.settings.off_policy import check_off_policy
from equipoise.trl.losses import CLIPPED_LOSSES, LOSSES
from equipoise.types import ClipBounds

logger = logging.getLogger("equipoise")

LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "num_generations": 2,
    "learning_rate": 0,
    "epsilon": 0,
    "epsilon_high": 0,
    "top_k": 0,
    "dataloader_num_workers": 0,
    "record_tokens": 0,
}
"""Smallest value of TRL's settings that TRL refuses late, with a traceback, or not at all."""

CHOICES = {
    "loss_type": LOSSES,
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "clipping": ("fixed", "balanced"),
    "polarity": ("off", "papo", "positive_only", "negative_only"),
    "papo_signal": ("reference", "trend", "balance", "schedule"),
    "papo_weight_form": ("hard", "tanh"),
    "bapo_measure": get_args(Measure),
    "bapo_scope": ("update", "microbatch", "lagged"),
    "bapo_token_weight": ("uniform", "rollout"),
}


@dataclass
class EquipoiseConfig(GRPOConfig):
    """Settings of one run: everything of TRL's `GRPOConfig`, and what equipoise adds.

    With `clipping="fixed"` and `polarity="off"` the trainer computes what TRL's computes. On a machine without
    accelerator, bf16 and gradient checkpointing are off unless they are asked for: bf16 products run an order of
    magnitude slower than float32 on most CPUs.

    Raises:
        ValueError: a value outside its range, or settings that exclude each other, by name.
    """

    # TRL's defaults, changed: precision and checkpointing follow the machine, and every update is logged.
    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 mixed precision; unset: on with an accelerator, off on a CPU."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Trade compute for memory; unset: on with an accelerator, off on a CPU."},
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many updates."})

    clipping: str = field(
        default="fixed",
        metadata={
            "help": "'fixed': the bounds 1 - epsilon and 1 + epsilon_high of TRL. 'balanced': BAPO (arXiv 2510.18927), "
            "bounds searched anew for every update."
        },
    )
    bapo_low: list[float] = field(
        default_factory=lambda: [0.9, 0.98],
        metadata={
            "help": "Start and end of the lower bound, absolute ratios; equal values fix it. The paper's are 0.6 0.9 "
            "(preset bapo_paper); ours did better on stale data (docs/studies/staleness.md)."
        },
    )
    bapo_high: list[float] = field(
        default_factory=lambda: [1.2, 3.0],
        metadata={"help": "Start and end of the upper bound, absolute ratios (paper: 1.2 3.0). Equal values fix it."},
    )
    bapo_low_step: float = field(default=0.02, metadata={"help": "Step of the lower bound (paper: 0.02)."})
    bapo_high_step: float = field(default=0.05, metadata={"help": "Step of the upper bound (paper: 0.05)."})
    bapo_target_share: float = field(
        default=0.55,
        metadata={
            "help": "Share of positive contributions at which the search stops, in (0, 1). The paper's is 0.4, which "
            "group-normalised advantages exceed by themselves."
        },
    )
    bapo_measure: str = field(
        default="gradient",
        metadata={
            "help": "Which contributions are balanced. 'gradient': of the tokens whose gradient survives the clip "
            "(Eq. 5 and 7). 'surrogate': of the clipped objective (Eq. 8 as printed)."
        },
    )
    bapo_scope: str = field(
        default="update",
        metadata={
            "help": "What one search covers. 'update': all micro-batches and ranks of the update, exactly. "
            "'microbatch': each micro-batch for itself, over all ranks. 'lagged': the previous update, free of cost."
        },
    )
    bapo_token_weight: str = field(
        default="uniform",
        metadata={"help": "Weight of a token in the share: 'uniform', or 'rollout' probability (Eq. 8)."},
    )

    polarity: str = field(
        default="off",
        metadata={
            "help": "'papo': reweight advantages by entropy polarity (arXiv 2605.11775) in a closed loop on the "
            "measured entropy. 'positive_only', 'negative_only': ablations, loss only on tokens whose update expands, "
            "or contracts, the entropy. 'off': only measure it."
        },
    )
    papo_signal: str = field(
        default="reference",
        metadata={
            "help": "Where the phase comes from. 'reference': the gap to a reference entropy. 'trend': slow against "
            "fast average of the entropy. 'balance': the measured flows. 'schedule': papo_phases."
        },
    )
    papo_strength: float = field(
        default=0.5,
        metadata={
            "help": "Largest deviation of a branch weight from 1; below 1 wherever a weight would reach 0 "
            "(see papo_quadrants, papo_weight_bounds)."
        },
    )
    papo_quadrants: list[str] = field(
        default_factory=lambda: list(QUADRANTS),
        metadata={
            "help": "Which tokens the phase acts on: expanding_positive, expanding_negative, contracting_positive, "
            "contracting_negative (the second word is the sign of the advantage). All: PAPO."
        },
    )
    papo_phases: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "'schedule': phases in [-1, 1] at equal distances over the run, linear between them."},
    )
    papo_release_after: float = field(
        default=1.0, metadata={"help": "Fraction of the run after which the phase is 0, in (0, 1]; 1: never."}
    )
    papo_weight_form: str = field(
        default="hard", metadata={"help": "'hard': by the sign of the polarity. 'tanh': by tanh(T / papo_tanh_scale)."}
    )
    papo_tanh_scale: float = field(default=0.1, metadata={"help": "'tanh': tendency T0 in nats, > 0."})
    papo_weight_bounds: list[float] | None = field(
        default=None, metadata={"help": "Least and largest branch weight, around 1; weights are clipped to them."}
    )
    papo_reference_entropy: float | None = field(
        default=None, metadata={"help": "Entropy to hold, nats per token; unset: a fraction of the warm-up entropy."}
    )
    papo_reference_fraction: float = field(
        # What served best on the number ladder; .8 cost accuracy on other tasks (docs/studies/entropy_control.md).
        default=0.6,
        metadata={"help": "Entropy to hold as a fraction of the mean over the warm-up updates."},
    )
    papo_width: float = field(default=0.25, metadata={"help": "Relative entropy gap at which the phase saturates."})
    papo_smoothing: float = field(
        default=0.9, metadata={"help": "Weight of the past in the moving average of the entropy, in [0, 1)."}
    )
    papo_slow_smoothing: float = field(
        default=0.99, metadata={"help": "'trend': the same for the slow average, in (papo_smoothing, 1)."}
    )
    papo_warmup_updates: int = field(default=5, metadata={"help": "Updates without reweighting at the start."})
    papo_two_sided: bool = field(
        default=False, metadata={"help": "Also favour contraction while the entropy is above the reference."}
    )
    papo_neutral_zone: float = field(
        default=0.0, metadata={"help": "Tokens with |polarity| up to this keep their advantage, >= 0."}
    )

    replay_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the groups of a rollout batch that are stored ones, in [0, 1); 0: no replay."},
    )
    replay_capacity: int = field(default=256, metadata={"help": "Groups the replay buffer of a process holds."})
    replay_max_age: int | None = field(
        default=None,
        metadata={"help": "Updates after which a stored group is dropped; unset: those of four rollout batches."},
    )
    replay_sampling: str = field(
        default="uniform",
        metadata={
            "help": "How stored groups are drawn: 'uniform', 'age' (weight 1 / (1 + age)) or 'advantage' (mean |A|)."
        },
    )
    rollout_token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Tokens by which a completion may grow per rollout batch; a longer one is stored and continued by "
            "a later policy. Unset: completions are sampled whole."
        },
    )
    entropy_control: str | list[str] = field(
        default="off",
        metadata={
            "help": "Another method of entropy control, as a baseline: clip_higher, wide_clip, entropy_bonus, "
            "adaptive_entropy_bonus, top_entropy (TRL's own, set by name), clip_cov, kl_cov, clip_b, steer, stare, "
            "surprisal, ce_gppo. One, or one of the two clips and one other. See docs/entropy_control.md."
        },
    )
    entropy_control_args: dict | None = field(
        default=None,
        metadata={"help": "Settings of entropy_control that differ from its defaults, as '{fraction: 0.002}'."},
    )
    record_tokens: int = field(
        default=0,
        metadata={
            "help": "Record every token of every n-th update, the first included, in RUN/tokens: Parquet, for "
            "`equipoise report`, pandas, polars, DuckDB. 0: off. 10 costs the training thread less than 1%."
        },
    )
    record_tokens_fraction: float = field(
        default=1.0, metadata={"help": "Share of the samples that are recorded, whole, in (0, 1]."}
    )

    asymmetry_map_every: int = field(
        default=0,
        metadata={
            "help": "Send a figure of the asymmetry map (probability, entropy and polarity of a sample of tokens) to "
            "TensorBoard or wandb every so many updates; 0: never."
        },
    )

    def __post_init__(self) -> None:
        self._fit_machine()
        for name, least in LEAST.items():
            value = getattr(self, name)
            _in_range(self, name, f">= {least}", value is None or least <= value < math.inf)
        _in_range(self, "temperature", "> 0", 0 < self.temperature < math.inf)
        control_settings.set_keys(self)
        super().__post_init__()
        self.bound_grid()
        for name, choices in CHOICES.items():
            _in_range(self, name, "one of " + ", ".join(map(repr, choices)), getattr(self, name) in choices)
        self._check_signal()
        control_settings.check_combinations(self)
        self.polarity_controller()
        _in_range(self, "bapo_target_share", "in (0, 1)", 0 < self.bapo_target_share < 1)
        _in_range(self, "papo_neutral_zone", ">= 0", 0 <= self.papo_neutral_zone < math.inf)
        _in_range(self, "papo_tanh_scale", "> 0", 0 < self.papo_tanh_scale < math.inf)
        _in_range(self, "asymmetry_map_every", ">= 0", self.asymmetry_map_every >= 0)
        if self.asymmetry_map_every and not {"tensorboard", "wandb"} & set(self.report_to or ()):
            raise ValueError(
                f"asymmetry_map_every={self.asymmetry_map_every} needs a tracker that takes figures: report_to must "
                f"name tensorboard or wandb, got report_to={self.report_to!r}"
            )
        check_off_policy(self)
        _in_range(self, "record_tokens_fraction", "in (0, 1]", 0 < self.record_tokens_fraction <= 1)
        if self.clipping == "balanced":
            self._check_balanced()

    def _fit_machine(self) -> None:
        # Without it transformers would take several processes on a CPU for as many runs of one process.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        on_cpu = self.use_cpu
        # transformers renames gradient_checkpointing to activation_checkpointing and deprecates the old name.
        name = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        unset = self.gradient_checkpointing is None and getattr(self, name) is None
        if on_cpu and self.bf16 is None and unset:
            logger.warning("No accelerator in use: training in float32, without gradient checkpointing.")
        if self.bf16 is None:
            self.bf16 = not on_cpu and not self.fp16
        if unset:
            setattr(self, name, not on_cpu)

    def _check_signal(self) -> None:
        """A setting of one phase signal beside another signal would be ignored."""
        given = {
            "papo_two_sided": ("reference", self.papo_two_sided),
            "papo_reference_entropy": ("reference", self.papo_reference_entropy is not None),
            "papo_phases": ("schedule", self.papo_phases != [1.0]),
        }
        for name, (signal, is_given) in given.items():
            if is_given and self.papo_signal != signal:
                raise ValueError(
                    f"{name} belongs to papo_signal={signal!r}, got papo_signal={self.papo_signal!r} and "
                    f"{name}={getattr(self, name)!r}"
                )

    def _check_balanced(self) -> None:
        if self.loss_type not in CLIPPED_LOSSES:
            raise ValueError(
                f"clipping='balanced' needs a loss that clips from both sides: loss_type must be one of "
                f"{', '.join(CLIPPED_LOSSES)}, got loss_type={self.loss_type!r}"
            )
        if self.delta is not None:
            raise ValueError(
                f"clipping='balanced' and delta={self.delta} both bound the ratios of negative tokens; unset one"
            )
        rollout = (self.steps_per_generation or 1) * self.num_iterations
        update = self.gradient_accumulation_steps
        if rollout % update and update % rollout:
            raise ValueError(
                f"clipping='balanced' needs whole updates within a rollout batch: gradient_accumulation_steps="
                f"{update} must divide steps_per_generation * num_iterations = {self.steps_per_generation} * "
                f"{self.num_iterations} = {rollout}, or be a multiple of it"
            )

    @property
    def off_policy(self) -> bool:
        """Whether rollouts go through a store: sample replay or partial rollouts."""
        return self.replay_fraction > 0 or self.rollout_token_budget is not None

    def bound_grid(self) -> BoundGrid:
        """The grid of balanced clipping."""
        for name in ("bapo_low", "bapo_high"):
            _in_range(self, name, "two numbers [start, end]", len(getattr(self, name)) == 2)
        with _prefixed("bapo_"):
            return BoundGrid(
                low=(self.bapo_low[0], self.bapo_low[1]),
                high=(self.bapo_high[0], self.bapo_high[1]),
                low_step=self.bapo_low_step,
                high_step=self.bapo_high_step,
            )

    @property
    def measure(self) -> Measure:
        """The measure that steers the search."""
        return cast(Measure, self.bapo_measure)

    def fixed_bounds(self) -> ClipBounds | None:
        """TRL's epsilons as absolute bounds; None for losses that do not clip from both sides."""
        if self.loss_type not in CLIPPED_LOSSES:
            return None
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        # An epsilon of 1 or more means no lower clip; the ratio itself is always positive.
        return ClipBounds(max(1 - self.epsilon, 1e-12), 1 + high)

    def token_control(self) -> EntropyControl | None:
        """The baseline that acts on single tokens, if one is chosen that is not TRL's own."""
        return control_settings.token_control(self)

    def polarity_controller(self) -> PolarityController:
        """A fresh controller with these settings."""
        with _prefixed("papo_"):
            return PolarityController(
                signal=self._phase_signal(),
                strength=self.papo_strength,
                quadrants=self.papo_quadrants,
                weight_bounds=self.papo_weight_bounds,
                reference_entropy=self.papo_reference_entropy,
                reference_fraction=self.papo_reference_fraction,
                smoothing=self.papo_smoothing,
                slow_smoothing=self.papo_slow_smoothing,
                warmup_updates=self.papo_warmup_updates,
                release_after=self.papo_release_after,
            )

    def _phase_signal(self) -> PhaseSignal:
        if self.papo_signal == "trend":
            return TrendSignal(width=self.papo_width)
        if self.papo_signal == "balance":
            return BalanceSignal()
        if self.papo_signal == "schedule":
            return ScheduleSignal(phases=tuple(self.papo_phases))
        return ReferenceSignal(width=self.papo_width, two_sided=self.papo_two_sided)


OWN_FIELDS = tuple(f.name for f in fields(EquipoiseConfig) if f.name not in {g.name for g in fields(GRPOConfig)})
"""What equipoise adds to `GRPOConfig`, for `--help`."""


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    """Names a field of the core as the configuration calls it: 'strength must be …' -> 'papo_strength must be …'."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _in_range(config: EquipoiseConfig, name: str, rule: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {name}={getattr(config, name)!r}")
