"""Models, tokenizers and tasks from what the settings name; every failure is one line that says what to change."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.tasks import (
    Task,
    check_answers,
    load_examples,
    named_task,
    reward_function,
    templated,
    verifier_function,
    with_held_out,
    without_held_out,
)
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.environments import EpisodeLimits, EpisodeReward, guarded
from equipoise.tasks.rewards import imported
from equipoise.training.settings import RunSettings

logger = logging.getLogger("equipoise")

SMALL_MODEL = 20_000_000
"""Parameters below which a second thread costs more than it brings."""


def load_model(name: str, *, on_cpu: bool, trust_remote_code: bool = False, **init_kwargs: Any) -> PreTrainedModel:
    """The causal language model of a folder or hub id; float32 on a CPU, else the type it was saved in.

    Raises:
        InputError: naming the folder or id, when there is no such model or it cannot be read.
    """
    init_kwargs.setdefault("dtype", torch.float32 if on_cpu else "auto")
    return _loaded(AutoModelForCausalLM, name, trust_remote_code=trust_remote_code, **init_kwargs)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left as generation needs it.

    Raises:
        InputError: as `load_model`, or a tokenizer without an end-of-sequence token.
    """
    tokenizer = _loaded(AutoTokenizer, name, trust_remote_code=trust_remote_code, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {name}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _loaded(auto_class: Any, name: str, **kwargs: Any) -> Any:
    if Path(name).exists() and not (Path(name) / "config.json").exists() and not _is_adapter(name):
        raise InputError(f"model {name} is no model folder: it has no config.json")
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except Exception as error:  # transformers raises nearly everything for a model that it cannot read
        cause = " ".join(str(error).split())
        raise InputError(f"model {name} cannot be loaded: {type(error).__name__}: {cause[:300]}") from error


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").exists()


def load_task(settings: RunSettings) -> Task:
    """The task of a run: named ones, or the user's data with a reward; answers are checked before training.

    Prompts that are held out are not trained on: where training has them too, they are removed from it and counted.

    Raises:
        InputError: as `named_task`, `load_examples`, `reward_function` and `check_answers`.
    """
    task = _user_task(settings) if settings.task is None else _named(settings, settings.task)
    if settings.eval_task is not None:
        task = with_held_out(task, _named(settings, settings.eval_task, evaluation=True))
    return task if settings.prompt_template is None else templated(task, settings.prompt_template)


def _named(settings: RunSettings, name: str, *, evaluation: bool = False) -> Task:
    """A task by name; the reward of the run shapes its training, evaluations have the task's own verifier."""
    task = named_task(name, reward=None if evaluation else settings.reward, chat=settings.chat)
    if settings.eval_dataset is None or evaluation:
        return task
    if task.environment_factory is not None:
        raise InputError(f"task {task.name} has episodes and held-out prompts of its own: leave eval_dataset out")
    held_out = _examples(settings, settings.eval_dataset, settings.reward or "math")
    return replace(task, train=without_held_out(task.train, held_out, task.name), held_out=held_out)


def _user_task(settings: RunSettings) -> Task:
    assert settings.dataset is not None
    if settings.environment is not None:
        return _environment_task(settings, settings.dataset, settings.environment)
    assert settings.reward is not None
    reward = reward_function(settings.reward)
    train = _examples(settings, settings.dataset, settings.reward)
    held_out = None
    if settings.eval_dataset is not None:
        held_out = _examples(settings, settings.eval_dataset, settings.reward)
        train = without_held_out(train, held_out, settings.dataset)
    name = Path(settings.dataset).stem
    return Task(name, train, held_out, reward, None, verifier=verifier_function(settings.reward))


def _environment_task(settings: RunSettings, source: str, name: str) -> Task:
    """Episodes of the user's environment; its rows get every column of the data."""
    try:
        limits = EpisodeLimits(settings.environment_steps, settings.environment_seconds)
    except ValueError as error:
        raise InputError(str(error)) from error
    factory = guarded(imported(name, "environment"), limits)
    train = _examples(settings, source, "exact")
    if isinstance(train["prompt"][0], str):
        raise InputError(f"{source}: environment {name} needs chat messages as prompts: set chat (--chat)")
    held_out = None
    if settings.eval_dataset is not None:
        held_out = _examples(settings, settings.eval_dataset, "exact")
        train = without_held_out(train, held_out, source)
    reward = EpisodeReward(settings.max_failed_fraction)
    return Task(Path(source).stem, train, held_out, reward, None, environment_factory=factory)


def _examples(settings: RunSettings, source: str, reward: str) -> Dataset:
    examples = load_examples(
        source,
        prompt_column=settings.prompt_column,
        answer_column=settings.answer_column,
        split=settings.dataset_split,
        chat=settings.chat,
        empty_answers=True,
    )
    return check_answers(reward, examples, source, unverifiable_golds=settings.unverifiable_golds)


def encoded_prompt(tokenizer: Any, prompt: str | list, row: int) -> list[int]:
    """Token ids of a prompt: text as it is, chat messages through the chat template.

    Raises:
        InputError: naming the row, for chat messages without a template and for text the tokenizer cannot encode.
    """
    if not isinstance(prompt, str) and getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"row {row}: the prompt is a list of chat messages, but the tokenizer has no chat template")
    try:
        if isinstance(prompt, str):
            return list(tokenizer(prompt)["input_ids"])
        encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(encoded["input_ids"])
    except Exception as error:  # tokenizers and templates raise plain exceptions
        raise InputError(f"row {row}: the prompt {shortened(prompt)} cannot be encoded ({one_line(error)})") from error


def check_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Refuse, before training, prompts that the model's tokenizer cannot encode (the first 10,000 are tried)."""
    for row, prompt in enumerate(dataset.select(range(min(len(dataset), 10_000)))["prompt"], start=1):
        try:
            encoded_prompt(tokenizer, prompt, row)
        except InputError as error:
            raise InputError(f"model {model}, {error}") from error


def fit_threads(model: PreTrainedModel, *, on_cpu: bool) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise."""
    if on_cpu and "OMP_NUM_THREADS" not in os.environ and model.num_parameters() < SMALL_MODEL:
        torch.set_num_threads(1)
        logger.warning("Small model on a CPU: using one thread (set OMP_NUM_THREADS to choose another number).")
