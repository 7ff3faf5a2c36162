"""`EquipoiseTrainer`: TRL's GRPOTrainer with balanced clipping and polarity control, for every loss type of TRL.

The seam: TRL's `_compute_loss` first asks for the statistics of the policy and only then reads the advantages and the
clip bounds. When the statistics arrive, this trainer gives them to `equipoise.steering`, and puts the bounds and the
advantages that it answers with where TRL will read them. No mathematics lives here.
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
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from equipoise.entropy_control.draw import row_identity
from equipoise.models.statistics_head import add_statistics_head
from equipoise.steering import MicroBatch, Steered, Steering, Update
from equipoise.steering.steering import diverged
from equipoise.trl.asymmetry_map import AsymmetryMap
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.episodes import transcript
from equipoise.trl.off_policy_rollouts import OffPolicyRollouts
from equipoise.trl.own_methods import CLIPPED_LOSSES
from equipoise.trl.printed_samples import PrintedSamples
from equipoise.trl.ranks import accelerator_ranks
from equipoise.trl.resumable import ResumableTrainer
from equipoise.trl.reward_checks import check_rewards, without_noise
from equipoise.trl.seams import OutputRecorder, answers
from equipoise.trl.sharding import check_savable, keep_float32_outputs, shard_on_cpu
from equipoise.trl.shared_rewards import shared_rewards
from equipoise.trl.token_recording import TokenRecording
from equipoise.trl.turns import Turns
from equipoise.types import TokenStatistics

logger = logging.getLogger("equipoise")

METRIC_PREFIX = "equipoise/"


class EquipoiseTrainer(ResumableTrainer):
    """TRL's `GRPOTrainer` with `EquipoiseConfig`. Arguments are TRL's, by position as by name.

    With clipping="fixed" and polarity="off" losses and gradients are TRL's. Every update is measured either way; the
    scalars are logged with the prefix `equipoise/`. Bounds and branch weights are constant within an update, and the
    same for any split of it into micro-batches and ranks.

    Without `args` the defaults of `EquipoiseConfig` are taken. A plain `GRPOConfig` is taken as it is, with clipping
    "fixed" and polarity "off".

    Raises:
        TypeError: when `args` is no GRPOConfig.
    """

    _tag_names = ["trl", "grpo", "equipoise"]  # noqa: RUF012

    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, model, reward_funcs=None, args=None, *further, **kwargs):
        args = own_config(args, model)
        self._on_statistics: Callable[[TokenStatistics], None] | None = None
        saves_on_sigterm, args.enable_jit_checkpoint = args.enable_jit_checkpoint, False  # transformers' own way
        super().__init__(model, reward_funcs, args, *further, **kwargs)
        args.enable_jit_checkpoint = saves_on_sigterm  # ours: see `_ended_by_sigterm`
        base = cast(Any, self.model).get_base_model() if is_peft_model(self.model) else self.model
        add_statistics_head(base, temperature=self.temperature, float32_products=args.cast_lm_head_to_fp32)
        self.steering = Steering(
            args,
            fixed_bounds=args.fixed_bounds(),
            ranks=accelerator_ranks(self.accelerator),
            seed=args.seed,
            learning_rate=args.learning_rate,
        )
        self.off_policy = OffPolicyRollouts(self) if args.off_policy else None
        self.asymmetry_map = (
            AsymmetryMap(self, args.asymmetry_map_every, args.seed) if args.asymmetry_map_every else None
        )
        if self.asymmetry_map is not None:
            self.add_callback(self.asymmetry_map)
        self._printed: PrintedSamples | None = None
        if args.print_samples and self.accelerator.is_main_process:
            self._printed = PrintedSamples(args.print_samples, self._tokenizer, self.num_generations)
            self.add_callback(self._printed)
        self._turns = Turns(self)
        self._update: Update | None = None
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
        training, score = self.model.training, self._scored
        try:
            batch = self.off_policy.rollout(inputs, score) if self.off_policy and training else score(inputs)
        except RuntimeError as error:  # torch's sampling refuses NaN
            if all(p.isfinite().all() for p in self.model.parameters()):
                raise
            raise diverged(self.state.global_step, self.args.learning_rate) from error
        if training:
            for name, value in (self.off_policy.metrics if self.off_policy else {}).items():
                self._metrics["train"][METRIC_PREFIX + name].append(value)
            if self._printed is not None:
                self._printed.observe(batch, self._rewards, self.reward_weights)
            if self._recording is not None:
                batch |= self._recording.samples(batch, self._rewards, self.reward_weights, self._step)
        return batch

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:  # whoever has sampled it
            self._rollout_step = self.state.global_step
            self._rollout_reward = (self._metrics["train"].get("reward") or [math.nan])[-1]
            if self.off_policy is not None:
                self.off_policy.check(inputs)
        return inputs

    def _scored(self, inputs):
        # A subclass may have rewards of its own: what counts are those that TRL is given.
        with answers(self, "_calculate_rewards") as rewards:
            batch = super()._generate_and_score_completions(inputs)
        self._rewards: Tensor = rewards[-1]
        check_rewards(self._rewards, self.reward_weights, self.reward_func_names)
        if self.model.training and self.multi_objective_aggregation == "sum_then_normalize":
            rank = self.accelerator.process_index
            batch["advantages"] = without_noise(batch["advantages"], self._rewards, self.num_generations, rank)
        return batch

    def _calculate_rewards(self, inputs, prompts, *args, **kwargs):
        score = functools.partial(super()._calculate_rewards, inputs, prompts, *args, **kwargs)
        return shared_rewards(self, score, len(prompts))

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        sample = functools.partial(self._turns.sample, super()._generate_single_turn)
        if self.off_policy is None or not self.model.training:
            return sample(prompt_ids, *args, **kwargs)
        return self.off_policy.generate(sample, prompt_ids, *args, **kwargs)

    def _tool_call_loop(self, prompts, prompt_ids, completion_ids, completions, *args, **kwargs):  # pyright: ignore
        if self.environments:
            most = self.max_tool_calling_iterations
            completions = [transcript(*pair, most) for pair in zip(completions, self.environments, strict=True)]
        with self._turns.loop(super()._generate_single_turn, prompt_ids[0]):
            return super()._tool_call_loop(prompts, prompt_ids, completion_ids, completions, *args, **kwargs)

    # ---- one micro-batch ----------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        inputs = dict(inputs)  # the buffered batch is used again: its advantages must stay as they are
        if self._update is None:
            self._update = self._open_update(model)
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
        """Steer a micro-batch, and leave bounds and advantages where TRL's loss reads them."""
        batch = self._micro_batch(inputs, statistics)
        steered = self.steering.steer(update, batch)
        if self.asymmetry_map is not None:
            self.asymmetry_map.observe(batch)
        if self.args.clipping == "balanced":
            # Still on their device after a search: TRL's arithmetic takes tensors as well, and nothing has to wait.
            self.epsilon_low, self.epsilon_high = 1 - steered.bounds.low, steered.bounds.high - 1
        self._put(inputs, steered)
        if self._recording is not None:
            clips = update.selection is not None
            self._recording.record(self.state.global_step + 1, inputs, batch, steered, clips=clips)

    def _put(self, inputs: dict[str, Any], steered: Steered) -> None:
        if self.args.polarity != "off" or steered.is_set is not None:
            inputs["advantages"] = steered.advantage
        if steered.old_logprob is not None:
            inputs["old_per_token_logps"] = steered.old_logprob

    @torch.no_grad()
    def _micro_batch(self, inputs: dict[str, Any], statistics: TokenStatistics) -> MicroBatch:
        """What TRL's loss makes of its inputs, as steering needs it."""
        action_mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            action_mask = action_mask & inputs["tool_mask"].bool()
        old, advantage = inputs.get("old_per_token_logps"), inputs["advantages"]
        version = inputs.get("policy_version", torch.full_like(inputs["completion_ids"], self._rollout_step))
        staleness = self.state.global_step - version
        return MicroBatch.of(
            statistics,
            old_logprob=old,
            advantage=advantage,
            action_mask=action_mask,
            loss_mask=action_mask & self._host_mask(inputs, statistics, action_mask),
            staleness=staleness,
            sequence_ratio=self.importance_sampling_level == "sequence",
            rollout_weight=self.args.bapo_token_weight == "rollout",
            correction=inputs.get("importance_sampling_ratio"),  # of the mismatch between vLLM and the trainer
            dual_clip=self.args.delta if self.loss_type in CLIPPED_LOSSES else None,
            engine_log_ratio=self._engine_log_ratio(inputs, statistics, staleness),
            row=self._row_identity(inputs),
        )

    def _engine_log_ratio(
        self, inputs: dict[str, Any], statistics: TokenStatistics, staleness: Tensor
    ) -> Tensor | None:
        """Log-probs of the rollout policy, ours less the sampling engine's; NaN where only the engine's are known."""
        old, logprob = inputs.get("old_per_token_logps"), statistics.logprob.detach()
        if self.off_policy is None:
            sampled = inputs.get("sampling_per_token_logps")
            return None if sampled is None else (logprob if old is None else old) - sampled
        if old is None or not (self.use_vllm or self.rollout_func):
            return None  # transformers samples with the trainer's own model
        # The old log-probs are the engine's: the tokens of the policy as it is now are those that ours are known of.
        return (logprob - old).where(staleness == 0, math.nan)

    def _row_identity(self, inputs: dict[str, Any]) -> Tensor | None:
        if self.steering.token_control is None:
            return None
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        return row_identity(*(inputs[name].long() for name in names))

    def _host_mask(self, inputs: dict[str, Any], statistics: TokenStatistics, action_mask: Tensor) -> Tensor:
        """Tokens that TRL's own options leave in the loss: the 80/20 rule and the off-policy sequence mask."""
        kept = torch.ones_like(action_mask)
        if self.top_entropy_quantile < 1:
            kept = self.get_high_entropy_mask(statistics.entropy, action_mask, 1 - self.top_entropy_quantile)
        if self.off_policy_mask_threshold is not None:
            advantage, old = inputs["advantages"], inputs.get("old_per_token_logps", statistics.logprob.detach())
            advantage = advantage.unsqueeze(1) if advantage.dim() == 1 else advantage
            kept = (
                kept
                & self.get_off_policy_mask(
                    advantages=advantage.expand_as(statistics.logprob),
                    per_token_logps=statistics.logprob,
                    sampling_per_token_logps=inputs.get("sampling_per_token_logps", old),
                    mask=action_mask,
                    off_policy_threshold=self.off_policy_mask_threshold,
                ).bool()
            )
        return kept

    # ---- one update ---------------------------------------------------------------------------------------------

    def _open_update(self, model) -> Update:
        """Bounds, weights and marks of the update that begins: what must be known before its first backward pass."""
        step = self.state.global_step
        # Stored groups and carried-over segments were sampled by earlier policies, whenever the batch was made.
        moved = self.off_policy is not None or step != self._rollout_step
        update = self.steering.open(step, moved=moved, several=self.current_gradient_accumulation_steps > 1)
        if update.needs_preview:
            self.steering.preview(update, self._preview(model))
        return update

    @torch.no_grad()
    def _preview(self, model) -> list[MicroBatch]:
        """All micro-batches of the update that begins, measured in a pass without gradients."""
        slices = self.args.steps_per_generation or 1
        numbers = range(self._step, self._step + self.current_gradient_accumulation_steps)
        inputs = [self._buffered_inputs[number % slices] for number in numbers]
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return [self._forward(model, part) for part in inputs]

    def _forward(self, model, inputs: dict[str, Any]) -> MicroBatch:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        extras = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
        statistics, _ = self._statistics(
            model, ids, mask, inputs["completion_ids"].shape[1], compute_entropy=True, **extras
        )
        return self._micro_batch(inputs, statistics)

    def _close_update(self, update: Update) -> None:
        """Log what was measured, before the optimizer steps; the controllers have observed it then."""
        values = self.steering.close(update, progress=self._progress(self.state.global_step + 1))
        for name, value in (values | {"rollout_reward": self._rollout_reward}).items():
            self._metrics["train"][METRIC_PREFIX + name].append(value)


def own_config(args: Any, model: Any) -> EquipoiseConfig:
    """The settings of a trainer that was given TRL's, or none.

    Args:
        args: that the trainer was given; None for none.
        model: its name, a path, or the model itself; names the output folder where nothing does, as in TRL.

    Raises:
        TypeError: something else than a GRPOConfig.
    """
    if isinstance(args, EquipoiseConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return EquipoiseConfig(f"{name.split('/')[-1]}-GRPO")
    if not isinstance(args, GRPOConfig):
        raise TypeError(f"args must be an EquipoiseConfig or TRL's GRPOConfig, got {type(args).__name__}")
    logger.warning("args is a plain GRPOConfig: balanced clipping and polarity are off; EquipoiseConfig has their keys")
    return EquipoiseConfig.of_trl(args)


_MODEL_INPUTS = tuple(
    name
    for name in inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    if name not in ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size")
    and not name.startswith("compute_")
)
"""The optional inputs of the model (images and the like) that TRL's statistics take by name."""
