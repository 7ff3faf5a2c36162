"""The options that name data: a task, or a data set with its reward."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import arg

Tasks = TypeVar("Tasks", str, tuple[str, ...])


@dataclass(frozen=True)
class DataOptions(Generic[Tasks]):
    """What to take prompts and answers from; by default the data of the run."""

    task: Annotated[Tasks | None, arg(metavar="TASK")] = field(
        default=None,
        metadata={"help": "By name: ladder, reasoning_gym:NAME, aime_2024, … (`evaluate` takes several)."},
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "boxed, answer_tags or text with {prompt} in it."}
    )
    dataset: str | None = field(default=None, metadata={"help": "JSONL, Parquet or CSV file, or hub id."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the answers."})
    chat: bool = field(default=False, metadata={"help": "Wrap text prompts as one user message."})
    reward: str | None = field(
        default=None, metadata={"help": "exact, math or module:function (the first term of a sum counts)."}
    )

    @property
    def named(self) -> bool:
        """Whether they name any data."""
        return bool(self.task or self.dataset)

    def keys_over(self, keys: dict[str, Any]) -> dict[str, Any]:
        """The keys of a run for this data; where none is named, those of `keys` that name it."""
        own = asdict(self)
        return own if self.named else {key: keys[key] for key in own if key in keys}
