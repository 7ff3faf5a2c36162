"""The keys of equipoise in verl's configuration: `actor_rollout_ref.actor.policy_loss.equipoise`.

They are those of a run on TRL, as far as they concern an update, with the same presets; what is verl's own (learning
rate, batch sizes, fixed clip bounds) stays where verl has it.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.workers.config import PolicyLossConfig

from equipoise.errors import InputError, require
from equipoise.settings import reading
from equipoise.settings.batches import RolloutBatch
from equipoise.settings.presets import with_preset
from equipoise.settings.records import RecordSettings
from equipoise.settings.steering import SteeringSettings

LOSS_MODE = "equipoise"
"""Name under which verl knows the loss: `actor_rollout_ref.actor.policy_loss.loss_mode`."""

PLACE = "actor_rollout_ref.actor.policy_loss.equipoise"

_WHOLE_UPDATE = RolloutBatch(rows=1, micro_batches=1, passes=1, accumulated=1, group_size=1)
"""verl gives every update all its data at once: the rules about updates that begin in one batch and end in another
never apply."""

_HOSTS = {"epsilon": "clip_ratio_low", "epsilon_high": "clip_ratio_high"}
"""Keys of TRL in presets, and where verl has the same (actor_rollout_ref.actor)."""

_TRL_ONLY = ("asymmetry_map_every", "print_samples")


@dataclass
class VerlSettings(RecordSettings, SteeringSettings):
    """Everything that equipoise can be told in a verl run.

    Raises:
        InputError: a value outside its range, or settings that exclude each other, by name.
    """

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Run folder that `equipoise report` and `equipoise doctor` read: metrics.jsonl with one line per "
            "update, token records. A path that every node of the trainer sees. Unset: scalars in verl's loggers only."
        },
    )

    def __post_init__(self) -> None:
        try:
            self.check_steering(_WHOLE_UPDATE)
            self.check_records([])
            require("output_dir", self.output_dir, "a folder", self.output_dir is None or bool(self.output_dir.strip()))
            needed = not self.record_tokens or self.output_dir is not None
            require("output_dir", self.output_dir, "a folder where record_tokens is on", needed)
        except ValueError as error:
            raise InputError(f"{PLACE}: {error}") from error


def known_keys() -> dict[str, Any]:
    """Every key with its type."""
    hints = typing.get_type_hints(VerlSettings)
    names = [f.name for f in dataclasses.fields(VerlSettings) if f.name not in _TRL_ONLY]
    return {name: hints[name] for name in names} | {"preset": str | None}


def settings_of(values: Mapping[str, Any]) -> VerlSettings:
    """Settings from the keys as verl's configuration has them.

    Raises:
        InputError: an unknown key, with the nearest one; a value of the wrong type or out of its range; settings that
            exclude each other.
    """
    known = known_keys()
    for key in values.keys() & _HOSTS.keys():  # the nearest key of ours would be another thing
        raise InputError(f"{PLACE}: {key} is not known: verl has actor_rollout_ref.actor.{_HOSTS[key]} in its place")
    checked = reading.checked_keys(values, f"{PLACE}: ", known)
    try:
        merged = with_preset(checked)
    except InputError as error:
        raise InputError(f"{PLACE}: {error}") from None
    for key in merged.keys() - known.keys():
        raise InputError(
            f"{PLACE}: preset={checked.get('preset')!r} sets {key}, which verl has itself: set "
            f"actor_rollout_ref.actor.{_HOSTS.get(key, key)}={merged[key]} in its place"
        )
    return VerlSettings(**{key: value for key, value in merged.items() if key != "preset"})


@dataclass
class EquipoiseLossConfig(PolicyLossConfig):
    """verl's settings of the policy loss, with the keys of equipoise.

    In verl's configuration: `actor_rollout_ref.actor.policy_loss._target_=equipoise.verl.EquipoiseLossConfig` and
    `+actor_rollout_ref.actor.policy_loss.equipoise={clipping: balanced, polarity: papo}`.

    Attributes:
        equipoise: the keys of `VerlSettings`; a preset counts as on TRL.

    Raises:
        InputError: as `settings_of`; keys of equipoise under another loss.
    """

    equipoise: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss_mode != LOSS_MODE:
            raise InputError(
                f"actor_rollout_ref.actor.policy_loss.loss_mode must be {LOSS_MODE!r} with EquipoiseLossConfig, got "
                f"loss_mode={self.loss_mode!r}"
            )
        self.settings()

    def settings(self) -> VerlSettings:
        """The checked keys."""
        values = OmegaConf.to_container(self.equipoise) if isinstance(self.equipoise, DictConfig) else self.equipoise
        require(PLACE, values, "a mapping of keys to values", isinstance(values, Mapping), error=InputError)
        return settings_of({str(key): value for key, value in values.items()})


def settings_in(policy_loss: PolicyLossConfig) -> VerlSettings:
    """The settings of a loss configuration; the defaults where it is verl's own class, which has no keys for them."""
    return policy_loss.settings() if isinstance(policy_loss, EquipoiseLossConfig) else VerlSettings()
