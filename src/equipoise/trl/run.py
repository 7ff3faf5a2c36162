"""One run on TRL, from settings to a run folder. Reads top to bottom in the order in which things happen."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false
# (transformers types what a trainer holds as optional, or as one of many kinds)

import functools
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback

import equipoise
from equipoise.diagnostics.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_SAMPLES_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    RESOLVED_FILE,
    failed_episodes_file,
    is_run_folder,
    latest_checkpoint,
    run_and_checkpoint,
)
from equipoise.diagnostics.trust import is_named, named_code, require_trust, sign
from equipoise.errors import InputError, read_from
from equipoise.files import PART, clear, put, write_at_once
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.loading import load_model, load_tokenizer, lora_config, template_settings
from equipoise.models.prompts import check_prompts
from equipoise.paths import cause_of_failed_write, check_path
from equipoise.redaction import redacted, redacted_words
from equipoise.settings.reading import written_keys
from equipoise.settings.run import RunSettings
from equipoise.settings.task_loading import load_task
from equipoise.tasks import RewardFunction, Task
from equipoise.tasks.environments import EpisodeReward
from equipoise.trl.beginning import Beginning
from equipoise.trl.callbacks import HeldOutEvaluation, MetricsRecorder, ProgressBar
from equipoise.trl.checkpoints import check_whole, set_later_aside
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.effects import tell_without_effect
from equipoise.trl.endings import told
from equipoise.trl.episodes import evaluate_episodes
from equipoise.trl.keys import build, read_config, with_secrets
from equipoise.trl.ranks import evaluation_ranks
from equipoise.trl.resuming import check_changes, former_defaults, unpickled
from equipoise.trl.sharding import ready_to_generate
from equipoise.trl.stopping import Stopping
from equipoise.trl.trainer import EquipoiseTrainer

logger = logging.getLogger("equipoise")

DEFAULT_LENGTH = 512
"""Up to which completions are not held against the positions of a model: defaults are not the user's doing."""

OnModel: TypeAlias = Callable[..., Any]
"""`on_model(model, on_cpu=…)`: what a caller does with a loaded model before anything is computed with it."""


def train(
    values: dict[str, Any], *, extra_rewards: Sequence[RewardFunction] = (), on_model: OnModel | None = None
) -> Path:
    """Train as the checked keys say, in a new run folder; returns the folder.

    Args:
        values: checked keys.
        extra_rewards: added to the reward of the task.
        on_model: called once, with the loaded model and whether it computes on the CPU (keyword `on_cpu`), before
            anything is computed; the command line fits the number of threads to the model.

    Raises:
        InputError: anything the user can mend; nothing is left behind unless training had begun.
    """
    values = with_secrets(values, "the keys of this run")
    settings, config = build(values)
    tell_without_effect(values, settings, config)
    folder, beginning = Path(str(config.output_dir)), Beginning()
    created = _new_folder(folder)
    with told(folder):
        try:
            trainer = _prepare(settings, config, extra_rewards, on_model, beginning)
            trainer.accelerator.wait_for_everyone()  # no process may find the settings of another in the folder
            if trainer.accelerator.is_main_process:
                _write_settings(folder, values, config)
            trainer.accelerator.wait_for_everyone()
            _train(trainer, None, beginning)
        except BaseException:
            if created and latest_checkpoint(folder) is None and not (folder / METRICS_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _finish(trainer, folder)
    return folder


def _new_folder(folder: Path) -> bool:
    """Make the run folder, or accept an empty one; returns whether it was made."""
    check_path(folder, "run folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        usable = folder.is_dir() and latest_checkpoint(folder) is not None
        how = f"continue it with --resume {folder}" if usable else "it has no checkpoint to resume from: remove it"
        raise InputError(f"run folder {folder} exists; {how}, or choose another --output_dir")
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be made: {error.strerror}") from error
    return created


def resume(
    folder: Path,
    changes: dict[str, Any],
    *,
    given: Mapping[str, Any] | None = None,
    trusted: Sequence[Path] = (),
    on_model: OnModel | None = None,
) -> Path:
    """Continue an interrupted run from its newest complete checkpoint, exactly as if it had not been interrupted.

    Keys of equipoise that were not given keep the defaults that the run began with.

    Args:
        folder: the run folder, or one of its checkpoints, whose later ones are then set aside.
        changes: checked keys that differ from the run's own; only `RESUMABLE_CHANGES` may, and those whose secret the
            folder does not hold.
        given: keys the caller has read elsewhere, beside the changes: code that they name may be run.
        trusted: folders whose code may be run though another user, or another machine, began the run.
        on_model: as in `train`.

    Raises:
        InputError: no run folder, nothing to resume from, a checkpoint that is not whole, or a change that would make
            it another run.
        UntrustedError: the folder names code, is of somebody else, and is not trusted.
    """
    folder, checkpoint = run_and_checkpoint(folder)
    values = run_settings(folder)
    check_changes(folder, values, changes)
    checkpoint = checkpoint or latest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(f"run folder {folder} has no complete checkpoint to resume from; remove it and start again")
    code = [*named_code(values), *unpickled(checkpoint)]
    require_trust(folder, code, given=[*named_code(changes), *named_code(given or {})], trusted=trusted)
    check_whole(checkpoint, contents=False)  # before the model is loaded; the trainer compares the contents
    values = with_secrets(values | changes, str(folder / CONFIG_FILE)) | {"output_dir": str(folder)}
    settings, config = build(values)
    former = former_defaults(folder, values, config)
    if former:
        settings, config = build(values | former)
    beginning = Beginning()
    with read_from(str(folder / CONFIG_FILE), values):
        trainer = _prepare(settings, config, (), on_model, beginning)
    if is_named(folder, trusted) and trainer.accelerator.is_main_process:  # from here on it is this user's run
        sign(folder, (folder / CONFIG_FILE).read_text(encoding="utf-8"))
    with told(folder):
        _train(trainer, checkpoint, beginning)
    _finish(trainer, folder)
    return folder


def _train(trainer: EquipoiseTrainer, checkpoint: Path | None, beginning: Beginning) -> None:
    stopping = Stopping(trainer)
    trainer.add_callback(stopping)
    if checkpoint is not None and trainer.accelerator.is_main_process:
        check_whole(checkpoint)
        set_later_aside(checkpoint)
    trainer.accelerator.wait_for_everyone()
    with stopping.watching(), beginning.failing_in_one_line():
        trainer.train(None if checkpoint is None else str(checkpoint))


def run_settings(folder: Path) -> dict[str, Any]:
    """The keys a run was started with.

    Raises:
        InputError: when the folder is no run folder.
    """
    if not is_run_folder(folder):
        raise InputError(f"{folder} is no run folder: it has no {CONFIG_FILE}")
    return read_config(folder / CONFIG_FILE)


def _prepare(
    settings: RunSettings,
    config: EquipoiseConfig,
    extra_rewards: Sequence[RewardFunction],
    on_model: OnModel | None,
    beginning: Beginning,
) -> EquipoiseTrainer:
    task = load_task(settings)
    _check_sizes(task.train, config, settings)
    tokenizer = load_tokenizer(settings.model, trust_remote_code=config.trust_remote_code)
    config.chat_template_kwargs = template_settings(config.chat_template_kwargs) or None
    for prompts in (task.train, task.held_out):
        if prompts is not None:
            check_prompts(prompts, tokenizer, settings.model, config.chat_template_kwargs)
    model = _model(settings, config)
    _check_length(model, config, settings.model)
    if on_model is not None:
        on_model(model, on_cpu=config.device.type == "cpu")
    arguments = {
        "model": model,
        "reward_funcs": [task.reward, *extra_rewards] if extra_rewards else task.reward,
        "args": config,
        "train_dataset": task.train,
        "processing_class": tokenizer,
        "peft_config": lora_config(settings) if settings.use_peft else None,
        "environment_factory": task.environment_factory,
    }
    try:
        with _environments_silenced(), beginning.failing_in_one_line():
            trainer = EquipoiseTrainer(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:  # RuntimeError: a tracker is not installed
        raise InputError(" ".join(str(error).split())) from error
    _add_callbacks(trainer, settings, task)
    trainer.add_callback(beginning)
    return trainer


def _check_length(model: PreTrainedModel, config: EquipoiseConfig, name: str) -> None:
    positions, length = getattr(model.config, "max_position_embeddings", None), config.max_completion_length
    if isinstance(positions, int) and length is not None and length > max(positions, DEFAULT_LENGTH):
        raise InputError(
            f"max_completion_length must be <= {positions}, the positions that model {name} has "
            f"(max_position_embeddings), got max_completion_length={length}"
        )


def _model(settings: RunSettings, config: EquipoiseConfig) -> PreTrainedModel:
    on_cpu, given = config.device.type == "cpu", dict(cast(dict, config.model_init_kwargs or {}))
    model_code = config.trust_remote_code or bool(given.pop("trust_remote_code", False))
    model = load_model(settings.model, on_cpu=on_cpu, trust_remote_code=model_code, **given)
    config.model_init_kwargs = None  # used; TRL would warn that it cannot use them again
    if not settings.use_peft and not any(p.requires_grad for p in model.parameters()):  # a saved adapter is frozen
        how = "merge an adapter into its model first, or train a new one on it (use_peft)"
        raise InputError(f"model {settings.model} has no parameter to train: {how}")
    return model


@contextmanager
def _environments_silenced() -> Iterator[None]:
    """Without TRL's warning that environments are experimental: the pinned version is the one that was tested."""
    name = "TRL_EXPERIMENTAL_SILENCE"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _check_sizes(train: Dataset, config: EquipoiseConfig, settings: RunSettings) -> None:
    needed = (config.generation_batch_size or 0) // (config.num_generations or 1)
    if len(train) < needed:
        raise InputError(
            f"task {settings.task}: {len(train)} training prompts, but a rollout batch takes {needed} "
            f"(generation_batch_size / num_generations = {config.generation_batch_size} / {config.num_generations})"
        )


def _add_callbacks(trainer: EquipoiseTrainer, settings: RunSettings, task: Task) -> None:
    config = trainer.args
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    folder = Path(str(config.output_dir))
    trainer.add_callback(MetricsRecorder(folder))
    if not config.disable_tqdm:
        trainer.add_callback(ProgressBar(folder.name))
    if isinstance(task.reward, EpisodeReward):
        task.reward.record = folder / failed_episodes_file(trainer.accelerator.process_index)
    held_out = _held_out(trainer, settings, task)
    if held_out is not None:
        evaluate = functools.partial(_evaluate, trainer, settings, task, held_out)
        trainer.add_callback(HeldOutEvaluation(folder, evaluate, settings.evaluate_every))


def _held_out(trainer: EquipoiseTrainer, settings: RunSettings, task: Task) -> Dataset | None:
    """The prompts that the run is evaluated on while it goes."""
    if task.held_out is None:
        if settings.evaluate_every:
            raise InputError("evaluate_every needs held-out data: give eval_task or eval_dataset")
        return None
    most = len(task.held_out) if settings.evaluate_prompts is None else settings.evaluate_prompts
    return task.held_out.select(range(min(most, len(task.held_out))))


def _evaluate(trainer: EquipoiseTrainer, settings: RunSettings, task: Task, held_out: Dataset) -> dict[str, Any]:
    config = trainer.args
    if task.environment_factory is not None:
        shown = not config.disable_tqdm
        return evaluate_episodes(trainer, held_out, task.evaluation_reward, seed=config.seed, progress=shown)
    with ready_to_generate(trainer) as model:
        evaluation = evaluate_policy(
            model,
            trainer.processing_class,
            held_out,
            task.evaluation_reward,
            num_samples=settings.evaluate_samples,
            ks=settings.evaluate_k,
            temperature=settings.evaluate_temperature or config.temperature,
            max_new_tokens=task.max_completion_length or config.max_completion_length,
            seed=config.seed,
            progress=not config.disable_tqdm,
            template_kwargs=template_settings(config.chat_template_kwargs),
            ranks=evaluation_ranks(trainer.accelerator),
        )
    if trainer.accelerator.is_main_process:
        evaluation.write_samples(Path(str(config.output_dir)) / EVALUATION_SAMPLES_FILE)
    return evaluation.as_dict()


def _write_settings(folder: Path, values: dict[str, Any], config: EquipoiseConfig) -> None:
    environment = {
        "command": redacted_words(sys.argv),
        "seed": config.seed,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "device": str(config.device),
        "threads": torch.get_num_threads(),
        "world_size": config.world_size,
        "versions": {"equipoise": equipoise.__version__}
        | {
            name: importlib.metadata.version(name)
            for name in ("torch", "trl", "transformers", "accelerate", "datasets")
        },
    }
    resolved, text = redacted(json.loads(config.to_json_string())), written_keys(redacted(values))
    write_at_once(folder / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")
    write_at_once(folder / RESOLVED_FILE, written_keys(dict(sorted(resolved.items()))))
    sign(folder, text)
    write_at_once(folder / CONFIG_FILE, text)  # last: with it, this is a run folder


def _finish(trainer: EquipoiseTrainer, folder: Path) -> None:
    """Save the trained model, whole or not at all."""
    temporary = folder / (MODEL_FOLDER + PART)
    if trainer.accelerator.is_main_process:
        clear(temporary)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:  # by default FSDP2 saves shards, in checkpoints only
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        trainer.save_model(str(temporary))
        if trainer.accelerator.is_main_process:
            trainer.processing_class.save_pretrained(temporary)
            clear(folder / MODEL_FOLDER)
            put(temporary, folder / MODEL_FOLDER)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = cause_of_failed_write(error, folder)
        advice = f"once that is mended, continue with --resume {folder}"
        raise InputError(f"{folder / MODEL_FOLDER} cannot be written: {cause}; {advice}") from error
    finally:  # of an interruption too; the others are done before the main process has written all of it
        if trainer.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
