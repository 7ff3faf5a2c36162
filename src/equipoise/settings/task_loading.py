"""The task that the settings name: prompts, held-out prompts and reward, checked; every refusal is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from datasets import Dataset

from equipoise.errors import InputError, SettingError
from equipoise.settings.data_keys import spelling
from equipoise.settings.run import RunSettings
from equipoise.tasks import RewardFunction, Task, named_task, templated, with_held_out, without_held_out
from equipoise.tasks.environments import EpisodeLimits, EpisodeReward, guarded
from equipoise.tasks.registry import is_own_data, takes_reward
from equipoise.tasks.rewards import imported
from equipoise.tasks.terms import parsed_terms


def load_task(settings: RunSettings) -> Task:
    """The task of a run; answers are checked before training.

    Prompts that are held out are not trained on: where training has them too, they are removed from it and counted.

    Raises:
        SettingError: data that cannot be used.
        InputError: as `named_task`; an environment that cannot be used, or held-out data for a task with episodes.
    """
    name = str(settings.task)
    with data_of("task", name):
        if settings.environment is not None:
            task = _episodes(settings, name, settings.environment)
        else:
            task = named_task(name, reward=settings.reward, chat=settings.chat)
    if settings.eval_task is not None:
        with data_of("eval_task", settings.eval_task):
            task = _held_out(settings, task, settings.eval_task)
    return task if settings.prompt_template is None else templated(task, settings.prompt_template)


@contextmanager
def data_of(key: str, text: str) -> Iterator[None]:
    """Put the key before a message that begins with a file or hub id which the key names.

    Args:
        key: "task" or "eval_task".
        text: its value.

    Raises:
        SettingError: in the place of such an `InputError`.
    """
    try:
        yield
    except InputError as error:
        terms = [term.name.removeprefix("data:") for term in parsed_terms(text, key) if term.name.startswith("data:")]
        if not any(str(error).startswith((f"{source}:", f"{source},")) for source in terms):
            raise
        raise SettingError(f"{spelling(key, text)} {error}", key) from error


def _episodes(settings: RunSettings, name: str, environment: str) -> Task:
    """Episodes of the user's environment; its rows get every column of the data."""
    try:
        limits = EpisodeLimits(settings.environment_steps, settings.environment_seconds)
    except ValueError as error:
        raise InputError(str(error)) from error
    factory = guarded(imported(environment, "environment"), limits)
    task = named_task(name, reward="exact", chat=settings.chat)
    if isinstance(task.train["prompt"][0], str):
        raise InputError(f"{name}: environment {environment} needs chat messages as prompts: set chat (--chat)")
    reward = EpisodeReward(settings.max_failed_fraction)
    return replace(task, reward=reward, verifier=None, environment_factory=factory)


def _held_out(settings: RunSettings, task: Task, name: str) -> Task:
    """The task, held out on other prompts.

    A task by name brings its verifier. Data of the user are scored as the training is: by `reward`, or by the verifier
    of the task, where that can read them; else by "math".
    """
    if settings.environment is not None and is_own_data(name):
        other = named_task(name, reward="exact", chat=settings.chat)
        rows = other.train if other.held_out is None else other.held_out
        return replace(task, train=without_held_out(task.train, rows, task.name), held_out=rows)
    other = evaluation_task(name, reward=settings.reward, chat=settings.chat)
    joined = with_held_out(task, other)
    own_verifier = settings.reward is None and is_own_data(name) and not takes_reward(str(settings.task))
    if own_verifier and joined.held_out is not None and _reads(task.evaluation_reward, joined.held_out):
        return replace(joined, verifier=task.evaluation_reward)
    return joined


def evaluation_task(
    name: str,
    *,
    reward: str | None = None,
    template: str | None = None,
    chat: bool = False,
    only: int | None = None,
) -> Task:
    """A task to evaluate on: the reward is for data of the user, other tasks have verifiers of their own.

    Args:
        name: as `named_task` takes it.
        reward: of the run, or of the flags; None: "math".
        template: around every prompt.
        chat: make text prompts messages of the user.
        only: so many prompts will be taken, the first: as `named_task`.

    Raises:
        InputError: as `named_task`.
    """
    return named_task(name, reward=reward if is_own_data(name) else None, template=template, chat=chat, only=only)


def _reads(verifier: RewardFunction, rows: Dataset) -> bool:
    """Whether a task's own verifier can score rows of the user: that of the ladder needs prompts of its form."""
    columns = {name: rows[name][:1] for name in rows.column_names if name != "prompt"}
    try:
        verifier(prompts=rows["prompt"][:1], completions=[""], completion_ids=[[0]], **columns)
    except (TypeError, ValueError, KeyError):
        return False
    return True
