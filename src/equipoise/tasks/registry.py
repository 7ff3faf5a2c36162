"""Tasks by name, alone or mixed: what `--task` takes.

For example `ladder`, `reasoning_gym:chain_sum?min_terms=2&max_terms=4`, `dapo_math_17k?held_out=200`, or
`0.7*dapo_math_17k + 0.3*data:mine.jsonl?answer_column=solution`.
"""

from dataclasses import replace

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks.categories import categories_task
from equipoise.tasks.datasets import with_column
from equipoise.tasks.environments.calculator import calculator_task
from equipoise.tasks.environments.text_world import textworld_task
from equipoise.tasks.ladder import ladder_task
from equipoise.tasks.math_data import MATH_DATA, math_task
from equipoise.tasks.mixtures import MixtureReward, mixture
from equipoise.tasks.procedural import reasoning_gym_task
from equipoise.tasks.prompts import asked_forms, prompt_template, with_template, without_held_out
from equipoise.tasks.rewards import forms_read
from equipoise.tasks.task import Task
from equipoise.tasks.terms import Term, called, nearest, parsed_terms

PREFIXES = ("reasoning_gym:", "data:")


def known_tasks() -> list[str]:
    """The names of all tasks; those that end in a colon take a name, path or hub id after it."""
    return ["ladder", "categories", "calculator", "textworld", *PREFIXES, *MATH_DATA]


def check_task_name(text: str) -> None:
    """Refuses, before anything is loaded, text that names no task; parameters are checked when it is loaded.

    Raises:
        InputError: with the nearest names.
    """
    for term in parsed_terms(text, "task"):
        _check_name(term)


def named_task(
    text: str,
    *,
    reward: str | None = None,
    template: str | None = None,
    chat: bool = False,
    seed: int = 0,
    only: int | None = None,
) -> Task:
    """The task of that name, or the mixture of several.

    Args:
        text: "name?parameter=value&…", or a sum of such terms with weights: "0.7*a + 0.3*b".
        reward: for tasks of mathematics and data, as `reward_function` takes it; None: "math". The others bring theirs.
        template: as `prompt_template` takes it, put around every prompt.
        chat: make text prompts messages of the user, for the chat template of the model.
        seed: of the mixture.
        only: of a single task, as `math_task` takes it: there may be more prompts all the same.

    Raises:
        InputError: an unknown task (the nearest names), wrong parameters, or whatever its data are refused for.
    """
    terms = parsed_terms(text, "task")
    for term in terms:
        _check_name(term)
    if reward is not None and not any(map(_takes_reward, terms)):
        raise InputError(f"task {text} has a reward of its own: leave reward out, got {reward!r}")
    tasks = [_loaded(term, reward or "math", chat, only if len(terms) == 1 else None) for term in terms]
    task = tasks[0] if len(tasks) == 1 else mixture(tasks, [term.weight for term in terms], seed=seed)
    return task if template is None else templated(task, template)


def templated(task: Task, template: str) -> Task:
    """The task with a template around every prompt; as `prompt_template` takes it.

    Raises:
        InputError: no template, a task whose reward reads the prompt (the ladder) or that has an environment, or a
            template that asks for a form of answer which the reward of the task does not read.
    """
    text = prompt_template(template)
    if task.name == "ladder" or task.environment_factory is not None:
        raise InputError(f"prompt_template does not fit the task {task.name}: its prompts are fixed")
    _check_forms(task, text)
    held_out = None if task.held_out is None else with_template(task.held_out, text)
    return replace(task, train=with_template(task.train, text), held_out=held_out)


def _check_forms(task: Task, template: str) -> None:
    asked = asked_forms(template)
    for reward in (task.reward, task.evaluation_reward):
        for name, part in reward.rewards.items() if isinstance(reward, MixtureReward) else [(task.name, reward)]:
            read = forms_read(part)
            if asked and read is not None and not asked & read:
                raise InputError(
                    f"prompt_template asks for an answer in the form {' or '.join(sorted(asked))}, and the reward of"
                    f" the task {name} reads {' or '.join(sorted(read))} alone"
                )


def with_held_out(task: Task, other: Task) -> Task:
    """The task, held out on the prompts of another: its held-out ones where it has some, else all.

    What both contain is removed from training. Evaluations use the verifier of the other task.

    Raises:
        InputError: when nothing is left to train on, or one of the two has episodes.
    """
    for one in (task, other):
        if one.environment_factory is not None:
            raise InputError(f"task {one.name} has episodes and held-out prompts of its own: leave eval_task out")
    held_out = other.train if other.held_out is None else other.held_out
    train = without_held_out(task.train, held_out, task.name)
    return replace(task, train=train, held_out=held_out, verifier=other.evaluation_reward)


def _check_name(term: Term) -> None:
    prefix, colon, rest = term.name.partition(":")
    if colon and f"{prefix}:" in PREFIXES:
        if not rest:
            raise InputError(f"task {term.name} needs a name after the colon")
        return
    if term.name not in known_tasks():
        raise InputError(
            f"task {term.name!r} is not known{nearest(term.name, known_tasks())}; tasks are {', '.join(known_tasks())}"
        )


def is_own_data(text: str) -> bool:
    """Whether the text names data of the user, "data:…", and nothing else."""
    terms = parsed_terms(text, "task")
    return len(terms) == 1 and terms[0].name.startswith("data:")


def takes_reward(text: str) -> bool:
    """Whether the reward of the task, or of a part of it, is for the user to choose."""
    return any(map(_takes_reward, parsed_terms(text, "task")))


def _takes_reward(term: Term) -> bool:
    return term.name in MATH_DATA or term.name.startswith("data:")


def _loaded(term: Term, reward: str, chat: bool, only: int | None) -> Task:
    prefix, _, rest = term.name.partition(":")
    if _takes_reward(term):
        return math_task(term.name, term.parameters, reward=reward, chat=chat, only=only)
    if prefix == "reasoning_gym":
        task = reasoning_gym_task(rest, term.parameters)
        return _as_chat(task) if chat else task
    if term.name == "categories":
        task = called("task categories", categories_task, term.parameters)
        return _as_chat(task) if chat else task
    if term.name == "calculator":
        return called("task calculator", calculator_task, term.parameters)
    if term.name == "textworld":
        return called("task textworld", textworld_task, term.parameters)
    if chat:
        raise InputError(f"task {term.name} has plain text prompts: leave chat out")
    return called(f"task {term.name}", _ladder, term.parameters)


def _ladder(seed: int = 0) -> Task:
    return ladder_task(seed)


def _as_chat(task: Task) -> Task:
    def messages(dataset: Dataset) -> Dataset:
        prompts = [[{"role": "user", "content": prompt}] for prompt in dataset["prompt"]]
        return with_column(dataset, "prompt", prompts)

    return replace(
        task, train=messages(task.train), held_out=None if task.held_out is None else messages(task.held_out)
    )
