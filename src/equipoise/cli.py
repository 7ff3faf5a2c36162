"""The command line: from words to the typed options of one command, and from what it raises to one line.

Parsing only. The table names every command; only the module of the chosen one is imported, so that help costs no torch
and a report no trainer. tyro builds the parser from the dataclass of options that the command's function takes.

Exit codes: 0 done, 1 a run of a study failed or the doctor found something wrong, 2 something the user gave cannot be
used (one line says what), 130 interrupted, 143 ended by SIGTERM.
"""

import dataclasses
import functools
import importlib
import inspect
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from equipoise import __version__, user_modules
from equipoise.errors import InputError, did_you_mean, name_shown, shortened
from equipoise.interrupts import Interrupted, handled, raise_interrupted
from equipoise.paths import check_path
from equipoise.redaction import log_to_stderr, without_secrets
from equipoise.settings.data_keys import GONE, now_written


@dataclasses.dataclass(frozen=True)
class Command:
    """Where a command is, and what it is for.

    Attributes:
        function: "module:function" in `equipoise.commands`; it takes `options`, a dataclass.
        summary: one line of the help.
        takes_keys: it takes `keys` as well: every flag that is none of its options, as a key of a run.
    """

    function: str
    summary: str
    takes_keys: bool = False


COMMANDS = {
    "quickstart": Command("quickstart:quickstart", "warm start, two runs, evaluation and a picture, in minutes"),
    "warm-start": Command("warm_start:warm_start", "make the small model of a small task (no network)"),
    "train": Command("train:train", "train a model with GRPO, balanced clipping and polarity control", takes_keys=True),
    "plan": Command(
        "plan:run_plan", "what a configuration means in batches and memory, before anything starts", takes_keys=True
    ),
    "evaluate": Command(
        "evaluate:evaluate_models", "greedy, avg@k, pass@k with intervals, distinct correct answers, entropy, length"
    ),
    "compare": Command(
        "compare.command:compare", "methods under the same conditions over paired seeds: tables, intervals, figures"
    ),
    "probe": Command("probe:run_probe", "one optimizer step: predicted against realised entropy change"),
    "report": Command("report:report", "one page of curves and coloured tokens, from run folders"),
    "doctor": Command("doctor:doctor", "what is wrong with a run, a configuration or a model, and what to change"),
}

NAMES = ("model", "models", "target")
"""Options whose text may be a path."""

IN_SEVERAL_PROCESSES = ("train",)
"""What `accelerate launch` may start in more than one."""

EXAMPLES = """\
examples:
  equipoise quickstart                         everything once, on a laptop, in minutes
  equipoise warm-start runs/base               a small model that can nearly do the number ladder
  equipoise train --config recipes/ladder_stale_equipoise.yaml --model runs/base --output_dir runs/ladder
  equipoise train --model FOLDER_OR_ID --dataset data.jsonl --reward math --output_dir runs/mine
  equipoise plan --config recipes/papers/bapo_r1_distill_7b.yaml --accelerate recipes/accelerate/one_node_fsdp2.yaml
  equipoise train --config recipes/papers/bapo_r1_distill_7b.yaml --smoke    the same end to end, tiny, on a CPU
  equipoise train --resume runs/mine           continue an interrupted run, exactly
  equipoise evaluate runs/mine FOLDER_OR_ID    runs and models side by side
  equipoise doctor runs/mine                   what is wrong with it, why, and what to change
  equipoise compare recipes/studies/staleness.yaml --output runs/staleness    methods over paired seeds
  equipoise report runs/a runs/b -o report.html  one page: curves, and every recorded token
  equipoise report runs/mine --live            the same page of a run in progress"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    log_to_stderr()
    # Bars are left to those that tell something: not one per file that the host libraries load or save.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with user_modules.kept(), warnings.catch_warnings():
            # Deprecations inside the host libraries are not for the user of this one.
            warnings.filterwarnings("ignore", category=FutureWarning)
            with handled(raise_interrupted, (signal.SIGTERM,)):
                return _run(words)
    except InputError as error:
        print(f"equipoise: {without_secrets(' '.join(str(error).split()), words)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        print(f"\nequipoise: {message}", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)


def _run(words: list[str]) -> int:
    if not words:
        raise InputError(f"give a command: {', '.join(COMMANDS)}; see equipoise --help")
    name, *rest = words
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"equipoise {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"command {name!r} is not known{did_you_mean(name, COMMANDS)}; see equipoise --help")
    _check_processes(f"{name} --smoke" if "--smoke" in rest else name)
    module_name, function = COMMANDS[name].function.split(":")
    module = importlib.import_module(f"equipoise.commands.{module_name}")
    command = getattr(module, function)
    try:
        given = _parsed(name, command, rest)
    except SystemExit as ended:  # tyro has printed help
        if not ended.code and hasattr(module, "keys_help"):
            print(module.keys_help())
        return int(ended.code or 0)
    result = command(*given)
    return result if isinstance(result, int) else 0


def _check_processes(name: str) -> None:
    """Refuses a command that would do everything once in each of several processes, and write the same files."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and count.isdecimal() and int(count) > 1 and name not in IN_SEVERAL_PROCESSES:
        raise InputError(
            f"equipoise {name} runs in one process, got WORLD_SIZE={count}: start it without accelerate launch"
        )


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: equipoise COMMAND …",
            "",
            "Entropy control for reinforcement fine-tuning of language models, token by token.",
            "",
            "commands (each has its own --help):",
            *lines,
            "",
            "options:",
            "  -h, --help  show this help",
            "  --version   show the version",
            "",
            EXAMPLES,
        ]
    )


def _parsed(name: str, command: Callable, words: list[str]) -> tuple[Any, ...]:
    """What the command's function takes: its options, and the keys of a run where it takes any.

    Raises:
        InputError: a word that cannot be used.
        SystemExit: help was asked for, and printed.
    """
    import tyro
    from tyro._errors import on_parse_error

    kind = inspect.signature(command, eval_str=True).parameters["options"].annotation
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)
    with on_parse_error(functools.partial(_refuse, words)):
        options, rest = tyro.cli(
            kind, prog=f"equipoise {name}", args=words, use_underscores=True, return_unknown_args=True, config=markers
        )
    for key, value in _flat(options).items():
        if value == ():
            raise InputError(f"{key} needs at least one value; see equipoise {name} --help")
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, Path) or key in NAMES:
                check_path(word, key)
    if COMMANDS[name].takes_keys:
        from equipoise.settings.reading import read_flags

        return options, read_flags(rest)
    if rest:
        raise InputError(_unknown(rest[0], _flat(options)) + f"; see equipoise {name} --help")
    return (options,)


def _flat(options: Any) -> dict[str, Any]:
    """Every option by its name; those of a group beside the others."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        flat |= _flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flat


def _unknown(word: str, known: dict[str, Any]) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag"
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if name in GONE:
        return f"flag --{now_written(name, '…')}"
    return f"flag --{name_shown(name)} is not known{did_you_mean(name, known)}"


def _refuse(words: list[str], event: Any) -> None:
    """One line in place of tyro's box, for the failures that are known; another is left to tyro."""
    from tyro import _errors

    from equipoise.settings.reading import type_in_words

    if isinstance(event, _errors.MissingArgs):
        missing = ", ".join(str(a.arg.lowered.metavar or a.arg.display_name()) for a in event.missing_arguments)
        raise InputError(f"{missing} is required; see {event.prog} --help")
    if isinstance(event, _errors.InstantiationFailure) and event.argument is None:
        raise InputError(str(event.message))  # by the options themselves
    if isinstance(event, (_errors.InvalidChoice, _errors.BadValue, _errors.InstantiationFailure)):
        argument: Any = event.argument
        name, kind = argument.display_name().split("/")[-1], type_in_words(argument.field.type_stripped)
        raise InputError(f"flag {name} must be {kind}, got {_values(words, argument.lowered.name_or_flags)}")


def _values(words: list[str], names: Collection[str]) -> str:
    """What was given to a flag, as a message shows it."""
    spelled = {name.replace("-", "_") for name in names}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") in spelled:
            after = [value] if equals else [*itertools.takewhile(lambda w: not w.startswith("--"), words[number + 1 :])]
            return shortened(" ".join(after)) if after else "nothing"
    return "nothing"
