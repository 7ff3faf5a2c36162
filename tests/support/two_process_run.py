"""One run on fixed rollouts, in as many processes as it is launched in: `two_process_run.py FOLDER`; then parts of it.

`two_process_run.py FOLDER --resume` continues the run of a folder instead. The rollouts follow from the prompt and its
place in the group alone, so that one process and two see the same ones. One update holds a whole rollout batch, in
micro-batches of four sequences: TRL shuffles a rollout batch per process.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from trainer_setup import ALPHABET, character_tokenizer, config, digit_reward, in_float64, prompts, tiny_model
from transformers import TrainerCallback

from equipoise.trl import EquipoiseTrainer
from equipoise.trl.callbacks import MetricsRecorder

SEQUENCES = 16
SETTINGS = {
    "per_device_train_batch_size": 4,
    "num_iterations": 2,
    "clipping": "balanced",
    "bapo_target_share": 0.55,
    "polarity": "papo",
    "papo_warmup_updates": 1,
    "papo_reference_fraction": 2.0,
    "max_steps": 10,
    "save_strategy": "steps",
    "save_steps": 1,
}
# Some completions end early: the processes need different numbers of steps to generate theirs.
GENERATED = SETTINGS | {"max_steps": 4, "max_completion_length": 56, "save_strategy": "no", "seed": 12}
ZERO3 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
DDP = not ZERO3 and os.environ.get("ACCELERATE_USE_FSDP") != "true"
ON_CPU = {}
if ZERO3:  # accelerate leaves DeepSpeed out on CPUs; it works where accelerate is not told that it is on one
    torch.accelerator.is_available = lambda: True
    off = ("use_cpu", "bf16", "gradient_checkpointing", "dataloader_pin_memory")
    ON_CPU = {"ddp_backend": "gloo"} | dict.fromkeys(off, False)
RESUMED = (5, 9)  # in the middle of a rollout batch, in the first epoch and in the second


class FixedRollouts:
    """Completions of one to eight characters; counts the tokens that this process was given."""

    def __init__(self):
        self.num_tokens: list[int] = []

    def __call__(self, asked: list[str], trainer: EquipoiseTrainer) -> dict[str, Any]:
        place: dict[str, int] = {}
        completions = []
        for prompt in asked:
            place[prompt] = place.get(prompt, -1) + 1
            digest = hashlib.sha256(f"{prompt} {place[prompt]}".encode()).digest()
            completions.append([2 + byte % len(ALPHABET) for byte in digest[1 : 2 + digest[0] % 8]])
        self.num_tokens.append(sum(map(len, completions)))
        prompt_ids = character_tokenizer()(asked)["input_ids"]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}


class Watch(TrainerCallback):
    """What the loss of this process clips with, update by update, and the parameters it holds a part of."""

    def __init__(self):
        self.trainer: EquipoiseTrainer | None = None
        self.bounds: dict[int, tuple[float, float]] = {}
        self.sharded: list[str] = []

    def on_step_end(self, args, state, control, **kwargs):
        assert self.trainer is not None
        self.bounds[state.global_step] = (1 - self.trainer.epsilon_low, 1 + self.trainer.epsilon_high)
        parameters = self.trainer.model.named_parameters()
        self.sharded = [name for name, p in parameters if isinstance(p, DTensor) or not p.numel()]


def run(folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train on fixed rollouts; returns what this process ended with."""
    rollouts, watch = FixedRollouts(), Watch()
    watch.trainer = trainer = _trainer(folder, SETTINGS, rollout_func=rollouts, callbacks=[watch])
    trainer.train(resume_from_checkpoint=resume)
    return {
        "sharded": watch.sharded,
        "weights": {name: _whole(parameter) for name, parameter in trainer.model.named_parameters()},
        "controller": trainer.steering.controller.state_dict(),
        "bounds": watch.bounds,
        "num_tokens": rollouts.num_tokens,
    }


def generate(folder: Path) -> list[int]:
    """Train on what the policy generates; returns the longest completion of this process, rollout by rollout."""
    longest = []

    class Watched(EquipoiseTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
            longest.append(max(map(len, completion_ids)))
            return completion_ids, logprobs

    _trainer(folder, GENERATED, trainer_class=Watched).train()
    return longest


def mixed(folder: Path) -> list[torch.Tensor]:
    """Log-probs of an update under bf16 mixed precision, as the trainer takes them."""
    logprobs = []

    class Watched(EquipoiseTrainer):
        def _micro_batch(self, inputs, statistics):
            logprobs.append(statistics.logprob.detach().clone())
            return super()._micro_batch(inputs, statistics)

    _trainer(folder, GENERATED | {"bf16": True, "max_steps": 1}, trainer_class=Watched).train()
    return logprobs


def exact(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after updates in float64, all but what transformers logs."""
    settings = SETTINGS | {"max_steps": 6, "save_strategy": "no"}
    trainer = _trainer(folder, settings, model=in_float64(tiny_model()), rollout_func=FixedRollouts())
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def _trainer(folder: Path, settings: dict, *, trainer_class=EquipoiseTrainer, callbacks=(), model=None, **others):
    micro_batches = SEQUENCES // (settings["per_device_train_batch_size"] * PartialState(cpu=True).num_processes)
    settings = settings | ON_CPU | {"gradient_accumulation_steps": micro_batches, "steps_per_generation": micro_batches}
    made = trainer_class(
        model=model or tiny_model(),
        reward_funcs=digit_reward,
        args=config(folder, **settings),
        train_dataset=prompts(16),
        processing_class=character_tokenizer(),
        callbacks=[MetricsRecorder(folder), *callbacks],
        **others,
    )
    if ZERO3:  # which leaves parameters as small as these whole
        zero = made.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    return made


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    if not ZERO3:
        return parameter.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter):
        return parameter.detach().clone()


def take_up(folder: Path, step: int) -> Path:
    """A copy of a run as it was right after an update."""
    part = folder / f"from-{step}"
    shutil.copytree(folder / f"checkpoint-{step}", part / f"checkpoint-{step}")
    shutil.copy(folder / "metrics.jsonl", part)
    return part


def whole_and_parts(root: Path) -> dict[str, Any]:
    """The run, its continuations, one with generation, and one with mixed precision."""
    process, ends = PartialState(cpu=True), {"whole": run(root)}
    for step in RESUMED:
        process.wait_for_everyone()
        if process.is_main_process:
            take_up(root, step)
        process.wait_for_everyone()
        ends[f"from-{step}"] = run(root / f"from-{step}", resume=True)
    ends["longest"] = generate(root / "generated")
    if not ZERO3:
        ends["mixed"] = mixed(root / "mixed")
    if DDP:
        ends["exact"] = exact(root / "exact")
    return ends


if __name__ == "__main__":
    root, process = Path(sys.argv[1]), PartialState(cpu=True)
    ends = run(root, resume=True) if sys.argv[2:] == ["--resume"] else whole_and_parts(root)
    torch.save(ends, root / f"ends-{process.process_index}.pt")
    process.destroy_process_group()
