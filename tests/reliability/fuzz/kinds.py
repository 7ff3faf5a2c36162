"""What is mutated, and which command gets it."""

import json
import random
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fuzz import byte_mutations, place_mutations, tables, value_mutations, word_mutations, yaml_mutations
from fuzz.command_lines import COMMAND_LINES, flags
from fuzz.materials import DATA, EVALUATION, take

Words = list[str]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: (rng, materials, place) -> the words of a command, with what they name in the place.
        share: of all inputs, against the other kinds.
        works: the command does its work, which is otherwise stopped once every check is passed.
    """

    make: Callable[[random.Random, Path, Path], Words]
    share: float
    works: bool = False


OF_A_CONFIGURATION = """
plan --config {} --model model
plan --config {}
plan --config {} --json --processes 8
plan --config {} --sharding zero3
plan --config {} --model model --prompt_tokens 4
doctor {}
doctor {} --json
doctor {}
doctor {}
doctor {}
train --config {} --model model --output_dir out
train --config {} --model missing --output_dir out
train --config {} --smoke --output_dir out
"""

OF_DATA = """
doctor own.yaml --dataset {} --reward exact
doctor own.yaml --dataset {} --reward math
doctor own.yaml --dataset {} --reward exact --chat
doctor own.yaml --dataset {} --reward 'exact + 0.1*format:boxed'
doctor own.yaml --dataset {} --reward exact
train --config own.yaml --dataset {} --reward exact --output_dir out
train --config own.yaml --eval_dataset {} --output_dir out
evaluate model --dataset {} --reward exact --output out.json
probe model --dataset {} --reward exact --prompts 2 --batches 1 --output out
"""

OF_A_RUN = f"""
doctor run
doctor run --json
doctor run --dataset data.jsonl --reward exact
report run -o out.html
report run -o out.html
report run second -o out.html
report run --live --port 0
evaluate run {EVALUATION}
evaluate run
probe run --output out
train --config run/config.yaml --output_dir out
"""

OF_A_MODEL = """
doctor model
doctor model --dataset data.jsonl --reward exact
plan --model model --dataset data.jsonl --reward exact
evaluate model --dataset data.jsonl --reward exact
probe model --dataset data.jsonl --reward exact --output out
"""


def _one_of(rng: random.Random, lines: str, name: str = "") -> Words:
    """One of the command lines, with the name in its place."""
    return [name if word == "{}" else word for word in shlex.split(rng.choice(lines.strip().splitlines()))]


def _take(names: str, materials: Path, place: Path) -> None:
    for name in names.split():
        take(name, materials, place)


def configuration(rng: random.Random, materials: Path, place: Path) -> Words:
    """A configuration file."""
    from equipoise.trl.keys import known_keys

    _take("model data.jsonl held_out.jsonl", materials, place)
    path = take(_chosen(rng, materials, "configs"), materials, place)
    spoil_yaml(rng, path, materials, tuple(known_keys()))
    return _one_of(rng, OF_A_CONFIGURATION, path.name)


def one_key(rng: random.Random, materials: Path, place: Path) -> Words:
    """One key of all that there are, with a value of another type or at a bound; in the file or as a flag."""
    from equipoise.trl.keys import known_keys

    _take("model data.jsonl held_out.jsonl", materials, place)
    path = take("configs/own.yaml", materials, place)
    key = rng.choice(sorted(known_keys()))
    words = _one_of(rng, OF_A_CONFIGURATION, path.name)
    if rng.random() < 0.3 and words[0] != "doctor":
        return [*words, f"--{key}", word_mutations.value(rng)]
    values = yaml.safe_load(path.read_bytes()) | {key: value_mutations.hostile(rng)}
    path.write_bytes(_as_yaml(values, rng))
    return words


def study(rng: random.Random, materials: Path, place: Path) -> Words:
    """A study."""
    from equipoise.trl.keys import known_keys

    path = take(_chosen(rng, materials, "studies"), materials, place)
    spoil_yaml(rng, path, materials, (*known_keys(), "title", "seeds", "only", "baselines", "warm_start"))
    return ["compare", path.name, "--output", "out", *rng.choice(([], ["--report"], ["--seeds", "1", "2"]))]


def study_folder(rng: random.Random, materials: Path, place: Path) -> Words:
    """What a study has found so far."""
    take("study.yaml", materials, place)
    folder = take("study", materials, place)
    path = rng.choice([path for path in _files(folder) if path.suffix in (".yaml", ".jsonl")])
    if rng.random() < 0.2:
        place_mutations.misplace(rng, rng.choice((path, path.parent)))
    elif path.suffix == ".yaml":
        spoil_yaml(rng, path, materials, ("model", "task"))
    else:
        tables.spoil(rng, path, rng.choice(_files(folder)))
    return ["compare", "study.yaml", "--output", "study", *rng.choice(([], ["--report"], ["--report"]))]


def accelerate(rng: random.Random, materials: Path, place: Path) -> Words:
    """A configuration of accelerate."""
    _take("model configs/own.yaml", materials, place)
    path = take(_chosen(rng, materials, "accelerate"), materials, place)
    spoil_yaml(rng, path, materials, ("num_processes", "distributed_type", "fsdp_config", "deepspeed_config"))
    return ["plan", "--config", "own.yaml", "--accelerate", path.name]


SUFFIXES = (".json", ".arrow", ".txt", "", ".jsonl", ".csv", ".parquet", ".JSONL", ".json-lines")
QUERIES = ("?prompt_column=messages&answer_column=solution.final", "?answer_column=level", "?split=test", "?x=1", "?")


def data_file(rng: random.Random, materials: Path, place: Path) -> Words:
    """A data file, or the words that name it."""
    _take("model held_out.jsonl configs/own.yaml " + " ".join(DATA), materials, place)
    path = place / rng.choice(DATA)
    tables.spoil(rng, path, _another_file(rng, materials))
    if rng.random() < 0.15 and path.is_file():
        path = path.rename(path.with_suffix(rng.choice(SUFFIXES)))
    name = path.name + ("?prompt_column=messages&answer_column=solution.final" if path.stem == "chat" else "")
    if rng.random() < 0.15:
        name = path.name + rng.choice(QUERIES)
    if rng.random() < 0.15:
        name = word_mutations.mutated(rng, ["doctor", name], flags())[-1]
    return _one_of(rng, OF_DATA, name)


def run_folder(rng: random.Random, materials: Path, place: Path) -> Words:
    """A run folder."""
    _take("model data.jsonl held_out.jsonl", materials, place)
    run = take("run", materials, place)
    for folder in run.glob("checkpoint-*"):  # of no use to who reads a run that has its model
        shutil.rmtree(folder)
    (place / "second").symlink_to("run")
    for _ in range(rng.choice((1, 1, 2))):
        _spoil_run(rng, run, materials)
    return _one_of(rng, OF_A_RUN)


def _spoil_run(rng: random.Random, run: Path, materials: Path) -> None:
    files = [path for path in _files(run) if "checkpoint-" not in str(path)]
    heads = [path for path in files if path.parent == run or path.parent.name == "tokens"]
    path = rng.choice(heads if rng.random() < 0.8 and heads else files or [run])
    if not path.is_file():
        return
    if rng.random() < 0.12:
        place_mutations.misplace(rng, rng.choice((path, path if path.parent == run else path.parent)))
    elif path.suffix == ".yaml":
        spoil_yaml(rng, path, materials, ())
    else:
        tables.spoil(rng, path, rng.choice(files))


def log(rng: random.Random, materials: Path, place: Path) -> Words:
    """The log of a run on verl."""
    path = take("log.jsonl", materials, place)
    tables.spoil(rng, path, _another_file(rng, materials))
    return ["doctor", "log.jsonl", *rng.choice(([], ["--json"]))]


def model_folder(rng: random.Random, materials: Path, place: Path) -> Words:
    """A model folder."""
    _take("data.jsonl", materials, place)
    files = _files(take("model", materials, place))
    tables.spoil(rng, rng.choice(files), rng.choice(files))
    return _one_of(rng, OF_A_MODEL)


def samples(rng: random.Random, materials: Path, place: Path) -> Words:
    """Samples that an interrupted evaluation goes on from; the rest is sampled."""
    _take("model data.jsonl held_out.jsonl run", materials, place)
    files = _files(take("samples", materials, place))
    for path in files:
        if path.suffix == ".jsonl" and rng.random() < 0.5:
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: rng.randrange(1, 4)]))
    tables.spoil(rng, rng.choice(files), rng.choice(files))
    return ["evaluate", "run", *EVALUATION.split(), "--samples_output", "samples", "--output", "out.json"]


def checkpoint(rng: random.Random, materials: Path, place: Path) -> Words:
    """An interrupted run that goes on: its checkpoint, or what else lies in its folder."""
    _take("model data.jsonl held_out.jsonl", materials, place)
    run = take("begun", materials, place).rename(place / "run")
    files = _files(run)
    path = rng.choice(files)
    if rng.random() < 0.1:
        place_mutations.misplace(rng, rng.choice((path, path if path.parent == run else path.parent)))
    else:
        tables.spoil(rng, path, rng.choice(files))
    return ["train", "--resume", "run"]


def words(rng: random.Random, materials: Path, place: Path) -> Words:
    """The words of a command line."""
    line = list(rng.choice(COMMAND_LINES))
    _take("configs/own.yaml held_out.jsonl data.jsonl", materials, place)
    for name in ("model", "run", "begun", "log.jsonl"):
        if any(name in word for word in line):
            take(name, materials, place)
    take("studies/staleness.yaml", materials, place).rename(place / "study.yaml")
    return word_mutations.mutated(rng, line, flags())


KINDS = {
    "configuration": Kind(configuration, 16),
    "one-key": Kind(one_key, 13),
    "study": Kind(study, 6),
    "study-folder": Kind(study_folder, 3),
    "accelerate": Kind(accelerate, 5),
    "data-file": Kind(data_file, 16),
    "run-folder": Kind(run_folder, 11),
    "log": Kind(log, 8),
    "model-folder": Kind(model_folder, 2),
    "samples": Kind(samples, 0.5, works=True),
    "checkpoint": Kind(checkpoint, 0.3, works=True),
    "words": Kind(words, 18),
}


def numbers(count: int, kinds: list[str]) -> list[tuple[str, int]]:
    """(kind, number) of so many inputs, shared among the kinds by their shares, mixed."""
    whole = sum(KINDS[kind].share for kind in kinds)
    places = []
    for kind in kinds:
        share = count * KINDS[kind].share / whole
        places += [((number + 0.5) / share, kind, number) for number in range(round(share))]
    return [(kind, number) for _, kind, number in sorted(places)]


def spoil_yaml(rng: random.Random, path: Path, materials: Path, keys: tuple[str, ...]) -> None:
    """A YAML file with something wrong, mostly.

    Args:
        rng: what is drawn is drawn from it.
        path: of the file.
        materials: for another file to take bytes from.
        keys: that may be added.
    """
    chosen, data = rng.randrange(10), path.read_bytes()
    if chosen < 4:
        text = yaml_mutations.mutated(rng, data.decode("utf-8", "surrogateescape"))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif chosen < 7:
        path.write_bytes(_as_yaml(value_mutations.mutated(rng, _value_of(data), keys), rng))
    elif chosen < 9:
        path.write_bytes(byte_mutations.damaged(rng, data, _another_file(rng, materials).read_bytes()))
    else:
        place_mutations.misplace(rng, path)


def _value_of(data: bytes) -> Any:
    """What is in a YAML file; the file may be spoilt already."""
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}


def _as_yaml(value: Any, rng: random.Random) -> bytes:
    """The value as YAML, in one of its two styles."""
    if rng.random() < 0.5:
        try:
            return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
        except (RecursionError, yaml.YAMLError):  # very deep
            pass
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, default=str)
    return text.replace("Infinity", ".inf").replace("NaN", ".nan").encode("utf-8", "surrogatepass")


def _chosen(rng: random.Random, materials: Path, folder: str) -> str:
    return f"{folder}/{rng.choice(sorted(path.name for path in (materials / folder).iterdir()))}"


def _another_file(rng: random.Random, materials: Path) -> Path:
    folder = rng.choice(("configs", "studies", "accelerate", "data"))
    return materials / (rng.choice(DATA) if folder == "data" else _chosen(rng, materials, folder))


def _files(folder: Path) -> list[Path]:
    """The files in a folder and the folders in it; no links."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
