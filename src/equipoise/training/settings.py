"""From a YAML file and flags to checked settings: one flat set of keys, as TRL's users know it; a flag overrides a key.

Every refusal is one line that names the file or flag, the key, the rule and the value.
"""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import InputError
from equipoise.tasks.datasets import shortened
from equipoise.tasks.prompts import prompt_template
from equipoise.tasks.registry import check_task_name
from equipoise.training.config import EquipoiseConfig
from equipoise.training.presets import PRESETS, with_preset

# The names TRL's own scripts use for the same things.
ALIASES = {"model_name_or_path": "model", "dataset_name": "dataset"}


@dataclass
class RunSettings:
    """What to train on what, beside the trainer's own settings (`EquipoiseConfig`)."""

    model: str = field(default="", metadata={"help": "Model folder or hub id. Required."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "A task by name, with parameters and weights: 'ladder', 'reasoning_gym:chain_sum?min_terms=2', "
            "'0.7*dapo_math_17k + 0.3*data:mine.jsonl'. Or give a data set."
        },
    )
    eval_task: str | None = field(
        default=None, metadata={"help": "Hold out the prompts of this task instead of the task's own: 'aime_2024'."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "'boxed', 'answer_tags' or text with {prompt} in it, around every prompt."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Training data: JSONL, Parquet or CSV file, or hub id, with prompts and answers."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Held-out data in the same form."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts: text or chat messages."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the answers."})
    unverifiable_golds: str = field(
        default="drop",
        metadata={"help": "Rows of dataset whose answer 'math' cannot verify: 'drop' (at most 1%) or 'refuse'."},
    )
    chat: bool = field(default=False, metadata={"help": "Wrap text prompts as one user message (chat template)."})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "'exact', 'math' (math-verify) or 'module:function', and terms that shape: "
            "'math + 0.1*format?style=boxed + overlong?max=2048&buffer=512'. Required with a data set."
        },
    )
    environment: str | None = field(
        default=None,
        metadata={"help": "Episodes with this environment class, 'module:Class', for the prompts of dataset."},
    )
    environment_steps: int = field(default=16, metadata={"help": "Tool calls per episode."})
    environment_seconds: float = field(default=30.0, metadata={"help": "For one step of an environment."})
    max_failed_fraction: float = field(
        default=0.2, metadata={"help": "Stop when more episodes than this fail by their environment."}
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Settings that belong together, by name: {', '.join(PRESETS)}. Other keys override it."},
    )
    evaluate_every: int = field(
        default=0, metadata={"help": "Evaluate on the held-out data every so many updates; 0: only at the end."}
    )
    evaluate_samples: int = field(default=16, metadata={"help": "Samples per held-out prompt."})
    evaluate_k: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "The k of pass@k."})
    evaluate_prompts: int | None = field(
        default=None, metadata={"help": "Use only the first so many held-out prompts."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the whole model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter; unset: peft's choice for the architecture."}
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("model is required: a model folder or a hub id (--model)")
        if (self.task is None) == (self.dataset is None):
            raise InputError(f"give either task or dataset, got task={self.task!r} and dataset={self.dataset!r}")
        for name in (self.task, self.eval_task):
            if name is not None:
                check_task_name(name)
        if self.eval_task is not None and self.eval_dataset is not None:
            raise InputError("give either eval_task or eval_dataset, not both")
        if self.unverifiable_golds not in ("drop", "refuse"):
            raise InputError(f"unverifiable_golds must be one of drop, refuse, got {self.unverifiable_golds!r}")
        if self.prompt_template is not None:
            prompt_template(self.prompt_template)
        if self.environment is not None and (self.dataset is None or self.reward is not None):
            raise InputError(
                "environment needs a dataset of prompts and brings its own reward, "
                f"got dataset={self.dataset!r} and reward={self.reward!r}"
            )
        if not 0 < self.max_failed_fraction <= 1:
            raise InputError(f"max_failed_fraction must be in (0, 1], got {self.max_failed_fraction}")
        if self.dataset is not None and self.reward is None and self.environment is None:
            raise InputError("a data set needs a reward: 'exact', 'math' or 'module:function' (--reward)")
        if self.evaluate_prompts is not None and self.evaluate_prompts < 1:
            raise InputError(f"evaluate_prompts must be >= 1, got evaluate_prompts={self.evaluate_prompts}")
        for name in ("evaluate_every", "evaluate_samples"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be >= 0, got {name}={getattr(self, name)}")
        if not self.evaluate_k or any(not 1 <= k <= self.evaluate_samples for k in self.evaluate_k):
            raise InputError(
                f"evaluate_k must be numbers from 1 to evaluate_samples={self.evaluate_samples}, "
                f"got evaluate_k={self.evaluate_k}"
            )


def known_keys() -> dict[str, Any]:
    """Every key of a run with its type."""
    hints = typing.get_type_hints(RunSettings) | typing.get_type_hints(EquipoiseConfig)
    names = [f.name for cls in (RunSettings, EquipoiseConfig) for f in dataclasses.fields(cls) if f.init]
    return {name: hints[name] for name in names}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, unchecked.

    Raises:
        InputError: a file that is missing, unreadable, no YAML, no mapping, or that has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        loaded = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"config {path}{where} is no valid YAML: {getattr(error, 'problem', error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} must be a mapping of keys to values, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but two equal keys are an error, and `no` is a word (as in `save_strategy: no`)."""

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|false|False)$"), list("tTfF"))


def read_flags(arguments: list[str]) -> dict[str, Any]:
    """`--key value`, `--key=value` and `--key` (true) as unchecked keys; several values make a list.

    Raises:
        InputError: a word that belongs to no flag, a flag given twice, or a value that is no YAML.
    """
    values: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            key = name.replace("-", "_")
            if key in values:
                raise InputError(f"flag --{name} is given twice")
            values[key] = [value] if equals else []
        elif key is None:
            raise InputError(f"expected a flag (--key value), got {argument!r}")
        else:
            values[key].append(argument)
    return {key: _flag_value(key, words) for key, words in values.items()}


def _flag_value(key: str, words: list[str]) -> Any:
    try:
        parsed = [yaml.load(word, Loader=_Loader) if word else "" for word in words]
    except yaml.YAMLError as error:
        raise InputError(f"flag --{key} has a value that cannot be read: {' '.join(words)!r}") from error
    return True if not parsed else parsed[0] if len(parsed) == 1 else parsed


def checked_keys(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Values of known keys, converted to their types.

    Args:
        values: as read.
        origin: what the message calls them: "config FILE: key" or "flag --".

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of the wrong type.
    """
    known = known_keys()
    checked = {}
    for given, value in values.items():
        key = ALIASES.get(given, given)
        if key not in known:
            near = difflib.get_close_matches(given, [*known, *ALIASES], n=1)
            raise InputError(f"{origin}{given} is not known" + (f"; did you mean {near[0]}?" if near else ""))
        if key in checked:
            raise InputError(f"{origin}{given} is given twice, under another name")
        try:
            checked[key] = _converted(value, known[key])
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{origin}{given} must be {_type_name(known[key])}, got {shortened(value)}") from None
    return checked


def _converted(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; TypeError or ValueError when it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _converted_to_any(value, arguments)
    if hint is Any:
        return value
    if hint is type(None):
        return _require(value is None, value)
    if hint is bool:
        return _require(isinstance(value, bool), value)
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return str(_require(isinstance(value, (str, int, float)) and not isinstance(value, bool), value))
    if origin is list:
        return [_converted(item, arguments[0]) for item in (value if isinstance(value, list) else [value])]
    if hint is dict or origin is dict:
        return _require(isinstance(value, dict), value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    return value


def _converted_to_any(value: Any, hints: tuple) -> Any:
    # An exact type first: "5" for `str | int` stays a string, 5 a number.
    for hint in sorted(hints, key=lambda h: not (isinstance(h, type) and type(value) is h)):
        try:
            return _converted(value, hint)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _number(value: Any, kind: type) -> int | float:
    _require(not isinstance(value, bool) and isinstance(value, (int, float, str)), value)
    number = float(value)  # YAML reads 1e-3 as a string
    _require(not math.isnan(number), value)
    return number if kind is float else int(_require(number.is_integer(), number))


def _require(holds: bool, value: Any) -> Any:
    if not holds:
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(a) for a in arguments if a is not type(None)))
    if typing.get_origin(hint) is list:
        return f"a list ({_type_name(arguments[0])} each)"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def build(values: dict[str, Any]) -> tuple[RunSettings, EquipoiseConfig]:
    """Settings from checked keys.

    Raises:
        InputError: values out of range, missing or excluding each other.
    """
    values = with_preset(values)
    own = {f.name for f in dataclasses.fields(RunSettings)}
    run = RunSettings(**{k: v for k, v in values.items() if k in own})
    if not values.get("output_dir"):
        raise InputError("output_dir is required: the run folder (--output_dir)")
    if values.get("resume_from_checkpoint"):
        raise InputError("resume_from_checkpoint has no effect here: continue a run with --resume RUN")
    try:
        return run, EquipoiseConfig(**{k: v for k, v in values.items() if k not in own})
    except (ValueError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
