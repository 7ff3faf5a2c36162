"""Sample replay and partial rollouts in TRL's trainer: which rows TRL is given to score, and what is made of its batch.

TRL generates and scores as ever; nothing of it is copied. Around its call:

1. stored groups are drawn, and as many fewer prompts are given to TRL (replay);
2. prompts in flight are continued until enough groups are finished, and TRL is given their rows and completions
   (partial rollouts);
3. `old_per_token_logps` becomes the log-prob of the policy that sampled the token, for every row; `policy_version`
   tells which policy that was; stored groups are appended.

While TRL scores, it asks the trainer for completions and for log-probs; what it is answered is said by the `Scoring`
that goes on, and `OffPolicyRollouts._scored` alone begins and ends one.
"""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equipoise.diagnostics.run_folder import replay_file
from equipoise.errors import InputError
from equipoise.models.behavior_logprobs import recorded_generation
from equipoise.rollouts import Group, Origin, PartialRollouts, Prompt, ReplayBuffer
from equipoise.rollouts.partial import version_rows
from equipoise.rollouts.records import fingerprint
from equipoise.trl.checkpoints import CheckpointError
from equipoise.trl.continuation import Continuation, Rows
from equipoise.trl.off_policy_batch import NO_VERSION, joined, samples_of

logger = logging.getLogger("equipoise")

Batch = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """One call of TRL's `_generate_and_score_completions`.

    Attributes:
        finished: the groups whose completions TRL is given when it asks for samples; None: it samples.
    """

    finished: tuple[Prompt, ...] | None = None

    def completions(self) -> tuple[list[list[int]], list[list[float]]] | None:
        """Ids and behaviour log-probs of the finished completions, in the order of the rows; None where TRL samples."""
        if self.finished is None:
            return None
        trajectories = [t for prompt in self.finished for t in prompt.trajectories]
        return [list(t.completion_ids) for t in trajectories], [list(t.behavior_logprob) for t in trajectories]


class OffPolicyRollouts:
    """The replay buffer and the prompts in flight of one process, and how TRL's rollouts go through them.

    Args:
        trainer: an `EquipoiseTrainer` whose construction is complete.

    Raises:
        InputError: what the trainer was given does not go with replay or partial rollouts.
    """

    def __init__(self, trainer: Any):
        args = trainer.args
        self.trainer = trainer
        self.setting = "replay_fraction" if args.replay_fraction else "rollout_token_budget"
        self.origin = Origin(
            # ZeRO-3 holds parts: there `ds_shape` is the shape of a parameter.
            model=fingerprint(
                [name, list(getattr(p, "ds_shape", p.shape))] for name, p in sorted(trainer.model.named_parameters())
            ),
            tokenizer=_tokenizer_fingerprint(trainer.processing_class),
            temperature=float(args.temperature),
            group_size=args.num_generations,
        )
        self.metrics: dict[str, float] = {}
        self.scoring: Scoring | None = None  # the call that goes on; of `_scored`
        self.continuation = None
        if args.rollout_token_budget is not None:
            self.continuation = Continuation(trainer, self.origin.group_size)
        self.reset()

    def reset(self) -> None:
        """Nothing stored and nothing in flight, as at the beginning of a run."""
        args = self.trainer.args
        seed = args.seed + 1_000_003 * self.trainer.accelerator.process_index
        self.buffer = None
        if args.replay_fraction:
            self.buffer = ReplayBuffer(args.replay_capacity, args.replay_max_age, args.replay_sampling, seed=seed)
        if self.continuation is not None:
            self.continuation.reset(seed + 1)

    @property
    def partial(self) -> PartialRollouts | None:
        """The prompts in flight."""
        return None if self.continuation is None else self.continuation.prompts

    @property
    def version(self) -> int:
        """Of the current policy: optimizer updates behind it."""
        return self.trainer.state.global_step

    # ---- one rollout batch --------------------------------------------------------------------------------------

    def rollout(self, inputs: Rows, score: Callable[[Rows], Batch]) -> Batch:
        """A rollout batch of as many rows as `inputs`: fresh or continued groups, and stored ones at its end.

        Args:
            inputs: rows of the data set, whole groups, as TRL's sampler gives them.
            score: TRL's `_generate_and_score_completions`.

        Raises:
            InputError: the sampler gave no usable log-probs, or the batch holds more than text.
        """
        self.metrics = {}
        drawn = self._draw()
        fresh = inputs[: len(inputs) - len(drawn) * self.origin.group_size]
        try:
            finished = None if self.continuation is None else self._finished(fresh)
            batch = self._with_behavior(self._scored(fresh, finished, score), finished)
            return batch if self.buffer is None else self._replayed(batch, drawn)
        except InputError:
            raise
        except ValueError as error:
            if "behaviour log-prob" not in str(error):
                raise
            raise InputError(f"{self.setting}: {error}") from error

    def check(self, inputs: Batch) -> None:
        """Refuses a rollout batch that did not come this way.

        Raises:
            InputError: a subclass of the trainer has sampled it by itself.
        """
        if "policy_version" not in inputs:
            raise InputError(
                f"{self.setting} works in EquipoiseTrainer._generate_and_score_completions, which "
                f"{type(self.trainer).__name__} replaces without calling it"
            )

    def _finished(self, rows: Rows) -> list[Prompt]:
        """As many finished groups as `rows` holds, some of them begun earlier."""
        finished, measured = self.continuation.finished(rows, self.version)
        self._measure(**measured)
        return finished

    def _scored(self, rows: Rows, finished: list[Prompt] | None, score: Callable[[Rows], Batch]) -> Batch:
        """TRL's batch of the rows; finished groups are scored with the rows they began with."""
        if finished is not None:
            rows = [dict(prompt.row) for prompt in finished for _ in prompt.trajectories]
        self.scoring = Scoring(None if finished is None else tuple(finished))
        try:
            return score(rows)
        finally:
            self.scoring = None

    @property
    def knows_logprobs(self) -> bool:
        """Whether TRL asks for the current policy's log-probs of a rollout batch, which behaviour log-probs replace.

        A forward pass over the batch is saved by telling it that there are none. With a KL term it is left alone: TRL
        asks for those of the reference in the same way.
        """
        return self.scoring is not None and self.trainer.beta == 0

    def _draw(self) -> list[Group]:
        """Stored groups for this batch: as many on every process, because TRL takes batches of one size."""
        if self.buffer is None:
            return []
        self.buffer.drop_older(self.version)
        accelerator = self.trainer.accelerator
        stored = torch.tensor([len(self.buffer)], device=accelerator.device)
        least = int(accelerator.gather(stored).min())
        return self.buffer.draw(
            min(self.trainer.args.rollout_batch().replayed_groups(self.trainer.args.replay_fraction), least),
            self.version,
        )

    def _with_behavior(self, batch: Batch, finished: list[Prompt] | None) -> Batch:
        """TRL's batch with the log-probs and versions of the policies that sampled it."""
        behavior = batch.pop("sampling_per_token_logps", None)
        if behavior is None:
            raise InputError(
                f"{self.setting} needs behaviour log-probs: this rollout came without them "
                f"(a rollout_func must return 'logprobs')"
            )
        mask = batch["completion_mask"].bool()
        width = mask.shape[1]
        if finished is None:
            versions = torch.full(mask.shape, self.version, dtype=torch.int64, device=mask.device)
        else:
            versions = version_rows(finished, width).to(mask.device)
        batch["old_per_token_logps"] = behavior
        batch["policy_version"] = versions.masked_fill(~mask, NO_VERSION)
        return batch

    def _replayed(self, batch: Batch, drawn: list[Group]) -> Batch:
        """The batch with the stored groups behind its own; its own are stored."""
        trainer, size = self.trainer, self.origin.group_size
        fresh = samples_of(batch)
        groups = [Group(tuple(fresh[i : i + size])) for i in range(0, len(fresh), size)]
        samples = [sample for group in drawn for sample in group.samples]
        batch = joined(
            batch, samples, pad_id=trainer._tokenizer.pad_token_id, multiple_of=trainer.pad_to_multiple_of or 1
        )
        mask = batch["completion_mask"]
        mask = mask * batch["tool_mask"] if "tool_mask" in batch else mask
        batch["num_items_in_batch"] = trainer.accelerator.gather(mask.sum()).sum()
        self.buffer.add(groups)
        self._measure(replay_fraction_used=len(drawn) / (len(drawn) + len(groups)), replay_stored=len(self.buffer))
        if drawn:  # on every process, or on none
            ages = [self.version - group.policy_version for group in drawn]
            self._measure(replay_age=sum(ages) / len(ages))
        return batch

    def _measure(self, **values: float) -> None:
        """Means over the processes."""
        accelerator = self.trainer.accelerator
        local = torch.tensor([list(values.values())], dtype=torch.float64, device=accelerator.device)
        self.metrics |= dict(zip(values, accelerator.gather(local).mean(0).tolist(), strict=True))

    # ---- where TRL samples --------------------------------------------------------------------------------------

    def generate(self, single_turn: Callable, prompt_ids: list[list[int]], *args, **kwargs):
        """What TRL's `_generate_single_turn` returns, with log-probs; of finished groups, where they are what is asked.

        vLLM gives the log-probs itself; with transformers they are recorded.
        """
        given = None if self.scoring is None else self.scoring.completions()
        if given is not None:
            return given
        if self.trainer.use_vllm:
            return single_turn(prompt_ids, *args, **kwargs)
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        with recorded_generation(model, self.trainer.temperature) as recorded:
            completion_ids, _ = single_turn(prompt_ids, *args, **kwargs)
        rows = recorded[0].tolist()
        return completion_ids, [row[: len(ids)] for row, ids in zip(rows, completion_ids, strict=True)]

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write what this process has stored and in flight next to the checkpoint."""
        torch.save(self.state_dict(), folder / self._file_name)

    def load(self, folder: Path) -> None:
        """Continue from `save`.

        Raises:
            CheckpointError: no file, a damaged one, or one of another model, tokenizer, temperature, group size or
                format. Nothing of it is taken over then.
        """
        path = folder / self._file_name
        if not path.exists():
            raise CheckpointError(
                f"{folder} has no {path.name}: the run was saved without replay_fraction and rollout_token_budget"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            raise CheckpointError(
                f"{path} is damaged and cannot be read ({_first_line(error)}); resume from another checkpoint"
            ) from error
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be used: {_first_line(error)}") from error
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} cannot be used: it is not what equipoise writes ({type(error).__name__}: {_first_line(error)})"
            ) from error

    @property
    def _file_name(self) -> str:
        return replay_file(self.trainer.accelerator.process_index)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and data, with their origin."""
        return {
            "origin": self.origin.as_dict(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "partial": None if self.partial is None else self.partial.state_dict(),
            "extra_rows": None if self.continuation is None else self.continuation.extra_rows.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.origin.check(state["origin"])
        self.reset()
        try:
            for part, name in ((self.buffer, "buffer"), (self.partial, "partial")):
                if part is not None:
                    if state[name] is None:
                        raise ValueError(f"it holds no {name} state: that part was off when it was saved")
                    part.load_state_dict(state[name])
            if self.continuation is not None:
                self.continuation.extra_rows.set_state(state["extra_rows"])
        except Exception:
            self.reset()
            raise


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tokenizer_fingerprint(processing_class: Any) -> str:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return fingerprint([vocabulary, tokenizer.chat_template, sorted(tokenizer.all_special_tokens)])
