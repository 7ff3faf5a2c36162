"""`EquipoiseConfig`: TRL's `GRPOConfig` with the keys of equipoise."""

import copy
import dataclasses
import logging
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig

from equipoise.errors import require
from equipoise.redaction import redacted
from equipoise.settings.batches import RolloutBatch
from equipoise.settings.clipping import require_choice
from equipoise.settings.records import RecordSettings
from equipoise.settings.rollouts import RolloutSettings
from equipoise.settings.steering import SteeringSettings
from equipoise.trl.own_methods import CLIPPED_LOSSES, TRL_METHODS
from equipoise.trl.ranges import check_choices, check_ranges
from equipoise.types import ClipBounds

logger = logging.getLogger("equipoise")

PLAIN_SOFTMAX = {
    "top_k": (None, 0),
    "top_p": (None, 1.0),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "generation_kwargs": (None, {}),
}
"""Values of TRL's settings under which samples come from the softmax whose log-probs the loss knows."""

TRUNCATING = ("top_k", "top_p", "min_p", "repetition_penalty")
"""Those of them that change the softmax by themselves."""


@dataclass
class EquipoiseConfig(RecordSettings, SteeringSettings, RolloutSettings, GRPOConfig):
    """Settings of one run: everything of TRL's `GRPOConfig`, and what equipoise adds.

    With `clipping="fixed"` and `polarity="off"` the trainer computes what TRL's computes. On a machine without
    accelerator, bf16 and gradient checkpointing are off unless they are asked for: bf16 products run an order of
    magnitude slower than float32 on most CPUs.

    Raises:
        ValueError: a value outside its range, or settings that exclude each other, by name.
    """

    host_methods = TRL_METHODS

    # TRL's defaults, changed: precision and checkpointing follow the machine.
    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 mixed precision; unset: on with an accelerator, off on a CPU."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Trade compute for memory; unset: on with an accelerator, off on a CPU."},
    )

    def __post_init__(self) -> None:
        self._fit_machine()
        check_ranges(vars(self))
        self._set_host_keys()
        super().__post_init__()
        check_choices(vars(self))
        self._check_host_values()
        batch = self.rollout_batch()
        self.check_steering(batch)
        self.check_rollouts(batch)
        self.check_records(list(self.report_to or ()))
        if self.off_policy:
            self._check_off_policy()
        if self.clipping == "balanced":
            self._check_balanced(batch)
        if self.sets_gradient:
            self._check_gradients()
        if not self.off_policy:
            self._warn_of_truncation()
        self._check_machine()

    @classmethod
    def of_trl(cls, config: GRPOConfig) -> "EquipoiseConfig":
        """TRL's settings as TRL has checked and completed them, and the features of equipoise off."""
        # Made without __post_init__: TRL's cannot be applied twice, and ours fits defaults that this user has chosen.
        own = cls.__new__(cls)
        for part in (part for part in fields(cls) if part.name in OWN_FIELDS):
            made = part.default_factory
            setattr(own, part.name, part.default if made is MISSING else made())
        vars(own).update(vars(config))
        return own

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: transformers writes one beside every model, in which no token of the hub may stand."""
        return {name: redacted(value, name) for name, value in vars(self).items()}

    def __deepcopy__(self, memory: dict[int, Any]) -> "EquipoiseConfig":
        """A copy, with its secrets: it stays in this process."""
        own = type(self).__new__(type(self))
        memory[id(self)] = own
        vars(own).update(copy.deepcopy(vars(self), memory))
        return own

    def __copy__(self) -> "EquipoiseConfig":
        """As `__deepcopy__`."""
        own = type(self).__new__(type(self))
        vars(own).update(vars(self))
        return own

    def _check_host_values(self) -> None:
        """What transformers says of its settings, but does not hold them to."""
        for setting in fields(self):
            name, value, choices = setting.name, getattr(self, setting.name), setting.metadata.get("choices")
            if choices and value is not None:
                require_choice(name, value, tuple(choices))
            if name.endswith("_kwargs"):  # text that begins a mapping has become one
                require(name, value, "a mapping", not isinstance(value, str))

    def _check_machine(self) -> None:
        for name in ("use_transformers_paged", "use_transformers_continuous_batching"):
            if getattr(self, name, False) and self.use_cpu:
                raise ValueError(f"{name} needs an accelerator: on a CPU it never ends")

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

    def _set_host_keys(self) -> None:
        """TRL's keys for a method of entropy control that is TRL's, before TRL reads them."""
        self.check_entropy_control()
        for key, value in self.host_keys().items():
            if getattr(self, key) not in (_TRL_DEFAULTS[key], value):
                raise ValueError(
                    f"entropy_control={self.entropy_control!r} sets {key}={value}, got {key}={getattr(self, key)} as "
                    f"well: give one"
                )
            setattr(self, key, value)

    def rollout_batch(self) -> RolloutBatch:
        """How a rollout batch is cut into micro-batches and updates, on one process."""
        return RolloutBatch.of(vars(self))

    def fixed_bounds(self) -> ClipBounds | None:
        """TRL's epsilons as absolute bounds; None for losses that do not clip from both sides."""
        if self.loss_type not in CLIPPED_LOSSES:
            return None
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        # An epsilon of 1 or more means no lower clip; the ratio itself is always positive.
        return ClipBounds(max(1 - self.epsilon, 1e-12), 1 + high)

    def _check_balanced(self, batch: RolloutBatch) -> None:
        self._require_clipped_loss("clipping='balanced'")
        if self.delta is not None:
            self._check_dual_clip(self.delta)
        batch.require_whole_updates("clipping='balanced'", may_span=True)
        if self.off_policy and self.bapo_scope == "update":
            # With older tokens there is always something to search, and a search needs all data of the update.
            batch.require_whole_updates(
                f"{self.off_policy_key} with clipping='balanced'", instead="or set bapo_scope to 'lagged'"
            )

    def _check_dual_clip(self, delta: float) -> None:
        """Below the upper bound delta would clip positive tokens too, which the search does not know."""
        if delta < self.bapo_high[1]:
            raise ValueError(
                f"clipping='balanced' needs delta >= the end of bapo_high, got delta={delta}, "
                f"bapo_high={self.bapo_high}"
            )
        if self.bapo_measure == "surrogate":
            raise ValueError(f"delta={delta} does not go with bapo_measure='surrogate'; use 'gradient'")

    def _check_gradients(self) -> None:
        self._require_clipped_loss(f"entropy_control={self.entropy_control!r}")
        level = self.importance_sampling_level
        self.refuse("importance_sampling_level", level, level == "sequence", "it acts on the ratios of single tokens")
        for key in ("off_policy_mask_threshold", "delta"):
            value = getattr(self, key)
            self.refuse(key, value, value is not None, "both act on tokens far from the rollout policy")
        corrected = bool(self.beta) and bool(self.use_bias_correction_kl)
        self.refuse(
            "use_bias_correction_kl", self.use_bias_correction_kl, corrected,
            "the KL term would be scaled by changed ratios",
        )  # fmt: skip

    def _require_clipped_loss(self, needed_by: str) -> None:
        if self.loss_type not in CLIPPED_LOSSES:
            raise ValueError(
                f"{needed_by} needs a loss that clips from both sides: loss_type must be one of "
                f"{', '.join(CLIPPED_LOSSES)}, got loss_type={self.loss_type!r}"
            )

    def _warn_of_truncation(self) -> None:
        cut = {name: getattr(self, name) for name in TRUNCATING if getattr(self, name) not in PLAIN_SOFTMAX[name]}
        if cut:
            logger.warning(
                "%s: completions come from a changed softmax, but entropies, polarities and (but for vLLM's log-probs) "
                "ratios are of the plain one; no correction is made for the difference.",
                ", ".join(f"{name}={value}" for name, value in cut.items()),
            )

    def _check_off_policy(self) -> None:
        """The log-probs must be those of the distribution that was sampled, and that of the softmax the loss knows."""
        name = self.off_policy_key
        if self.replay_fraction and self.sync_ref_model:
            raise ValueError(
                "replay_fraction does not go with sync_ref_model: stored reference log-probs would be stale"
            )
        for setting, values in PLAIN_SOFTMAX.items():
            value = getattr(self, setting)
            if value not in values:
                raise ValueError(
                    f"{name} needs samples from the plain softmax, whose log-probs the loss takes ratios against: "
                    f"leave {setting} at its default, got {setting}={value!r}"
                )
        if self.use_transformers_continuous_batching:
            raise ValueError(f"{name} needs behaviour log-probs; use_transformers_continuous_batching gives none")
        if self.use_vllm and self.vllm_importance_sampling_correction:
            raise ValueError(
                f"{name} takes every ratio against the log-probs that vLLM sampled with; a second correction would "
                f"count twice: set vllm_importance_sampling_correction=False"
            )


_TRL_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
OWN_FIELDS = tuple(f.name for f in fields(EquipoiseConfig) if f.name not in _TRL_DEFAULTS)
"""What equipoise adds to `GRPOConfig`, for `--help`."""
