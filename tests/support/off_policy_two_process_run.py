"""A run with replay and partial rollouts in the processes it is launched in, and its continuation from a checkpoint.

`off_policy_two_process_run.py FOLDER [MODEL_FOLDER]`; with a model folder vLLM samples, in each process its own.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from off_policy_setup import PARTIAL, REPLAY, SETTINGS, Witness, whole_weights
from torch.distributed.tensor import DTensor
from trainer_setup import prompts, trainer
from transformers import TrainingArguments
from two_process_run import ON_CPU, ZERO3

from equipoise.trl import EquipoiseTrainer
from equipoise.trl.continuation import Continuation

SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
# A few small groups with completions of all lengths: the processes need different numbers of rounds.
UNEVEN = {
    "num_generations": 2,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 20,
    "temperature": 2.0,
}
RESUMED = 5  # in the middle of a rollout batch, in the second epoch


class Watched(Continuation):
    """Notes of every round what this process asked for, and what all did; and which weights were sent to vLLM."""

    def __init__(self, *args):
        super().__init__(*args)
        self.rounds: list[tuple[int, list[int], list[int]]] = []

    def _agreed(self, missing):
        agreed = super()._agreed(missing)
        own = [missing, len(self.prompts.unfinished), self.prompts.growth]
        self.rounds.append((self.trainer.state.global_step, own, list(vars(agreed).values())))
        return agreed


def made(folder: Path, model: Path | None, kind: type[EquipoiseTrainer]) -> EquipoiseTrainer:
    """The trainer, watched."""
    settings = {
        "trainer_class": kind,
        "dataset": prompts(16),
        **SETTINGS,
        **REPLAY,
        **PARTIAL,
        **UNEVEN,
        **SAVED,
        **ON_CPU,
    }
    if model is None:
        subject = trainer(folder, **settings)
    else:
        from vllm_setup import colocated

        subject = colocated(folder, model, **settings)
    if ZERO3:  # which leaves parameters as small as these whole
        zero = subject.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    subject.off_policy.continuation = Watched(subject, subject.args.num_generations)
    return subject


def run(folder: Path, model: Path | None, *, resume: bool = False) -> dict[str, Any]:
    """Train; returns what this process ended with."""
    subject, sent = made(folder, model, EquipoiseTrainer if resume else Witness), []
    if model is not None:
        sync = subject.vllm_generation.sync_weights
        subject.vllm_generation.sync_weights = lambda: (sent.append(subject.state.global_step), sync())
    torch.manual_seed((1234 if resume else 20) + subject.accelerator.process_index)
    subject.train(resume_from_checkpoint=resume)
    errors = [
        (batch["old_per_token_logps"].double() - subject.behavior(batch))[batch["policy_version"] >= 0].abs()
        for _, batch in ([] if resume else subject.batches)
    ]
    ended = {
        "weights": whole_weights(subject.model),
        "sharded": any(isinstance(p, DTensor) or not p.numel() for p in subject.model.parameters()),
        "store": subject.off_policy.state_dict(),
        "batch": subject._buffered_inputs,
        "shares": [e.get("equipoise/replay_fraction_used") for e in subject.state.log_history if "loss" in e],
        "rounds": subject.off_policy.continuation.rounds,
        "sent": list(sent),
        "errors": torch.cat(errors) if errors else None,
    }
    return ended if resume else ended | {"unequal": unequal(subject)}


def unequal(subject: EquipoiseTrainer) -> list:
    """The rounds in which the first process needs one group and the second six, several times."""
    continuation, groups = subject.off_policy.continuation, 6 if subject.accelerator.process_index else 1
    rows = [row for row in subject.train_dataset.to_list()[:groups] for _ in range(subject.args.num_generations)]
    continuation.rounds = []
    for seed in range(6):
        continuation.reset(seed)
        # A trained policy may never end: here every second token is taken for an end.
        continuation.prompts.eos_ids = frozenset(range(0, 17, 2))
        finished, _ = continuation.finished(rows, subject.off_policy.version)
        assert len(finished) == groups
    return continuation.rounds


if __name__ == "__main__":
    root, process = Path(sys.argv[1]), PartialState(cpu=True)
    model = Path(sys.argv[2]) if sys.argv[2:] else None
    if model is not None:
        from vllm_setup import share_engines

        share_engines()
        # The transformers of vLLM's CPU build, below 5.18, cannot load an optimizer to the device "cpu:0".
        device = TrainingArguments.device.fget
        TrainingArguments.device = property(lambda args: torch.device(device(args).type))
    ends = {"whole": run(root / "whole", model)}
    process.wait_for_everyone()
    if process.is_main_process:
        name = f"checkpoint-{RESUMED}"
        shutil.copytree(root / "whole" / name, root / "part" / name)
    process.wait_for_everyone()
    ends["resumed"] = run(root / "part", model, resume=True)
    torch.save(ends, root / f"ends-{process.process_index}.pt")
    process.destroy_process_group()
