"""Verifiable tasks: prompts with answers, alone or in episodes, and the reward functions that check completions."""

from equipoise.tasks.answers import check_answers
from equipoise.tasks.categories import categories_reward, categories_task
from equipoise.tasks.datasets import load_examples
from equipoise.tasks.ladder import is_valid_ladder, ladder_reward, ladder_task, random_walk_texts
from equipoise.tasks.mixtures import mixture
from equipoise.tasks.prompts import PROMPT_TEMPLATES, content_key, with_template, without_held_out
from equipoise.tasks.registry import check_task_name, known_tasks, named_task, templated, with_held_out
from equipoise.tasks.rewards import checked, exact_reward, math_reward, reward_function, verifier_function
from equipoise.tasks.task import AnswerReader, RewardFunction, Task
from equipoise.tasks.verification import Verdict, VerifierPool

__all__ = [
    "PROMPT_TEMPLATES",
    "AnswerReader",
    "RewardFunction",
    "Task",
    "Verdict",
    "VerifierPool",
    "categories_reward",
    "categories_task",
    "check_answers",
    "check_task_name",
    "checked",
    "content_key",
    "exact_reward",
    "is_valid_ladder",
    "known_tasks",
    "ladder_reward",
    "ladder_task",
    "load_examples",
    "math_reward",
    "mixture",
    "named_task",
    "random_walk_texts",
    "reward_function",
    "templated",
    "verifier_function",
    "with_held_out",
    "with_template",
    "without_held_out",
]
