"""The options that name data: tasks, or a data set as the task that it is."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import arg

from equipoise.diagnostics.trust import named_code
from equipoise.errors import InputError
from equipoise.settings.data_keys import data_term

Tasks = TypeVar("Tasks", str, tuple[str, ...])


@dataclass(frozen=True)
class DataOptions(Generic[Tasks]):
    """What to take prompts and answers from; by default the data of the run."""

    task: Annotated[Tasks | None, arg(metavar="TASK")] = field(
        default=None,
        metadata={"help": "By name: ladder, reasoning_gym:NAME, aime_2024, data:FILE … (`evaluate` takes several)."},
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "boxed, answer_tags or text with {prompt} in it."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Short for --task data:FILE: JSONL, Parquet or CSV file, or hub id, with ?answer_column=…"},
    )
    chat: bool = field(default=False, metadata={"help": "Wrap text prompts as one user message."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "What the chat template is told, as {enable_thinking: false}; unset: as the run."},
    )
    reward: str | None = field(
        default=None, metadata={"help": "exact, math or module:function (the first term of a sum counts)."}
    )

    def __post_init__(self) -> None:
        if self.task and self.dataset is not None:
            raise InputError("give either --task or --dataset, not both")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are named; none where those of the run are meant."""
        if self.dataset is not None:
            return (data_term(self.dataset),)
        return (self.task,) if isinstance(self.task, str) else self.task or ()

    @property
    def named(self) -> bool:
        """Whether they name any data."""
        return bool(self.tasks)

    def keys_over(self, keys: dict[str, Any]) -> dict[str, Any]:
        """The keys of a run for this data; where none is named, those of `keys`, with what else is given over them."""
        own = {"prompt_template": self.prompt_template, "chat": self.chat, "reward": self.reward}
        if self.named:
            return own | {"task": self.tasks[0]}
        given = {key: value for key, value in own.items() if value}
        return {key: keys[key] for key in ("task", *own) if key in keys} | given

    @property
    def code(self) -> list[str]:
        """The code that they name: the user's own word, so that it may be run."""
        return named_code({"reward": self.reward})
