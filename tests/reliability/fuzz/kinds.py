"""What is mutated, and which command gets it."""

import json
import random
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


def _yaml(value: Any, rng: random.Random) -> bytes:
    """The value as YAML, in one of its two styles."""
    if rng.random() < 0.5:
        try:
            return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
        except (RecursionError, yaml.YAMLError):
            pass
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return text.replace("Infinity", ".inf").replace("NaN", ".nan").encode("utf-8", "surrogatepass")


def _spoil_yaml(rng: random.Random, path: Path, materials: Path, keys: tuple[str, ...]) -> None:
    """A YAML file with something wrong, mostly."""
    chosen = rng.randrange(10)
    data = path.read_bytes()
    if chosen < 4:
        path.write_bytes(yaml_mutations.mutated(rng, data.decode()).encode("utf-8", "surrogatepass"))
    elif chosen < 8:
        path.write_bytes(_yaml(value_mutations.mutated(rng, yaml.safe_load(data), keys), rng))
    elif chosen < 9:
        path.write_bytes(byte_mutations.damaged(rng, data, _another_file(rng, materials).read_bytes()))
    else:
        place_mutations.misplace(rng, path)


def _another_file(rng: random.Random, materials: Path) -> Path:
    return rng.choice(
        sorted(p for folder in ("configs", "studies", "accelerate") for p in (materials / folder).iterdir())
        + [materials / d for d in DATA]
    )


def _chosen(rng: random.Random, materials: Path, folder: str) -> str:
    return f"{folder}/{rng.choice(sorted(p.name for p in (materials / folder).iterdir()))}"


def _config_command(rng: random.Random, name: str) -> Words:
    return rng.choice((
        ["plan", "--config", name, "--model", "model"], ["plan", "--config", name], ["plan", "--config", name, "--json", "--processes", "8"],
        ["doctor", name], ["doctor", name, "--json"], ["train", "--config", name, "--model", "model", "--output_dir", "out"],
        ["train", "--config", name, "--model", "missing", "--output_dir", "out"], ["train", "--config", name, "--smoke", "--output_dir", "out"],
    ))  # fmt: skip


def configuration(rng: random.Random, materials: Path, place: Path) -> Words:
    """A configuration file."""
    from equipoise.trl.keys import known_keys

    for name in ("model", "data.jsonl", "held_out.jsonl"):
        take(name, materials, place)
    path = take(_chosen(rng, materials, "configs"), materials, place)
    _spoil_yaml(rng, path, materials, tuple(known_keys()))
    return _config_command(rng, path.name)


def one_key(rng: random.Random, materials: Path, place: Path) -> Words:
    """One key of all that there are, with a value of another type or at a bound; in the file or as a flag."""
    from equipoise.trl.keys import known_keys

    for name in ("model", "data.jsonl", "held_out.jsonl"):
        take(name, materials, place)
    path = take("configs/own.yaml", materials, place)
    key = rng.choice(sorted(known_keys()))
    if rng.random() < 0.3:
        words = _config_command(rng, path.name)
        return [*words, *((f"--{key}", word_mutations.value(rng)) if words[0] != "doctor" else ())]
    values = yaml.safe_load(path.read_bytes()) | {key: value_mutations.hostile(rng)}
    path.write_bytes(_yaml(values, rng))
    return _config_command(rng, path.name)


def study(rng: random.Random, materials: Path, place: Path) -> Words:
    """A study."""
    from equipoise.trl.keys import known_keys

    path = take(_chosen(rng, materials, "studies"), materials, place)
    _spoil_yaml(rng, path, materials, (*known_keys(), "title", "seeds", "only", "baselines", "warm_start"))
    return ["compare", path.name, "--output", "out", *rng.choice(([], ["--report"], ["--seeds", "1", "2"]))]


def accelerate(rng: random.Random, materials: Path, place: Path) -> Words:
    """A configuration of accelerate."""
    take("model", materials, place)
    take("configs/own.yaml", materials, place)
    path = take(_chosen(rng, materials, "accelerate"), materials, place)
    _spoil_yaml(rng, path, materials, ("num_processes", "distributed_type", "fsdp_config", "deepspeed_config"))
    return ["plan", "--config", "own.yaml", "--accelerate", path.name]


def data_file(rng: random.Random, materials: Path, place: Path) -> Words:
    """A data file, or the words that name it."""
    for name in ("model", "held_out.jsonl", "configs/own.yaml"):
        take(name, materials, place)
    path = take(rng.choice(DATA), materials, place)
    tables.spoil(rng, path, _another_file(rng, materials))
    if rng.random() < 0.15:
        path = path.rename(
            path.with_suffix(
                rng.choice((".json", ".arrow", ".txt", "", ".jsonl", ".csv", ".parquet", ".JSONL", ".json-lines"))
            )
        )
    name = path.name + rng.choice(
        ("", "", "", "?prompt_column=messages&answer_column=solution.final", "?answer_column=level", "?chat=true")
    )
    if rng.random() < 0.2:
        name = word_mutations.mutated(rng, ["doctor", name], flags())[-1]
    reward = rng.choice(("exact", "math", "exact + 0.1*format:boxed"))
    return rng.choice((
        ["doctor", "own.yaml", "--dataset", name, "--reward", reward],
        ["doctor", "own.yaml", "--dataset", name, "--reward", reward, "--chat"],
        ["train", "--config", "own.yaml", "--dataset", name, "--reward", reward, "--eval_dataset", name, "--output_dir", "out"],
        ["evaluate", "model", "--dataset", name, "--reward", reward, "--output", "out.json"],
        ["probe", "model", "--dataset", name, "--reward", reward, "--prompts", "2", "--batches", "1", "--output", "out"],
    ))  # fmt: skip


def run_folder(rng: random.Random, materials: Path, place: Path) -> Words:
    """A run folder."""
    for name in ("model", "data.jsonl", "held_out.jsonl"):
        take(name, materials, place)
    run = take("run", materials, place)
    for _ in range(rng.choice((1, 1, 2))):
        _spoil_run(rng, run, materials)
    if rng.random() < 0.1:
        (place / "second").symlink_to("run")
    return rng.choice((
        ["doctor", "run"], ["doctor", "run", "--json"], ["doctor", "run", "--dataset", "data.jsonl", "--reward", "exact"],
        ["report", "run", "-o", "out.html"], ["report", "run", "-o", "out.html"], ["report", "run", "second", "-o", "out.html"],
        ["report", "run", "--live", "--port", "0"], ["evaluate", "run", *EVALUATION], ["evaluate", "run"], ["probe", "run", "--output", "out"],
        ["train", "--config", "run/config.yaml", "--output_dir", "out"],
    ))  # fmt: skip


def _spoil_run(rng: random.Random, run: Path, materials: Path) -> None:
    files = sorted(p for p in run.rglob("*") if p.is_file() and not p.is_symlink() and "checkpoint" not in str(p))
    heads = [p for p in files if p.parent == run or p.parent.name == "tokens"]
    path = rng.choice(heads if rng.random() < 0.8 and heads else files or [run / "none"])
    if not path.is_file():
        return
    if rng.random() < 0.12:
        place_mutations.misplace(rng, rng.choice((path, path, path.parent if path.parent != run else path)))
    elif path.suffix == ".yaml":
        _spoil_yaml(rng, path, materials, ())
    else:
        tables.spoil(rng, path, rng.choice(files))


def log(rng: random.Random, materials: Path, place: Path) -> Words:
    """The log of a run on verl."""
    path = take("log.jsonl", materials, place)
    tables.spoil(rng, path, _another_file(rng, materials))
    return ["doctor", "log.jsonl", *rng.choice(([], ["--json"]))]


def model_folder(rng: random.Random, materials: Path, place: Path) -> Words:
    """A model folder."""
    take("data.jsonl", materials, place)
    model = take("model", materials, place)
    files = sorted(p for p in model.rglob("*") if p.is_file())
    tables.spoil(rng, rng.choice(files), rng.choice(files))
    task = ["--dataset", "data.jsonl", "--reward", "exact"]
    return rng.choice((["doctor", "model"], ["doctor", "model", *task], ["plan", "--model", "model", *task], ["evaluate", "model", *task],
                       ["probe", "model", *task, "--output", "out"]))  # fmt: skip


def samples(rng: random.Random, materials: Path, place: Path) -> Words:
    """Samples that an interrupted evaluation goes on from; the rest is sampled."""
    for name in ("model", "data.jsonl", "held_out.jsonl", "run"):
        take(name, materials, place)
    folder = take("samples", materials, place)
    files = sorted(folder.iterdir())
    path = rng.choice(files)
    if path.suffix == ".jsonl" and rng.random() < 0.5:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: rng.randrange(4)]))
    if path.stat().st_size:
        tables.spoil(rng, path, rng.choice(files))
    return ["evaluate", "run", *EVALUATION, "--samples_output", "samples", "--output", "out.json"]


def checkpoint(rng: random.Random, materials: Path, place: Path) -> Words:
    """An interrupted run that goes on: its checkpoint, or what else lies in its folder."""
    for name in ("model", "data.jsonl", "held_out.jsonl"):
        take(name, materials, place)
    run = take("begun", materials, place)
    run = run.rename(run.with_name("run"))
    files = sorted(p for p in run.rglob("*") if p.is_file())
    path = rng.choice(files)
    if rng.random() < 0.1:
        place_mutations.misplace(rng, rng.choice((path, path.parent if path.parent != run else path)))
    else:
        tables.spoil(rng, path, rng.choice(files))
    return ["train", "--resume", "run"]


def words(rng: random.Random, materials: Path, place: Path) -> Words:
    """The words of a command line."""
    line = list(rng.choice(COMMAND_LINES))
    for name, needed in (
        ("model", "model"),
        ("run", "run"),
        ("begun", "begun"),
        ("data.jsonl", "data.jsonl"),
        ("log.jsonl", "log.jsonl"),
    ):
        if any(needed in word for word in line):
            take(name, materials, place)
    for name in ("configs/own.yaml", "held_out.jsonl"):
        take(name, materials, place)
    study_file = take("studies/staleness.yaml", materials, place)
    study_file.rename(study_file.with_name("study.yaml"))
    return word_mutations.mutated(rng, line, flags())


KINDS = {
    "configuration": Kind(configuration, 20),
    "one-key": Kind(one_key, 15),
    "study": Kind(study, 8),
    "accelerate": Kind(accelerate, 4),
    "data-file": Kind(data_file, 15),
    "run-folder": Kind(run_folder, 15),
    "log": Kind(log, 4),
    "model-folder": Kind(model_folder, 2),
    "samples": Kind(samples, 1, works=True),
    "checkpoint": Kind(checkpoint, 1, works=True),
    "words": Kind(words, 15),
}


def numbers(count: int, kinds: list[str]) -> list[tuple[str, int]]:
    """(kind, number) of so many inputs, shared among the kinds by their shares, mixed."""
    whole = sum(KINDS[kind].share for kind in kinds)
    places = [((number + 0.5) / (count * KINDS[kind].share / whole), kind, number)
              for kind in kinds for number in range(round(count * KINDS[kind].share / whole))]  # fmt: skip
    return [(kind, number) for _, kind, number in sorted(places)]
