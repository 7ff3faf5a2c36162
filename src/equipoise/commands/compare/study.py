"""A study: the same methods under the same conditions over paired seeds, read from one YAML file.

    title: What stale data does to each clip
    base: {task: ladder, max_steps: 400, …}          keys of every run, as in a recipe
    warm_start: true                                 each seed starts from a small model of its own for the task; or
                                                     `model` in base. warm_start_steps among the keys sets its length
    seeds: [0, 1, 2, 3, 4]
    conditions: {"staleness 8": {num_iterations: 2, …}, …}   keys that set up a condition; may be left out
    methods: {GRPO: {}, "fixed [0.9, 3.0]": {epsilon: 0.1, epsilon_high: 2.0}, …}
    only: {"staleness 1": [GRPO]}                    where not every method runs under every condition
    baselines: [GRPO]                                what the paired differences are taken to

One run is base, then condition, then method: a later key overrides an earlier one.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.errors import InputError, shortened
from equipoise.settings.presets import merged
from equipoise.settings.reading import read_yaml
from equipoise.trl.keys import build, checked_keys

KEYS = ("title", "base", "warm_start", "seeds", "conditions", "methods", "only", "baselines")
SET_PER_RUN = ("seed", "output_dir", "disable_tqdm")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        condition: its name; "" in a study without conditions.
        method: its name.
        seed: of the run, and of its warm start.
        keys: checked keys of the run, all but model (with a warm start), seed and output_dir.
        warm_start_steps: length of the warm start; None for that of the task.
    """

    condition: str
    method: str
    seed: int
    keys: dict[str, Any] = field(compare=False)
    warm_start_steps: int | None = None

    def base(self, output: Path) -> Path:
        """The model folder of its warm start inside the study's: one per task, length and seed."""
        steps = "" if self.warm_start_steps is None else f"-{self.warm_start_steps}"
        return output / "base" / (file_name(self.keys["task"]) + steps) / f"seed-{self.seed}"

    def folder(self, output: Path) -> Path:
        """Its run folder inside the study's."""
        parts = ["runs", *([file_name(self.condition)] if self.condition else []), file_name(self.method)]
        return output.joinpath(*parts, f"seed-{self.seed}")


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        title: for tables and figures.
        warm_start: every seed starts from a warm start of its own; else `model` is among the keys.
        conditions: names in order.
        methods: names in order.
        seeds: in order.
        baselines: methods the others are compared to.
        runs: every run, seed by seed, so that an interrupted study is complete for its first seeds.
    """

    title: str
    warm_start: bool
    conditions: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    baselines: tuple[str, ...]
    runs: tuple[StudyRun, ...]


def read_study(path: str | Path, *, seeds: list[int] | None = None) -> Study:
    """The study in a YAML file, every run's keys checked.

    Args:
        path: of the file.
        seeds: in place of the file's.

    Raises:
        InputError: a key, name or value that does not fit, by file and key.
    """
    origin = f"study {path}"
    values = read_yaml(path)
    for key in values:
        if key not in KEYS:
            raise InputError(f"{origin}: {key} is not known; a study has {', '.join(KEYS)}")
    methods = _mapping(values, "methods", origin)
    if not methods:
        raise InputError(f"{origin}: methods must name at least one method")
    conditions = _mapping(values, "conditions", origin) or {"": {}}
    for group in (methods, conditions):
        _distinct_folders(group, origin)
    warm_start = values.get("warm_start", False)
    if not isinstance(warm_start, bool):
        raise InputError(f"{origin}: warm_start must be true or false, got {shortened(warm_start)}")
    base = _mapping(values, "base", origin)
    if warm_start and "model" in base:
        raise InputError(f"{origin}: give either warm_start or a model in base, not both")
    only = _only(values, conditions, methods, origin)
    first = [next(iter(methods))]
    baselines = _names(_given(values, "baselines", first), methods, f"{origin}: baselines")
    chosen = _seeds(values["seeds"] if seeds is None and "seeds" in values else seeds or [0], origin)
    runs = []
    for condition, condition_keys in conditions.items():
        for method in only.get(condition, tuple(methods)):
            name = " / ".join(filter(None, (condition, method)))
            where = f"{origin}, {name}: "
            keys, steps = _run_keys((base, condition_keys, methods[method]), warm_start, where)
            _check(keys, needs_model=not warm_start, origin=where)
            runs += [StudyRun(condition, method, seed, keys, steps) for seed in chosen]
    runs.sort(key=lambda run: chosen.index(run.seed))
    return Study(
        title=str(values.get("title", Path(path).stem)),
        warm_start=warm_start,
        conditions=tuple(conditions),
        methods=tuple(methods),
        seeds=chosen,
        baselines=baselines,
        runs=tuple(runs),
    )


def file_name(name: str) -> str:
    """A name as a folder: letters, digits, dots and dashes stay, the rest becomes underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "_"


def _given(values: dict[Any, Any], key: Any, otherwise: Any) -> Any:
    """What the study says; only a key that is missing, or has no value, is left to the rest."""
    return otherwise if values.get(key) is None else values[key]


def _mapping(values: dict[str, Any], key: str, origin: str) -> dict[str, Any]:
    value = _given(values, key, {})
    if not isinstance(value, dict):
        raise InputError(f"{origin}: {key} must be a mapping, got {shortened(value)}")
    if key == "base":
        return _with_words(value)
    named = {}
    for name in value:
        keys = _given(value, name, {})
        if not isinstance(keys, dict):
            raise InputError(f"{origin}: {key}, {name} must be a mapping of keys to values, got {shortened(keys)}")
        named[str(name)] = _with_words(keys)
    return named


def _with_words(keys: dict[Any, Any]) -> dict[str, Any]:
    """A mapping whose keys are words, as at the top of a file: `true: 1` names the key "True", which there is not."""
    return {str(key): value for key, value in keys.items()}


def _distinct_folders(names: dict[str, Any], origin: str) -> None:
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(file_name(name), name)
        if other != name:
            folder = file_name(name)[:80]
            raise InputError(
                f"{origin}: {shortened(other)} and {shortened(name)} would share the folder {folder}; rename one"
            )


def _names(value: Any, known: dict[str, Any], what: str) -> tuple[str, ...]:
    names = tuple(map(str, value)) if isinstance(value, list) else ()
    if not names or len(set(names)) < len(names) or not known.keys() >= set(names):
        listed = ", ".join(map(repr, known))
        raise InputError(f"{what} must be a list of names, each once, out of {listed}, got {shortened(value)}")
    return names


def _only(values: dict[str, Any], conditions: dict, methods: dict, origin: str) -> dict[str, tuple[str, ...]]:
    only = _given(values, "only", {})
    if not isinstance(only, dict) or any(str(name) not in conditions for name in only):
        raise InputError(f"{origin}: only must map conditions to lists of methods, got {shortened(only)}")
    return {str(name): _names(chosen, methods, f"{origin}: only, {name}") for name, chosen in only.items()}


def _seeds(value: Any, origin: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise InputError(
            f"{origin}: seeds must be a list of different whole numbers from 0 to {2**32 - 1}, got {shortened(value)}"
        )
    return tuple(value)


def _run_keys(levels: tuple[dict, ...], warm_start: bool, origin: str) -> tuple[dict[str, Any], int | None]:
    """Checked keys of all levels, and the length of the warm start where it is given."""
    try:
        values = merged(*levels)
    except InputError as error:
        raise InputError(f"{origin}{error}") from error
    for key in SET_PER_RUN:
        if key in values:
            raise InputError(f"{origin}{key} is set by the study; leave it out")
    steps = values.pop("warm_start_steps", None)
    if steps is not None and (not warm_start or type(steps) is not int or steps < 1):
        rule = "a whole number >= 1 (with warm_start: true)"
        raise InputError(f"{origin}warm_start_steps must be {rule}, got {shortened(steps)}")
    keys = checked_keys(values, origin)
    if warm_start and not keys.get("task"):
        raise InputError(f"{origin}warm_start needs a task")
    return keys, steps


def _check(keys: dict[str, Any], *, needs_model: bool, origin: str) -> None:
    """Every run's settings are checked before the first run starts."""
    logger = logging.getLogger("equipoise")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it says about the machine it says once per run, in its log
    try:
        build(keys | {"output_dir": "study"} | ({} if needs_model else {"model": "study"}))
    except InputError as error:
        raise InputError(f"{origin}{error}") from error
    finally:
        logger.setLevel(level)
