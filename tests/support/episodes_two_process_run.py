"""Episodes and evaluations in the processes it is launched in: `episodes_two_process_run.py FOLDER`.

With `--crash` one of them fails in the middle of an evaluation. The models are random and generate as ever; where turns
matter, what they said is replaced by a script afterwards.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from datasets import Dataset
from episode_setup import Scripted, episode_trainer, model, sums
from trainer_setup import character_tokenizer, digit_reward, tiny_model
from trainer_setup import trainer as answer_trainer

from equipoise.errors import InputError
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.evaluation_ranks import EvaluationRanks
from equipoise.models.warm_starts import calculator_tokenizer
from equipoise.models.warm_starts.ladder import ladder_tokenizer
from equipoise.tasks.environments import EpisodeReward
from equipoise.tasks.environments.calculator import Calculator, CalculatorReward
from equipoise.trl import run
from equipoise.trl.episodes import evaluate_episodes
from equipoise.trl.ranks import evaluation_ranks
from equipoise.trl.sharding import ready_to_generate

ZERO3 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
ON_CPU: dict[str, Any] = {}
if ZERO3:  # accelerate leaves DeepSpeed out on CPUs; it works where accelerate is not told that it is on one
    torch.accelerator.is_available = lambda: True
    off = ("use_cpu", "bf16", "gradient_checkpointing", "dataloader_pin_memory")
    ON_CPU = {"ddp_backend": "gloo"} | dict.fromkeys(off, False)

PROMPTS = (5, 1)  # an odd number for two processes, and too few for them
ANSWERS = {"num_samples": 3, "ks": (1, 3), "max_new_tokens": 6, "batch_size": 4, "seed": 5, "progress": False}


def made(trainer_of: Any, folder: Path, **settings: Any) -> Any:
    """The trainer, which under ZeRO-3 shards parameters as small as these too."""
    subject = trainer_of(folder, **settings, **ON_CPU)
    if ZERO3:
        zero = subject.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    return subject


class Uneven(Scripted):
    """The first process answers at once; the others call the calculator twice. All of them generate every turn."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        super(Scripted, self)._generate_single_turn(prompt_ids, *args, **kwargs)
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def script(self, words, number):
        return "99" if self.accelerator.process_index == 0 else Scripted.script(words, number)


class Broken(Calculator):
    """Every episode of the first process fails."""

    def reset(self, answer: str, **row):
        """A new sum."""
        if PartialState().process_index == 0:
            raise OSError("no server")
        super().reset(answer=answer)


class Lost(Calculator):
    """Every episode fails."""

    def reset(self, answer: str, **row):
        """Fails."""
        raise OSError("no such sum")


class Sampled(Calculator):
    """Draws from Python's generator, as environments do."""

    drawn: ClassVar[list[float]] = []

    def reset(self, answer: str, **row):
        """A new sum."""
        self.drawn.append(random.random())
        super().reset(answer=answer)


def trained(folder: Path) -> dict[str, Any]:
    """Episodes of unequal numbers of turns, trained on and then evaluated."""
    subject = made(episode_trainer, folder, kind=Uneven, logging_steps=1)
    subject.train()
    logged = [entry for entry in subject.state.log_history if "loss" in entry]
    values = {count: evaluate_episodes(subject, sums(count), subject.reward_funcs[0], seed=3) for count in PROMPTS}
    return {
        "rewards": [entry["reward"] for entry in logged],
        "calls": [entry["tools/call_frequency"] for entry in logged],
        "steps": [entry["episodes/steps_mean"] for entry in logged],
        "evaluations": values,
        "messages": {type(messages).__name__ for messages in subject._logs["completion"]},
    }


def one_group(folder: Path) -> dict[str, Any]:
    """One group of episodes over all processes, of which those of the first fail."""
    reward = CalculatorReward(1.0)
    settings = {"num_generations": 4, "per_device_train_batch_size": 2}
    subject = made(episode_trainer, folder, environment=Broken, reward=reward, **settings)
    subject.model.train()
    batch = subject._generate_and_score_completions([sums(1).to_list()[0]] * 2)
    return {"rewards": subject._rewards.flatten().tolist(), "advantages": batch["advantages"].tolist()}


def too_many_failures(folder: Path) -> str:
    """What ends a run whose episodes fail on one process."""
    subject = made(episode_trainer, folder, environment=Broken, reward=EpisodeReward(0.2), max_steps=10)
    return message_of(subject.train)


def drawn(folder: Path) -> list[float]:
    """What the environments of this process draw from Python's generator, in training and in an evaluation."""
    Sampled.drawn = []
    subject = made(episode_trainer, folder, environment=Sampled, max_steps=1)
    subject.train()
    evaluate_episodes(subject, sums(2), subject.reward_funcs[0], seed=3)
    return Sampled.drawn


def answers(folder: Path) -> dict[str, Any]:
    """The evaluations of single answers, by the number of prompts; and of a reward that fails on one process."""
    subject = made(answer_trainer, folder, learning_rate=0.0, max_steps=1)
    subject.train()  # shards the model, and leaves it as it is
    ranks = evaluation_ranks(subject.accelerator)
    with ready_to_generate(subject) as policy:
        found = {count: evaluated(policy, count, ranks).samples for count in PROMPTS}
        broken = message_of(lambda: evaluated(policy, 5, ranks, reward=failing))
    return {"samples": found, "broken": broken, "in_step": ranks.in_step}


def crash(folder: Path) -> None:
    """An evaluation in which generation itself fails on the second process."""
    subject = made(answer_trainer, folder, max_steps=1)
    subject.train()
    with ready_to_generate(subject) as policy:
        if PartialState().process_index == 1:
            policy.forward = None  # is called
        evaluated(policy, 5, evaluation_ranks(subject.accelerator))


def failing(completions, **columns):
    """Fails on the second process."""
    if PartialState().process_index == 1:
        raise InputError("row 3 is broken")
    return digit_reward(completions)


def evaluated(policy: Any, count: int, ranks: EvaluationRanks | None, reward: Any = digit_reward) -> Any:
    """An evaluation on `count` prompts."""
    data = Dataset.from_dict({"prompt": [f"{n}+{n * 7}=" for n in range(count)]})
    return evaluate_policy(policy, character_tokenizer(), data, reward, ranks=ranks, **ANSWERS)


def failed_training(folder: Path) -> str:
    """What ends a run whose reward function fails on one process."""
    subject = made(answer_trainer, folder)
    subject.reward_funcs = [failing]
    return message_of(subject.train)


def whole_runs(folder: Path) -> None:
    """Runs as a user starts them: episodes and single answers with held-out evaluations, and episodes that all fail."""
    if PartialState().is_main_process:
        model().save_pretrained(folder / "calculator-base")
        calculator_tokenizer().save_pretrained(folder / "calculator-base")
        tiny_model(vocab_size=len(ladder_tokenizer())).save_pretrained(folder / "ladder-base")
        ladder_tokenizer().save_pretrained(folder / "ladder-base")
        rows = [json.dumps({"prompt": f"{n} + {n} =", "answer": str(2 * n)}) for n in range(8)]
        (folder / "sums.jsonl").write_text("\n".join(rows))
    PartialState().wait_for_everyone()
    keys = {
        "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16,
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_tool_calling_iterations": 4,
    } | ON_CPU  # fmt: skip
    evaluated = {"evaluate_every": 2, "evaluate_prompts": 5, "evaluate_samples": 4, "evaluate_k": [1]}
    for task in ("calculator", "ladder"):
        own = {"model": str(folder / f"{task}-base"), "task": task, "output_dir": str(folder / task)}
        run.train(keys | evaluated | own)
    lost = {"environment": "episodes_two_process_run:Lost", "max_failed_fraction": 1.0, "chat": True}
    own = {"model": str(folder / "calculator-base"), "task": f"data:{folder / 'sums.jsonl'}"}
    run.train(keys | lost | own | {"output_dir": str(folder / "lost")})


def message_of(work: Any) -> str:
    """The error that ends it."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing failed"


def all_parts(root: Path) -> dict[str, Any]:
    """Everything, in one launch."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    ends = {
        part.__name__: part(root / part.__name__)
        for part in (trained, one_group, drawn, answers, too_many_failures, failed_training)
    }
    if not ZERO3:
        whole_runs(root / "whole_runs")
    return ends


if __name__ == "__main__":
    root, process = Path(sys.argv[1]), PartialState(cpu=True)
    if sys.argv[2:] == ["--crash"]:
        crash(root / "crash")
    torch.save(all_parts(root), root / f"ends-{process.process_index}.pt")
    process.destroy_process_group()
