"""`EquipoiseTrainer`: TRL's GRPOTrainer with balanced clipping and polarity control, for every loss type of TRL.

The seam: TRL's `_compute_loss` first asks for the statistics of the policy and only then reads the advantages and the
clip bounds. When the statistics arrive, this trainer measures them, finds the bounds where they are not known yet, and
puts reweighted advantages and bounds where TRL will read them. No mathematics lives here; see `equipoise`.
"""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false
# pyright: reportOptionalSubscript=false
# (transformers types what a trainer holds as optional, or as one of many kinds)

import functools
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.utils.data import Sampler
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from equipoise.balance import BoundGrid, BoundsSelection, Contribution, select_bounds
from equipoise.controllers import LaggedBounds, PolarityController
from equipoise.errors import InputError
from equipoise.models.statistics_head import add_statistics_head
from equipoise.ratios import importance_ratio, sequence_importance_ratio
from equipoise.steering.polarity import advantage_by_polarity, observed
from equipoise.steering.token_control import Part, TokenControl
from equipoise.steering.update import MicroBatch, Update
from equipoise.steering.watches import IdleWatch, RatioWatch
from equipoise.trl.asymmetry_map import AsymmetryMap
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.episodes import Transcript
from equipoise.trl.off_policy_rollouts import OffPolicyRollouts
from equipoise.trl.resumable import ResumableTrainer
from equipoise.trl.seams import EpochSampler, OutputRecorder
from equipoise.trl.sharding import check_savable, keep_float32_outputs, shard_on_cpu
from equipoise.trl.token_recording import TokenRecording
from equipoise.types import ClipBounds, TokenStatistics

logger = logging.getLogger("equipoise")

METRIC_PREFIX = "equipoise/"


class DivergedError(InputError):
    """The policy gives NaN or infinities: nothing that is trained further can be used."""


class EquipoiseTrainer(ResumableTrainer):
    """TRL's `GRPOTrainer` with `EquipoiseConfig`. Arguments are TRL's.

    With clipping="fixed" and polarity="off" losses and gradients are TRL's. Every update is measured either way; the
    scalars are logged with the prefix `equipoise/`. Bounds and branch weights are constant within an update, and the
    same for any split of it into micro-batches and ranks.

    Raises:
        TypeError: when `args` is no EquipoiseConfig.
    """

    _tag_names = ["trl", "grpo", "equipoise"]  # noqa: RUF012

    def __init__(self, model, reward_funcs=None, args: GRPOConfig | None = None, **kwargs):
        if not isinstance(args, EquipoiseConfig):
            raise TypeError(f"args must be an EquipoiseConfig, got {type(args).__name__}")
        self._on_statistics: Callable[[TokenStatistics], None] | None = None
        super().__init__(model, reward_funcs, args, **kwargs)
        base = cast(Any, self.model).get_base_model() if is_peft_model(self.model) else self.model
        add_statistics_head(base, temperature=self.temperature)
        self.polarity_controller: PolarityController | None = (
            args.polarity_controller() if args.polarity == "papo" else None
        )
        self.lagged_bounds: LaggedBounds | None = (
            LaggedBounds(args.bound_grid(), target_share=args.bapo_target_share)
            if args.clipping == "balanced" and args.bapo_scope == "lagged"
            else None
        )
        self.off_policy = OffPolicyRollouts(self) if args.off_policy else None
        self.watches = (IdleWatch(), RatioWatch(args.learning_rate))
        control = args.token_control()
        self.token_control = None if control is None else TokenControl(control, self.accelerator, args.seed)
        self._previewed: list[Part] | None = None
        self.asymmetry_map = (
            AsymmetryMap(self, args.asymmetry_map_every, args.seed) if args.asymmetry_map_every else None
        )
        if self.asymmetry_map is not None:
            self.add_callback(self.asymmetry_map)
        self._update: Update | None = None
        self._last_entropy = math.nan
        self._rollout_step = 0  # the policy version, in updates, that sampled the rollout batch in use
        self._rollout_reward = math.nan
        self._recording: TokenRecording | None = None
        if args.record_tokens:
            self._recording = TokenRecording(args, self._tokenizer, self.accelerator)
            self.add_callback(self._recording)

    def create_accelerator_and_postprocess(self) -> None:
        """transformers' own, within its constructor; what it makes, reference models are sharded with as well."""
        shard_on_cpu(self.args)
        super().create_accelerator_and_postprocess()
        keep_float32_outputs(self.accelerator)
        check_savable(self.accelerator)

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs):
        training, score = self.model.training, super()._generate_and_score_completions
        try:
            batch = self.off_policy.rollout(inputs, score) if self.off_policy and training else score(inputs)
        except RuntimeError as error:  # torch's sampling refuses NaN
            if all(p.isfinite().all() for p in self.model.parameters()):
                raise
            raise self._diverged() from error
        if training:
            self._rollout_step = self.state.global_step
            self._rollout_reward = self._metrics["train"]["reward"][-1]
            for name, value in (self.off_policy.metrics if self.off_policy else {}).items():
                self._metrics["train"][METRIC_PREFIX + name].append(value)
            if self._recording is not None:
                batch |= self._recording.samples(batch, self._rewards, self.reward_weights, self._step)
        return batch

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        sample = super()._generate_single_turn
        if self.off_policy is None or not self.model.training:
            return sample(prompt_ids, *args, **kwargs)
        return self.off_policy.generate(sample, prompt_ids, *args, **kwargs)

    def _tool_call_loop(self, prompts, prompt_ids, completion_ids, completions, *args):  # pyright: ignore
        if self.environments:
            most = self.max_tool_calling_iterations
            completions = [Transcript(*pair, most) for pair in zip(completions, self.environments, strict=True)]
        return super()._tool_call_loop(prompts, prompt_ids, completion_ids, completions, *args)

    def _get_train_sampler(self, dataset=None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        return EpochSampler(sampler) if isinstance(sampler, RepeatSampler) else sampler

    # ---- one micro-batch ----------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        inputs = dict(inputs)  # the buffered batch is used again: its advantages must stay as they are
        if self._update is None:
            self._update = self._open_update(model)
            self._mark_ahead(model, self._update)
        self._on_statistics = functools.partial(self._steer, self._update, inputs)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._on_statistics = None
        if self.accelerator.sync_gradients:
            self._close_update(self._update)
            self._update = None
        return loss

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        if self.off_policy is not None and self.off_policy.knows_logprobs:
            return None, None, None
        if self._on_statistics is None:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        statistics, result = self._statistics(model, *args, **kwargs)
        self._on_statistics(statistics)
        return result

    def _statistics(self, model, *args, **kwargs) -> tuple[TokenStatistics, tuple]:
        """Statistics [batch, time] of the completions, and what TRL's own method returns for the same forward pass."""
        recorder = OutputRecorder(model)
        result = super()._get_per_token_logps_and_entropies(recorder, *args, **kwargs)
        logprob, width = result[0], result[0].shape[1]
        entropy, tendency, correction = (
            torch.cat([output[name][:, -width:] for output in recorder.outputs])
            for name in ("entropy", "tendency", "correction")
        )
        return TokenStatistics(logprob, entropy, tendency, correction), result

    def _steer(self, update: Update, inputs: dict[str, Any], statistics: TokenStatistics) -> None:
        """Measure a micro-batch, and leave bounds and advantages where TRL's loss reads them."""
        batch, old = self._micro_batch(inputs, statistics), inputs.get("old_per_token_logps")
        contribution = None if update.grid is None else batch.contribution(update.grid, update.measure)
        if contribution is not None and (update.selection is None or update.searches_each):
            update.selection = self._select(contribution)
        update.add(batch, contribution)
        if self.asymmetry_map is not None:
            self.asymmetry_map.observe(batch)
        if self.args.clipping == "balanced":
            self.epsilon_low, self.epsilon_high = 1 - update.bounds.low, update.bounds.high - 1
        advantage = advantage_by_polarity(self.args, update.weights, batch)
        if self.args.polarity != "off":
            inputs["advantages"] = advantage
        if self.token_control is not None:
            part = Part(inputs, batch)
            update.marks = update.marks or self.token_control.marks([part], self.state.global_step)
            self.token_control.steer(part, advantage, update.marks.pop(0), update.bounds)
        if self._recording is not None:
            self._recording.record(self.state.global_step + 1, self._rollout_step, inputs, batch, update.selection, old)

    @torch.no_grad()
    def _micro_batch(self, inputs: dict[str, Any], statistics: TokenStatistics) -> MicroBatch:
        """What TRL's loss makes of its inputs, as the measures need it."""
        action_mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            action_mask = action_mask & inputs["tool_mask"].bool()
        logprob = statistics.logprob.detach()
        behavior = inputs.get("old_per_token_logps")
        behavior = logprob if behavior is None else behavior
        if self.importance_sampling_level == "sequence":
            ratio = sequence_importance_ratio(logprob, behavior, action_mask).expand_as(logprob)
        else:
            ratio = importance_ratio(logprob, behavior)
        if not ratio[action_mask].isfinite().all():
            raise self._diverged()
        advantage = inputs["advantages"]
        advantage = (advantage.unsqueeze(1) if advantage.dim() == 1 else advantage).expand_as(logprob)
        weight = behavior.exp() if self.args.bapo_token_weight == "rollout" else None
        correction = inputs.get("importance_sampling_ratio")  # of the mismatch between vLLM and the trainer
        if correction is not None:
            correction = correction.expand_as(logprob)
            weight = correction if weight is None else weight * correction
        loss_mask = action_mask & self._host_mask(inputs, statistics, behavior, advantage, action_mask)
        version = inputs.get("policy_version", torch.full_like(inputs["completion_ids"], self._rollout_step))
        staleness = self.state.global_step - version
        return MicroBatch(statistics, ratio, advantage, action_mask, loss_mask, weight, staleness)

    def _host_mask(self, inputs, statistics, behavior, advantage, action_mask) -> Tensor:
        """Tokens that TRL's own options leave in the loss: the 80/20 rule and the off-policy sequence mask."""
        kept = torch.ones_like(action_mask)
        if self.top_entropy_quantile < 1:
            kept = self.get_high_entropy_mask(statistics.entropy, action_mask, 1 - self.top_entropy_quantile)
        if self.off_policy_mask_threshold is not None:
            kept = (
                kept
                & self.get_off_policy_mask(
                    advantages=advantage,
                    per_token_logps=statistics.logprob,
                    sampling_per_token_logps=inputs.get("sampling_per_token_logps", behavior),
                    mask=action_mask,
                    off_policy_threshold=self.off_policy_mask_threshold,
                ).bool()
            )
        return kept

    def _diverged(self) -> DivergedError:
        return DivergedError(
            f"update {self.state.global_step + 1}: training has diverged, the policy gives probabilities that are not "
            f"finite; start again with a lower learning_rate (now {self.args.learning_rate})"
        )

    # ---- one update ---------------------------------------------------------------------------------------------

    def _open_update(self, model) -> Update:
        """Bounds and weights of the update that begins: all that must be known before its first backward pass."""
        weights = self.polarity_controller.weights if self.polarity_controller else None
        measure = self.args.measure
        if self.args.clipping == "fixed":
            bounds = self.args.fixed_bounds()
            if bounds is None:
                return Update(weights, None, measure, None)
            grid = BoundGrid.fixed(bounds)
            return Update(weights, grid, measure, _start_of(grid, inactive=False))
        grid = self.args.bound_grid()
        if self.off_policy is None and self.state.global_step == self._rollout_step:
            # The policy has not moved since the rollout: every ratio is 1, up to rounding, and no bound matters.
            # Stored groups and carried-over segments were sampled by earlier policies.
            return Update(weights, grid, measure, _start_of(grid, inactive=True))
        if self.lagged_bounds is not None:
            return Update(weights, grid, measure, self.lagged_bounds.selection)
        each = self.args.bapo_scope == "microbatch"
        if each or self.current_gradient_accumulation_steps == 1:
            # The only micro-batch is the whole update: its own forward pass will tell, before its backward pass.
            return Update(weights, grid, measure, None, searches_each=each)
        return Update(weights, grid, measure, self._search(model, grid))

    def _search(self, model, grid: BoundGrid) -> BoundsSelection:
        """The bounds of the update, from a pass without gradients over all its micro-batches."""
        self._previewed = self._preview(model)
        first, *others = (part.batch.contribution(grid, self.args.measure) for part in self._previewed)
        return self._select(sum(others, start=first))

    def _mark_ahead(self, model, update: Update) -> None:
        """What `entropy_control` decides over several micro-batches, before the first backward pass of the update."""
        control, several = self.token_control, self.current_gradient_accumulation_steps > 1
        if control is not None and control.needs_preview and several:
            update.marks = control.marks(self._previewed or self._preview(model), self.state.global_step)
        self._previewed = None

    @torch.no_grad()
    def _preview(self, model) -> list[Part]:
        """All micro-batches of the update that begins, measured in a pass without gradients."""
        slices = self.args.steps_per_generation or 1
        numbers = range(self._step, self._step + self.current_gradient_accumulation_steps)
        inputs = [self._buffered_inputs[number % slices] for number in numbers]
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return [Part(part, self._forward(model, part)) for part in inputs]

    def _forward(self, model, inputs: dict[str, Any]) -> MicroBatch:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        extras = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
        statistics, _ = self._statistics(
            model, ids, mask, inputs["completion_ids"].shape[1], compute_entropy=True, **extras
        )
        return self._micro_batch(inputs, statistics)

    def _select(self, local: Contribution) -> BoundsSelection:
        """The bounds that balance what this rank and the others contribute; one all-reduce."""
        whole = local.with_vector(self._all_reduce(local.vector).cpu())
        return select_bounds(whole, local.grid, target_share=self.args.bapo_target_share)

    def _all_reduce(self, vector: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(vector, reduction="sum"))

    def _close_update(self, update: Update) -> None:
        """Reduce what was measured, log it, and let the controller observe it."""
        measures = update.reduce(self._all_reduce)
        values = measures.metrics() | {"rollout_reward": self._rollout_reward}
        if math.isfinite(change := measures.entropy - self._last_entropy):
            values["entropy_change"] = change
        self._last_entropy = measures.entropy
        for watch in self.watches:
            watch.observe(measures, self.state.global_step + 1)
        if self.lagged_bounds is not None and measures.contribution is not None and measures.num_tokens:
            self.lagged_bounds.observe(measures.contribution)
        if self.polarity_controller is not None:
            values |= observed(self.polarity_controller, measures, self._progress(self.state.global_step + 1))
        if self.token_control is not None:
            values |= self.token_control.metrics(self._all_reduce)
        for name, value in values.items():
            self._metrics["train"][METRIC_PREFIX + name].append(value)


_MODEL_INPUTS = tuple(
    name
    for name in inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    if name not in ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size")
    and not name.startswith("compute_")
)
"""The optional inputs of the model (images and the like) that TRL's statistics take by name."""


def _start_of(grid: BoundGrid, *, inactive: bool) -> BoundsSelection:
    """The first point of the grid, without a search; shares are measured with the update."""
    bounds = ClipBounds(grid.low[0], grid.high[0])
    return BoundsSelection(bounds, math.nan, math.nan, steps=0, exhausted=False, inactive=inactive)
