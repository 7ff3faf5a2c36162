"""From words to typed options: the same rules for every command, one line for every mistake, and what is imported."""

import dataclasses
import functools
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command_line import refusal
from trl.trainer.grpo_config import GRPOConfig

from equipoise.cli import COMMANDS, main
from equipoise.commands.data import DataOptions
from equipoise.commands.evaluate import EvaluateOptions, SamplingOptions
from equipoise.commands.plan import PlanOptions
from equipoise.commands.probe import ProbeSampling, StepOptions
from equipoise.commands.report import LiveOptions, ReportOptions, report
from equipoise.commands.train import TrainOptions, key_groups, keys_help
from equipoise.commands.warm_start import WarmStartOptions
from equipoise.settings.run import RunSettings
from equipoise.trl.config import EquipoiseConfig

NEEDED = {"warm-start": ["w"], "evaluate": ["m"], "compare": ["s.yaml"], "probe": ["m"], "report": ["r"],
          "doctor": ["d"]}  # fmt: skip
"""Positional arguments of the commands that need any."""


def options_of(name):
    module, function = COMMANDS[name].function.split(":")
    command = getattr(importlib.import_module(f"equipoise.commands.{module}"), function)
    return inspect.signature(command, eval_str=True).parameters["options"].annotation


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line of a refused command, which must never be begun."""

    def refused(name, words):
        module, function = COMMANDS[name].function.split(":")
        home = importlib.import_module(f"equipoise.commands.{module}")

        @functools.wraps(getattr(home, function))
        def never(*arguments):
            pytest.fail(f"{name} was begun with {arguments}")

        with monkeypatch.context() as patched:
            patched.setattr(home, function, never)
            return refusal([name, *words], capsys)

    return refused


def option_fields(kind):
    """Each option with the dataclass it is in and its type; those of groups as well."""
    hints = typing.get_type_hints(kind)
    for option in dataclasses.fields(kind):
        group = typing.get_origin(hints[option.name]) or hints[option.name]
        if dataclasses.is_dataclass(group):
            yield from option_fields(group)
        else:
            yield kind, option, hints[option.name]


def is_positional(option):
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


FLAGS = [
    (name, option.name, hint)
    for name in COMMANDS
    for _, option, hint in option_fields(options_of(name))
    if not is_positional(option)
]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_frozen_and_say_what_they_are_for(name):
    kind = options_of(name)
    assert COMMANDS[name].summary
    for group, option, _ in [*option_fields(kind)]:
        assert group.__dataclass_params__.frozen
        assert inspect.getdoc(group)
        assert option.metadata["help"].endswith((".", ")", "…")), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_in_plain_text(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr()
    assert all(f"--{flag}" in printed.out for command, flag, _ in FLAGS if command == name)
    assert not [c for c in printed.out if ord(c) < 32 and c != "\n"]
    assert not printed.err


def test_help_of_training_has_every_own_key_in_its_group_once():
    text = keys_help()
    hosts = {key.name for key in dataclasses.fields(GRPOConfig)}
    own = {key.name for kind in (RunSettings, EquipoiseConfig) for key in dataclasses.fields(kind)} - hosts
    listed = re.findall(r"^  --(\w+)", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {"model", "clipping", "polarity", "record_tokens"} < own <= set(listed)
    changed = set(listed) - own  # the host's, with another default
    assert changed == hosts & vars(EquipoiseConfig)["__annotations__"].keys()


def test_keys_are_grouped_by_the_dataclass_that_defines_them():
    @dataclass
    class Host:
        """The host."""

        steps: int = field(default=1, metadata={"help": "Of the host."})
        rate: float = field(default=1.0, metadata={"help": "Of the host."})

    @dataclass
    class Clip:
        """Clipping, of ratios."""

        low: float = field(default=0.8, metadata={"help": "Lower."})

    @dataclass
    class Both(Clip):
        """Steering: all of it."""

        strength: float = field(default=0.5, metadata={"help": "How much."})

    @dataclass
    class Adapter(Both, Host):
        """What the adapter adds."""

        rate: float = field(default=2.0, metadata={"help": "Another default."})
        more: int = field(default=1, metadata={"help": "Its own."})

    groups = {title: [key.name for key in keys] for title, keys in key_groups(Adapter, host=Host).items()}
    assert list(groups.items()) == [
        ("Clipping", ["low"]), ("Steering", ["strength"]), ("What the adapter adds", ["more"]),
        ("Keys of Host with another default", ["rate"]),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "flag", "hint"), FLAGS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_of_another_kind_or_none_is_one_line(name, flag, hint, refused):
    kinds = {arg for arg in (*typing.get_args(hint), hint) if arg in (int, float)} or (
        "choice" if typing.Literal in {typing.get_origin(arg) for arg in (*typing.get_args(hint), hint)} else set()
    )
    spelled = f"--{flag}".replace("_", "-")
    for given in ([spelled, "x"], [f"{spelled}=x"]) if kinds else ():
        line = refused(name, [*NEEDED.get(name, []), *given])
        assert f"flag --{flag} must be" in line
        assert line.endswith("got 'x'")
    if hint is not bool:
        assert flag in refused(name, [*NEEDED.get(name, []), f"--{flag}"])


@pytest.mark.parametrize("name", [name for name in COMMANDS if not COMMANDS[name].takes_keys])
def test_unknown_flags_and_stray_words_are_named_with_the_nearest(name, refused):
    known = next(flag for command, flag, _ in FLAGS if command == name)
    line = refused(name, [*NEEDED.get(name, []), f"--{known}x", "1"])
    assert f"flag --{known}x is not known; did you mean {known}?" in line
    if name not in ("evaluate", "report"):
        assert "'stray'" in refused(name, [*NEEDED.get(name, []), "stray"])


@pytest.mark.parametrize("name", ["train", "plan"])
def test_unknown_keys_are_named_with_the_nearest(name, capsys):
    assert "flag --clippin is not known; did you mean clipping?" in refusal([name, "--clippin", "fixed"], capsys)
    assert "flag --confg is not known; did you mean config?" in refusal([name, "--confg", "x"], capsys)
    assert "'stray'" in refusal([name, "stray"], capsys)


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_command_needs_is_asked_for(name, capsys):
    assert f"equipoise {name} --help" in refusal([name], capsys)


@pytest.mark.parametrize(("words", "expected"), [([], "train"), (["trian"], "did you mean train?"), (["--x"], "--x")])
def test_without_a_command_there_is_a_line(words, expected, capsys):
    assert expected in refusal(words, capsys)


def test_a_flag_that_takes_no_value_does_not_swallow_one(refused):
    assert "'false'" in refused("report", ["r", "--force=false"])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PlanOptions(processes=0), "processes"),
        (lambda: PlanOptions(gpu_memory=float("nan")), "gpu_memory"),
        (lambda: WarmStartOptions(Path("w"), steps=0), "steps"),
        (lambda: LiveOptions(refresh=float("inf")), "refresh"),
        (lambda: StepOptions(learning_rate=float("nan")), "learning_rate"),
        (lambda: ProbeSampling(generations=1), "generations"),
        (lambda: SamplingOptions(k=(17,)), "k"),
        (lambda: SamplingOptions(temperature=0.0), "temperature"),
        (lambda: EvaluateOptions(("m", "m")), "model"),
        (lambda: EvaluateOptions(("m",), data=DataOptions(task=("a",), dataset="b")), "task"),
        (lambda: TrainOptions(config=Path("a"), resume=Path("b")), "resume"),
        (lambda: TrainOptions(smoke=True, resume=Path("b")), "smoke"),
    ],
)
def test_options_refuse_the_same_from_python(make, named):
    with pytest.raises(ValueError, match=named):
        make()


LOADED = "import sys; sys.exit(' '.join(m for m in {modules} if m in sys.modules))"


def run_then_list(words, modules, folder):
    """What the command printed, and those of the modules that it had loaded at its end."""
    code = f"from equipoise.cli import main; assert main({words}) == 0; {LOADED.format(modules=modules)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr.split()


def test_help_loads_no_torch(tmp_path):
    printed, loaded = run_then_list(["--help"], ["torch", "numpy", "transformers", "trl", "yaml", "tyro"], tmp_path)
    assert all(re.search(rf"^  {name} ", printed, re.MULTILINE) for name in COMMANDS)
    assert not loaded


def small_run(folder):
    folder.mkdir()
    lines = [{"update": n, "equipoise/entropy": 1.0 / n, "loss": 0.1} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.slow
def test_a_report_loads_neither_trl_nor_transformers(tmp_path):
    small_run(tmp_path / "run")
    hosts = ["trl", "transformers", "accelerate", "datasets", "verl"]
    printed, loaded = run_then_list(["report", "run", "-o", "page.html"], hosts, tmp_path)
    assert "page.html" in printed
    assert not loaded
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_a_report_from_python(tmp_path):
    page = report(ReportOptions(runs=(small_run(tmp_path / "run"),), output=tmp_path / "page.html", title="Mine"))
    assert "Mine" in page.read_text()


@pytest.mark.parametrize("name", [*sorted(COMMANDS), "train --smoke"])
def test_only_training_is_begun_in_several_processes(name, refused, monkeypatch, capsys):
    """Any other command would do everything in each of them, and all would write the same files."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if name == "train":
        assert main([name, "--help"]) == 0
        return
    command, *flags = name.split()
    assert refused(command, [*NEEDED.get(name, []), *flags]) == (
        f"equipoise: equipoise {name} runs in one process, got WORLD_SIZE=2: start it without accelerate launch"
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main([command, "--help"]) == 0
