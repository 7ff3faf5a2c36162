"""A run with replay and partial rollouts in the processes it is launched in, and its continuation from a checkpoint.

`off_policy_two_process_run.py FOLDER`
"""

import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from off_policy_setup import PARTIAL, REPLAY, SETTINGS
from trainer_setup import prompts, trainer

SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
RESUMED = 5  # in the middle of a rollout batch


def run(folder: Path, *, resume: bool = False) -> dict:
    """Train; returns what this process ended with."""
    subject = trainer(folder, **(SETTINGS | REPLAY | PARTIAL | SAVED), dataset=prompts(32))
    if resume:
        torch.manual_seed(1234)
    subject.train(resume_from_checkpoint=resume)
    return {
        "weights": {name: value.clone() for name, value in subject.model.state_dict().items()},
        "store": subject.off_policy.state_dict(),
        "batch": subject._buffered_inputs,
        "shares": [e.get("equipoise/replay_fraction_used") for e in subject.state.log_history if "loss" in e],
    }


if __name__ == "__main__":
    root, process = Path(sys.argv[1]), PartialState(cpu=True)
    ends = {"whole": run(root / "whole")}
    process.wait_for_everyone()
    if process.is_main_process:
        name = f"checkpoint-{RESUMED}"
        shutil.copytree(root / "whole" / name, root / "part" / name)
    process.wait_for_everyone()
    ends["resumed"] = run(root / "part", resume=True)
    torch.save(ends, root / f"ends-{process.process_index}.pt")
    process.destroy_process_group()
