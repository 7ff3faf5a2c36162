"""Every key of a run with values at and beyond its bounds, each in a tiny training: what is said late, or not at all?

The keys, of TRL and transformers too, are enumerated from the dataclasses; the values follow from the types. A case is
sound when it ends in one line before the work (exit 2), or trains (exit 0 with updates). It is a finding when it

    crashes   a traceback, a signal, or more than one line
    is late   one line, but after the first rollout had begun
    is idle   "Done", and nothing was done
    hangs     no end within `SECONDS`

Each case runs in a process of its own, forked from one that has the libraries loaded: no value of one reaches another.

    python tests/reliability/late_errors.py --sample 100 --seed 1    some of them
    python tests/reliability/late_errors.py --part 0/8               an eighth of all
"""

import argparse
import dataclasses
import enum
import importlib
import inspect
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

SECONDS = 30
"""Of processor time for one case; a tiny training takes one or two."""

PATIENCE = 10
"""Times as many seconds by the clock: for one that waits, or a busy machine."""

MEMORY = 24 * 2**30
"""Bytes of addresses: the loaded libraries map several GB."""

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

WORDS = {"whole": [-1, 0, 1, 2**31, 2**63 - 1], "number": [-1.0, 0.0, 1.5, "inf", 1e-300, 1e300]}

PATHS = ["", "-", "a\0b", "x" * 5000, "x" * 255, "~nouser", "/proc/nope/x", "data.jsonl", "data.jsonl/x", "model",
         "new/er/file.json", "/dev/full", "."]  # fmt: skip
"""Of which some cannot be written, some not be read, and some be neither."""

CONTEXT: dict[str, dict[str, Any]] = {
    "num_train_epochs": {"max_steps": None},
    "replay_": {"replay_fraction": 0.5, "num_iterations": 1},
    "rollout_token_budget": {"clipping": "fixed", "polarity": "off"},
    "lora_": {"use_peft": True},
    "papo_slow": {"papo_signal": "trend"},
    "papo_release": {"papo_signal": "schedule"},
    "sapo_": {"loss_type": "sapo", "clipping": "fixed"},
    "vespo_": {"loss_type": "vespo", "clipping": "fixed"},
    "entropy_coef": {"entropy_coef": 0.01},
    "entropy_target": {"entropy_coef": 0.01, "use_adaptive_entropy": True},
    "ref_model_": {"beta": 0.01, "sync_ref_model": True},
    "eval_": {"eval_strategy": "steps"},
    "num_generations_eval": {"eval_strategy": "steps", "eval_steps": 1},
    "per_device_eval_batch_size": {"eval_strategy": "steps", "eval_steps": 1},
    "dataloader_": {"dataloader_num_workers": 1},
    "evaluate_": {"evaluate_every": 1},
    "environment_": {},
    "record_tokens_fraction": {"record_tokens": 1},
    "num_completions_to_print": {"log_completions": True},
    "log_unique_prompts": {"log_completions": True},
    "vllm_importance": {},
    "metric_for_best_model": {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
    "greater_is_better": {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
}
"""Beginning of a key -> the other keys under which it has an effect; the longest that fits counts."""

SLOW = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Keys that are not tried: compiling takes minutes."""

BASE: dict[str, Any] = {
    "model": "model", "dataset": "data.jsonl", "eval_dataset": "held_out.jsonl", "reward": "judges:digits",
    "output_dir": "run", "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2,
    "max_completion_length": 4, "clipping": "balanced", "polarity": "papo", "learning_rate": 0.01, "use_cpu": True,
    "save_strategy": "no", "evaluate_samples": 2, "evaluate_k": [1, 2], "evaluate_prompts": 2, "disable_tqdm": True,
    "report_to": "none",
}  # fmt: skip


COMMANDS: dict[str, list[str]] = {
    "evaluate": ["model", "--task=data:data.jsonl", "--reward=exact", "--samples=2", "--k", "1", "--max_new_tokens=4"],
    "probe": ["model", "--task=data:data.jsonl", "--reward=judges:digits", "--prompts=2", "--batches=1",
              "--generations=2", "--max_new_tokens=4", "--output=made"],
    "doctor": ["model", "--task=data:data.jsonl", "--reward=exact"],
    "plan": ["--model=model", "--task=data:data.jsonl", "--config=keys.yaml"],
    "warm-start": ["made", "--steps=2"],
    "report": ["run"],
    "compare": ["study.yaml", "--report"],
    "quickstart": ["--output=data.jsonl"],  # refused in the end, whatever else is given
}  # fmt: skip
"""Command -> words that make it quick; an option is put behind them, in the place of the one that is there."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Keys that differ from `BASE`, or an option of another command."""

    keys: tuple[tuple[str, Any], ...]
    command: str = "train"

    def __str__(self) -> str:
        return " ".join([self.command, *(f"--{key} {_word(value)}" for key, value in self.keys)])


def values_of(hint: Any, choices: list[str]) -> Iterator[Any]:
    """Values at and beyond the bounds of an annotated type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            if part is not type(None):
                yield from values_of(part, choices)
    elif hint is bool:
        yield from (True, False)
    elif hint is int:
        yield from WORDS["whole"]
    elif hint is float:
        yield from WORDS["number"]
    elif hint is str:
        yield from ("", "nonsense", "a\0b", "/", "-", "~nouser", "x" * 5000)
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield from ("nonsense", *(member.value for member in hint))
    elif origin is list:
        yield []
        for value in values_of(parts[0], choices):
            yield [value]
            yield [value] * 3
    elif hint is dict or origin is dict:
        yield from ({}, {"nonsense": 1}, {"nonsense": {"a": [1]}})


def all_cases() -> list[Case]:
    """One for each key and value."""
    from equipoise.trl.config import EquipoiseConfig
    from equipoise.trl.keys import known_keys

    choices = {f.name: list(f.metadata.get("choices") or ()) for f in dataclasses.fields(EquipoiseConfig)}
    cases = []
    for key, hint in known_keys().items():
        if key in SLOW:
            continue
        written = dict.fromkeys(json.dumps(v) for v in [*values_of(hint, []), *choices.get(key, ())])
        cases += [Case(((key, json.loads(value)),)) for value in written]
    return cases


def option_cases() -> list[Case]:
    """One for each option and value of the other commands."""
    from equipoise.cli import COMMANDS as TABLE

    cases = []
    for command in COMMANDS:
        module, function = TABLE[command].function.split(":")
        made = getattr(importlib.import_module(f"equipoise.commands.{module}"), function)
        options = inspect.signature(made, eval_str=True).parameters["options"].annotation
        for name, hint in flat_options(options):
            written = dict.fromkeys(json.dumps(value) for value in option_values(hint))
            cases += [Case(((name, json.loads(value)),), command) for value in written]
    return cases


def flat_options(options: Any) -> Iterator[tuple[str, Any]]:
    """Name and type of every option, those of groups too."""
    kind = typing.get_origin(options) or options
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(typing.get_origin(hint) or hint):
            yield from flat_options(hint)
        else:
            yield field.name, hint


def option_values(hint: Any) -> Iterator[Any]:
    """Values at and beyond the bounds of an option's type, each one word."""
    words = {bool: [True], int: WORDS["whole"], float: WORDS["number"]}
    for part in (hint, *typing.get_args(hint)):
        if part is Path:
            yield from PATHS
        elif part is str or isinstance(part, typing.TypeVar):
            yield from ("", "nonsense", "a\0b", "x" * 5000, *PATHS)
        elif part in words:
            yield from words[part]
        elif part is not hint and typing.get_args(part):
            yield from option_values(part)


def pairs(count: int, seed: int) -> list[Case]:
    """Two of the values at a time."""
    draw, singles = random.Random(seed), all_cases()
    drawn = []
    while len(drawn) < count:
        first, second = draw.sample(singles, 2)
        if first.keys[0][0] != second.keys[0][0]:
            drawn.append(Case(first.keys + second.keys))
    return drawn


def _word(value: Any) -> str:
    """The YAML of a key's value."""
    return value if isinstance(value, str) and value and value[0] not in "'\"[{!" else json.dumps(value)


def command(case: Case) -> list[str]:
    """The command line of a case."""
    if case.command != "train":
        return _option(case)
    return ["train", *(f"--{key}={_word(value)}" for key, value in keys_of(case).items() if value is not None)]


def keys_of(case: Case) -> dict[str, Any]:
    """The keys of a case with those under which they have an effect."""
    keys = dict(BASE)
    for key, _ in case.keys:
        fitting = [prefix for prefix in CONTEXT if key.startswith(prefix)]
        keys |= CONTEXT[max(fitting, key=len)] if fitting else {}
    return keys | dict(case.keys)


def _option(case: Case) -> list[str]:
    ((name, value),) = case.keys
    words, told = COMMANDS[case.command], value if isinstance(value, str) else json.dumps(value)
    if name in ("models", "model", "target", "folder", "runs", "study"):
        return [case.command, told, *words[1:]]
    kept = [word for word in words if not word.startswith(f"--{name}=")]
    return [case.command, *kept, f"--{name}" if value is True else f"--{name}={told}"]


def prepare(folder: Path) -> None:
    """A user's folder: model, data and rewards; and the libraries loaded."""
    import torch
    from command_line import REWARDS
    from trainer_setup import character_tokenizer, tiny_model

    torch.set_num_threads(1)
    tiny_model().save_pretrained(folder / "model")
    character_tokenizer().save_pretrained(folder / "model")
    for name, shift in (("data", 3), ("held_out", 5)):
        rows = [{"prompt": f"{i}+{i + shift}=", "answer": str(2 * i + shift)} for i in range(16)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judges.py").write_text(REWARDS)
    (folder / "keys.yaml").write_text("output_dir: run\n")
    (folder / "study.yaml").write_text("methods: {}\n")
    (folder / "run").mkdir()
    lines = [{"update": number, "loss": 0.1, "equipoise/entropy": 1.0} for number in range(1, 4)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run" / "config.yaml").write_text("model: model\ntask: data:data.jsonl\noutput_dir: run\n")
    import equipoise.commands.train  # noqa: F401
    from equipoise.models.loading import load_model

    load_model(str(folder / "model"), on_cpu=True)


def outcome(words: list[str], folder: Path) -> dict[str, Any]:
    """What becomes of a command in a copy of the user's folder."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        for item in folder.iterdir():
            if item.name == "run" and words[0] == "train":
                continue
            if item.is_dir() and item.name != "run":
                (here / item.name).symlink_to(item)
            else:  # what a command may write to
                (shutil.copytree if item.is_dir() else shutil.copy)(item, here / item.name)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(words, here)
        status = _waited(child)
        text = (here / "stderr").read_text(errors="replace") if (here / "stderr").exists() else ""
        notes = json.loads((here / "notes").read_text()) if (here / "notes").exists() else {}
    lines = [line for line in text.splitlines() if line.startswith("equipoise: ")]
    return {"status": status, "lines": lines, "end": text[-1500:], "seconds": time.monotonic() - begun, **notes}


def _waited(child: int) -> int | str:
    end, process = time.monotonic() + PATIENCE * SECONDS, psutil.Process(child)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if sum(process.cpu_times()[:2]) > SECONDS:
            break
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def _child(words: list[str], here: Path) -> None:
    """Runs the command and ends this process."""
    code = 99
    os.setsid()
    os.chdir(here)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(here / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        code = _watched(words, here)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watched(words: list[str], here: Path) -> int:
    from equipoise.cli import main
    from equipoise.trl.trainer import EquipoiseTrainer

    notes = {"begun": False, "updates": 0}

    def note(**changes: Any) -> None:
        notes.update(changes)
        (here / "notes").write_text(json.dumps(notes))

    prepare_inputs, train = EquipoiseTrainer._prepare_inputs, EquipoiseTrainer.train

    def prepared(self, *arguments):
        note(begun=True, updates=self.state.global_step)
        return prepare_inputs(self, *arguments)

    def trained(self, *arguments, **named):
        result = train(self, *arguments, **named)
        note(updates=self.state.global_step)
        return result

    EquipoiseTrainer._prepare_inputs, EquipoiseTrainer.train = prepared, trained
    return main(words)


def judged(found: dict[str, Any]) -> str:
    """ "refused", "trained", or the kind of finding."""
    status = found["status"]
    if status == "hangs":
        return "trained" if found.get("updates", 0) > 2 else "hangs"
    if status == 0:
        return "trained" if found.get("updates") else "idle"
    if status != 2 or len(found["lines"]) != 1 or "Traceback" in found["end"]:
        return "crashes"
    return "late" if found.get("begun") else "refused"


SOUND = ("refused", "trained", "done")


def main() -> int:
    """Run cases and print each finding; 1 when there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many of the single keys, drawn")
    parser.add_argument("--pairs", type=int, default=0, help="and so many pairs of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", action="store_true", help="the options of the other commands, not keys of a run")
    parser.add_argument("--part", default="0/1", help="I/N: the I-th of N parts")
    parser.add_argument("--only", help="keys that begin so")
    parser.add_argument("--all", action="store_true", help="print what is sound too")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
    cases = option_cases() if options.commands else all_cases()
    if options.only:
        cases = [case for case in cases if case.keys[0][0].startswith(options.only)]
    if options.sample is not None:
        cases = random.Random(options.seed).sample(cases, min(options.sample, len(cases)))
    cases += pairs(options.pairs, options.seed)
    number, count = map(int, options.part.split("/"))
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for case in cases[number::count]:
            found = outcome(command(case), Path(place))
            kind = judged(found)
            if case.command != "train" and found["status"] in (0, 1) and "Traceback" not in found["end"]:
                kind = "done"
            counts[kind] = counts.get(kind, 0) + 1
            if options.all or kind not in SOUND:
                said = found["lines"][-1] if found["lines"] else found["end"].strip().splitlines()[-1:]
                print(f"{kind:8} {str(case)[:100]:60} {found['seconds']:.1f}s {str(said)[-250:]}", flush=True)
    print(counts)
    return int(any(kind not in SOUND for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
