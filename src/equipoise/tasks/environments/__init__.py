"""Environments for episodes of several turns: guarded against hanging and failing, and some to begin with."""

from equipoise.tasks.environments.calculator import calculator_task
from equipoise.tasks.environments.episode import Episode, EpisodeLimits, guarded
from equipoise.tasks.environments.open_env import open_environment
from equipoise.tasks.environments.reward import EpisodeReward, EpisodesFailedError
from equipoise.tasks.environments.text_world import textworld_task
from equipoise.tasks.environments.tools import DocumentIndex, arithmetic, document_tools

__all__ = [
    "DocumentIndex",
    "Episode",
    "EpisodeLimits",
    "EpisodeReward",
    "EpisodesFailedError",
    "arithmetic",
    "calculator_task",
    "document_tools",
    "guarded",
    "open_environment",
    "textworld_task",
]
