"""Steering the updates of verl's engine: each is opened before its first forward pass and closed before its step.

The engine makes all forward and backward passes of an update in one call, `forward_backward_batch`, with a loss that it
calls for every micro-batch. Around that call stands this module; nothing of the engine is replaced.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.engine import BaseEngine

from equipoise.steering import MicroBatch, Steered, Steering, Update
from equipoise.types import ClipBounds
from equipoise.verl.loss import bounds_in_force
from equipoise.verl.origin import VERSION, Origin
from equipoise.verl.recording import RunFolder
from equipoise.verl.settings import VerlSettings
from equipoise.verl.statistics import packed_statistics, response_statistics, sequence_identity

PREFIX = "equipoise/"

LOG_RATIO_LIMIT = 20.0
"""Beyond it, in both directions, verl's loss cuts the log of a ratio."""

OnMicroBatch = Callable[[dict[str, Tensor], TensorDict], tuple[Tensor, dict[str, Any]]]


class SteeredUpdates:
    """What is put around verl's engine in a worker.

    Args:
        config: of the actor.
        settings: of equipoise.
        steering: of the run.
        folder: that is written while it goes; None without.

    Attributes:
        number: optimizer updates so far.
        origin: of the rollouts in use; set before the first update of a step.
        progress: fraction of the run that is done with the update in progress, in [0, 1].
    """

    def __init__(self, config: ActorConfig, settings: VerlSettings, steering: Steering, folder: RunFolder | None):
        self.config, self.settings, self.steering, self.folder = config, settings, steering, folder
        self.number = 0
        self.origin: Origin | None = None
        self.progress = 0.0

    def around(self, engine: BaseEngine) -> None:
        """Stand around the engine's passes from now on."""
        passes = engine.forward_backward_batch

        @functools.wraps(passes)
        def steered(data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
            if forward_only:
                return passes(data, loss_function, forward_only=True)
            return self._update(passes, data, loss_function)

        engine.forward_backward_batch = steered

    def _update(self, passes: Callable[..., Any], data: TensorDict, loss_function: Any) -> Any:
        """All passes of one update; its scalars go into the metrics that verl collects."""
        assert self.origin is not None, "an update without a step"
        moved = self.origin.from_rollout or self.number > self.origin.old_policy
        update = self.steering.open(self.number, moved=moved, several=_has_several(data))
        if update.needs_preview:
            batches: list[MicroBatch] = []
            control = self.steering.token_control
            of_verl = tu.get_non_tensor_data(data, "calculate_entropy", False)
            # A search for bounds reads ratios alone, marks the entropies too, and nothing that of verl.
            reads_entropy = control is not None and control.needs_preview
            tu.assign_non_tensor(data, distillation_use_topk=reads_entropy, calculate_entropy=False)
            with torch.no_grad():
                passes(data, _Passed(functools.partial(self._previewed, batches)), forward_only=True)
            self.steering.preview(update, batches)
            tu.assign_non_tensor(data, calculate_entropy=of_verl)
        tu.assign_non_tensor(data, distillation_use_topk=True)
        output = passes(data, _Passed(functools.partial(self._steered, update, loss_function)), forward_only=False)
        values = {PREFIX + name: x for name, x in self.steering.close(update, progress=self.progress).items()}
        self.number += 1
        output["metrics"] |= {name: [value] for name, value in values.items() if value == value}
        return output

    def _previewed(
        self, batches: list[MicroBatch], model_output: dict[str, Tensor], data: TensorDict
    ) -> tuple[Tensor, dict[str, Any]]:
        batches.append(self._micro_batch(model_output, data))
        return batches[-1].ratio.new_zeros(()), {}

    def _steered(
        self, update: Update, loss_function: Any, model_output: dict[str, Tensor], data: TensorDict
    ) -> tuple[Tensor, dict[str, Any]]:
        batch = self._micro_batch(model_output, data)
        steered = self.steering.steer(update, batch)
        if self.folder is not None:
            self.folder.record(update, data, batch, steered)
        balanced = self.settings.clipping == "balanced"
        with bounds_in_force(steered.bounds if balanced else None):
            return loss_function(model_output=model_output, data=self._given(data, steered))

    def _given(self, data: TensorDict, steered: Steered) -> TensorDict:
        """The micro-batch as the loss is to read it."""
        data = data.copy()
        if self.settings.polarity != "off" or steered.is_set is not None:
            data["advantages"] = _like(data["advantages"], steered.advantage)
        if steered.old_logprob is not None:
            data["old_log_probs"] = _like(data["old_log_probs"], steered.old_logprob)
        return data

    @torch.no_grad()
    def _micro_batch(self, model_output: dict[str, Tensor], data: TensorDict) -> MicroBatch:
        """What verl's loss makes of its inputs, as steering needs it."""
        statistics = response_statistics(model_output, data)
        names = ["response_mask", "loss_mask", "old_log_probs", "advantages", "rollout_log_probs", "rollout_is_weights"]
        rows = data.select(*(name for name in names if name in data)).to_padded_tensor()
        action_mask = rows["loss_mask"].bool()
        old = _in_reach(rows["old_log_probs"], statistics.logprob)
        staleness = (self.number - data[VERSION])[:, None].expand_as(action_mask)
        return MicroBatch.of(
            statistics,
            old_logprob=old,
            advantage=rows["advantages"],
            action_mask=action_mask,
            loss_mask=action_mask & rows["response_mask"].bool(),
            staleness=staleness,
            rollout_weight=self.settings.bapo_token_weight == "rollout",
            correction=rows.get("rollout_is_weights", None),
            dual_clip=self.config.clip_ratio_c,
            engine_log_ratio=self._engine_log_ratio(
                statistics.logprob, rows["old_log_probs"], rows.get("rollout_log_probs", None), staleness
            ),
            row=None if self.steering.token_control is None else sequence_identity(data),
        )

    def _engine_log_ratio(
        self, logprob: Tensor, old: Tensor, rollout: Tensor | None, staleness: Tensor
    ) -> Float[Tensor, "batch time"] | None:
        """Log-probs of the rollout policy, the trainer's less the engine's; NaN where only the engine's are known."""
        assert self.origin is not None
        if rollout is None:
            return None
        known: Bool[Tensor, "batch time"]
        if self.origin.from_rollout:
            ours, known = logprob, staleness == 0
        else:
            ours, known = old, staleness == self.number - self.origin.old_policy
        return (ours - rollout).where(known, torch.nan)


class _Passed:
    """A loss as verl's engine calls it: with the logits of a micro-batch first, then with what came of them."""

    def __init__(self, on_micro_batch: OnMicroBatch):
        self.on_micro_batch = on_micro_batch

    def __call__(
        self,
        model_output: dict[str, Tensor] | None = None,
        data: TensorDict | None = None,
        dp_group: Any = None,
        student_logits: Tensor | None = None,
        **_: Any,
    ) -> Any:
        assert data is not None
        if student_logits is not None:
            return packed_statistics(student_logits, data)
        assert model_output is not None
        return self.on_micro_batch(model_output, data)


def _has_several(data: TensorDict) -> bool:
    """Whether the update may have more than one micro-batch on some rank; all ranks must say the same."""
    if tu.get_non_tensor_data(data, "use_dynamic_bsz", True):
        return True  # how many there are follows from the lengths of all ranks' sequences
    return len(data) > tu.get_non_tensor_data(data, "micro_batch_size_per_gpu", 1)


def _in_reach(old: Tensor, logprob: Tensor) -> Tensor:
    """Old log-probs as verl's loss counts them: no log ratio beyond its limit, where a ratio would overflow."""
    log_ratio = logprob - old
    return torch.where(
        log_ratio.abs() > LOG_RATIO_LIMIT, logprob - log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), old
    )


def _like(column: Any, padded: Tensor) -> Tensor:
    """Values [batch, time] in the form that verl has the column in."""
    if not column.is_nested:
        return padded
    rows = [row[:length] for row, length in zip(padded, column.offsets().diff().tolist(), strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def fixed_bounds(config: ActorConfig) -> ClipBounds:
    """verl's clip as absolute bounds."""
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    # A range of 1 or more means no lower clip; the ratio itself is always positive.
    return ClipBounds(max(1 - low, 1e-12), 1 + high)
