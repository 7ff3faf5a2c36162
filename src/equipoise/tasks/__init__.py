"""Verifiable tasks: data sets of prompts with answers, and the reward functions that check completions against them."""

from equipoise.tasks.datasets import load_examples
from equipoise.tasks.ladder import is_valid_ladder, ladder_reward, ladder_task, ladder_tokenizer, random_walk_texts
from equipoise.tasks.rewards import check_answers, checked, exact_reward, math_reward, reward_function
from equipoise.tasks.task import RewardFunction, Task

__all__ = [
    "RewardFunction",
    "Task",
    "check_answers",
    "checked",
    "exact_reward",
    "is_valid_ladder",
    "ladder_reward",
    "ladder_task",
    "ladder_tokenizer",
    "load_examples",
    "math_reward",
    "random_walk_texts",
    "reward_function",
]
