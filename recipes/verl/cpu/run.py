"""verl's own trainer with equipoise, on the CPUs of a laptop: GRPO, a tiny model, a reward that rises in 20 steps.

    python recipes/verl/cpu/run.py --output runs/verl-cpu

Everything of the run lies in that folder: the model and the prompts, which are made first, `metrics.jsonl` with what
verl logs, `checkpoints`, `trainer.log` with all that verl and Ray print, `equipoise` with the records of tokens. The
same command continues a run that was stopped from its last checkpoint.

What makes it run on CPUs is in the files beside this one, and nothing of it is needed on GPUs; what turns equipoise on
is in `equipoise_overrides`.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
SHOWN = {
    "critic/score/mean": "reward",
    "actor/entropy_loss": "entropy",
    "actor/grad_norm": "gradient norm",
    "actor/equipoise/bounds_low": "ratio clipped below",
    "actor/equipoise/bounds_high": "above",
}
"""Metrics of verl's log on the screen, with what they are called there; means over a step's two updates."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    head, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/verl-cpu"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="steps in all: 32 answers, two updates each (default: 20)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="training processes, FSDP2 (default: 2)")
    parser.add_argument("--save-every", type=int, default=10, help="steps between checkpoints (default: 10)")
    parser.add_argument("--plain", action="store_true", help="verl's own loss (vanilla), to compare with")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="more of verl's configuration, as on its own command line; it wins: "
        "+actor_rollout_ref.actor.policy_loss.equipoise.bapo_target_share=0.4",
    )
    chosen = parser.parse_intermixed_args(arguments)
    for name in ("steps", "ranks", "save_every"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(chosen, name)}")
    chosen.output = chosen.output.resolve()
    return chosen


def quoted(path: Path | str) -> str:
    """A path as hydra reads it, whatever characters it has."""
    return "'" + str(path).replace("'", "\\'") + "'"


def equipoise_overrides(output: Path) -> list[str]:
    """What turns equipoise on in verl, on GPUs as here; the first is in `cpu_overrides`, with what CPUs add to it.

    actor_rollout_ref.model.external_lib=equipoise.verl
    """
    loss = "actor_rollout_ref.actor.policy_loss"
    return [
        f"{loss}.loss_mode=equipoise",
        f"{loss}._target_=equipoise.verl.EquipoiseLossConfig",
        f"+{loss}.equipoise={{clipping: balanced, polarity: papo, record_tokens: 5, "
        f"output_dir: {quoted(output / 'equipoise')}}}",
    ]


def task_overrides(chosen: argparse.Namespace) -> list[str]:
    """The model, the prompts and the reward of `toy_task`, and a step small enough for a CPU.

    All prompts of a step are one mini-batch, passed twice: from the second update on, ratios differ from 1.
    """
    output = chosen.output
    return [
        "algorithm.adv_estimator=grpo",
        f"data.train_files={quoted(output / 'prompts.parquet')}",
        f"data.val_files={quoted(output / 'prompts.parquet')}",
        "data.train_batch_size=8",
        "data.max_prompt_length=32",
        "data.max_response_length=12",
        "data.dataloader_num_workers=0",
        "data.filter_overlong_prompts=False",
        f"reward.custom_reward_function.path={quoted(HERE / 'toy_task.py')}",
        "reward.custom_reward_function.name=digit_share",
        "reward.num_workers=1",
        f"actor_rollout_ref.model.path={quoted(output / 'model')}",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.actor.optim.lr=3e-3",
        "actor_rollout_ref.actor.calculate_entropy=True",
        # The loss takes the log-probs of the rollout: those of the policy that sampled.
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "algorithm.rollout_correction.bypass_mode=True",
    ]


def cpu_overrides(chosen: argparse.Namespace) -> list[str]:
    """What CPUs need: FSDP2 in float32, the backend of `cpu_rollout`, Ray with places for the ranks."""
    libraries = ["equipoise.verl", "cpu_ranks", "cpu_rollout"]
    return [
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={chosen.ranks}",
        f"actor_rollout_ref.model.external_lib=[{','.join(libraries)}]",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision="
        "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}",
        "actor_rollout_ref.rollout.name=cpu",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        f"trainer.v1.sampler.custom_sampler.path={quoted(HERE / 'cpu_sampler.py')}",
        "trainer.v1.sampler.custom_sampler.name=EagerBuffer",
        # Ray counts places, not processors, and verl's helpers ask for more of them than a laptop has.
        f"+ray_kwargs.ray_init.num_gpus={chosen.ranks}",
        "ray_kwargs.ray_init.num_cpus=32",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=400000000",
    ]


def trainer_overrides(chosen: argparse.Namespace) -> list[str]:
    """How long the run is, and that all it writes goes to its folder."""
    return [
        f"trainer.total_training_steps={chosen.steps}",
        f"trainer.total_epochs={chosen.steps}",
        f"trainer.save_freq={chosen.save_every}",
        f"trainer.default_local_dir={quoted(chosen.output / 'checkpoints')}",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        "trainer.project_name=equipoise",
        "trainer.experiment_name=verl-cpu",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        f"hydra.run.dir={quoted(chosen.output / 'hydra')}",
    ]


def steps_done(output: Path) -> int:
    """The step of the last checkpoint; 0 where there is none."""
    file = output / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(file.read_text()) if file.exists() else 0


def metrics_file(output: Path) -> Path:
    """A file for this start's metrics, which verl would begin anew: `metrics.jsonl`, `metrics-2.jsonl`, ..."""
    names = ["metrics.jsonl", *(f"metrics-{number}.jsonl" for number in range(2, 1000))]
    return next(file for name in names if not (file := output / name).exists())


def environment(metrics: Path) -> dict[str, str]:
    """Of verl's trainer, and so of all that Ray starts."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # no cluster of others
    return inherited | {
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # two threads on two busy cores wait for each other
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),  # or Ray writes one to the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # not after everything else that runs on the machine
    }


def prepare(output: Path) -> None:
    """Make the model and the prompts, where the folder has none yet."""
    output.mkdir(parents=True, exist_ok=True)
    if (output / "prompts.parquet").exists():
        return
    import toy_task

    toy_task.write_model(output / "model")
    toy_task.write_prompts(output / "prompts.parquet")


class Trainer:
    """verl's trainer in a process of its own, with all processes that come from it.

    Args:
        overrides: Its command line.
        output: The folder it runs in and prints to.
    """

    def __init__(self, overrides: list[str], output: Path):
        self.metrics, self.shown = metrics_file(output), 0
        self.log = output / "trainer.log"
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, cwd=output, env=environment(self.metrics), stdout=log, stderr=subprocess.STDOUT
            )
        self.family = {psutil.Process(self.process.pid)}

    def follow(self) -> int:
        """Show a line for every step until it ends; returns its exit status."""
        while self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
            self.show()
            time.sleep(0.5)
        self.show()
        return self.process.returncode

    def show(self) -> None:
        """The steps that were logged since."""
        lines = self.metrics.read_text().split("\n")[:-1] if self.metrics.exists() else []
        for line in lines[self.shown :]:
            row = json.loads(line)
            values = [f"{name} {row['data'][key]:.3f}" for key, name in SHOWN.items() if key in row["data"]]
            print(f"step {row['step']:>3}: " + ", ".join(values), flush=True)
        self.shown = len(lines)

    def end(self, patience: float = 10) -> None:
        """See that nothing is left of it: Ray stops its processes with its driver, what it forgets is killed."""
        self.process.terminate()
        _, alive = psutil.wait_procs(self.family, timeout=patience)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def main(arguments: list[str] | None = None) -> int:
    """Make what the run needs, train, and say where everything is."""
    chosen = options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    if (done := steps_done(chosen.output)) >= chosen.steps:
        print(f"{chosen.output} has {done} steps already: give --steps more, or another --output", file=sys.stderr)
        return 0
    prepare(chosen.output)
    overrides = task_overrides(chosen) + cpu_overrides(chosen) + trainer_overrides(chosen)
    if not chosen.plain:
        overrides += equipoise_overrides(chosen.output)
    print(f"starting verl and Ray, half a minute or more; all they print: {chosen.output}/trainer.log", flush=True)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:
        overrides.append(f"+ray_kwargs.ray_init._temp_dir={quoted(sockets)}")
        trainer = Trainer([*overrides, *chosen.overrides], chosen.output)
        try:
            status = trainer.follow()
        except KeyboardInterrupt:
            print("stopping; the same command continues from the last checkpoint", file=sys.stderr)
            status = 130
        finally:
            trainer.end()
    if status not in (0, 130):
        tail = trainer.log.read_text().splitlines()[-30:]
        print("\n".join([*tail, f"verl's trainer ended with {status}; all of it: {trainer.log}"]), file=sys.stderr)
    if status == 0:
        print(f"done: metrics of every step in {trainer.metrics}, checkpoints beside it")
        if not chosen.plain:
            print(f"equipoise report {chosen.output / 'equipoise'}: every update, and its tokens")
    return status


if __name__ == "__main__":
    sys.exit(main())
