"""One run on fixed rollouts, in as many processes as it is launched in: `two_process_run.py FOLDER`; then parts of it.

The rollouts follow from the prompt and its place in the group alone, so that one process and two see the same ones. One
update holds a whole rollout batch, in micro-batches of four sequences: TRL shuffles a rollout batch per process.
"""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from trainer_setup import ALPHABET, character_tokenizer, config, digit_reward, prompts, tiny_model
from transformers import TrainerCallback

from equipoise.training import EquipoiseTrainer
from equipoise.training.recorder import MetricsRecorder

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


class BoundsInForce(TrainerCallback):
    """What the loss of this process clips with, update by update."""

    def __init__(self):
        self.trainer: EquipoiseTrainer | None = None
        self.bounds: dict[int, tuple[float, float]] = {}

    def on_step_end(self, args, state, control, **kwargs):
        assert self.trainer is not None
        self.bounds[state.global_step] = (1 - self.trainer.epsilon_low, 1 + self.trainer.epsilon_high)


def run(folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train; returns what this process ended with."""
    micro_batches = SEQUENCES // (SETTINGS["per_device_train_batch_size"] * PartialState(cpu=True).num_processes)
    rollouts, watch = FixedRollouts(), BoundsInForce()
    watch.trainer = trainer = EquipoiseTrainer(
        model=tiny_model(),
        reward_funcs=digit_reward,
        args=config(folder, **SETTINGS, gradient_accumulation_steps=micro_batches, steps_per_generation=micro_batches),
        train_dataset=prompts(16),
        processing_class=character_tokenizer(),
        rollout_func=rollouts,
        callbacks=[MetricsRecorder(folder), watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    return {
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "controller": trainer.polarity_controller.state_dict(),
        "bounds": watch.bounds,
        "num_tokens": rollouts.num_tokens,
    }


def take_up(folder: Path, step: int) -> Path:
    """A copy of a run as it was right after an update."""
    part = folder / f"from-{step}"
    shutil.copytree(folder / f"checkpoint-{step}", part / f"checkpoint-{step}")
    shutil.copy(folder / "metrics.jsonl", part)
    return part


if __name__ == "__main__":
    root, process = Path(sys.argv[1]), PartialState(cpu=True)
    ends = {"whole": run(root)}
    for step in RESUMED:
        process.wait_for_everyone()
        if process.is_main_process:
            take_up(root, step)
        process.wait_for_everyone()
        ends[f"from-{step}"] = run(root / f"from-{step}", resume=True)
    torch.save(ends, root / f"ends-{process.process_index}.pt")
    process.destroy_process_group()
