"""`equipoise train`: a run from a configuration file and flags, a resumed one, or its tiny form."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.commands.threads import fit_threads
from equipoise.commands.trusting import TrustOptions
from equipoise.diagnostics.run_folder import run_and_checkpoint
from equipoise.errors import InputError, read_from
from equipoise.paths import check_path
from equipoise.settings.presets import merged
from equipoise.settings.run import RunSettings
from equipoise.trl import run
from equipoise.trl.config import EquipoiseConfig, GRPOConfig
from equipoise.trl.keys import checked_keys, read_config


@dataclass(frozen=True)
class TrainOptions:
    """Train a model. One YAML file is one run; every key is also a flag (--key value …), which overrides the file."""

    config: Path | None = field(default=None, metadata={"help": "YAML file of keys."})
    resume: Path | None = field(
        default=None,
        metadata={
            "help": "Continue the run in this folder from its newest complete checkpoint, or from RUN/checkpoint-N."
        },
    )
    smoke: bool = field(
        default=False,
        metadata={"help": "The same configuration end to end with a tiny random model on a CPU; says what it cut."},
    )

    trust: TrustOptions = field(default_factory=TrustOptions)

    def __post_init__(self) -> None:
        if self.resume is not None:
            check_path(self.resume, "--resume")
        self.trust.check([] if self.resume is None else [run_and_checkpoint(self.resume)[0]])
        if self.resume is not None and self.config is not None:
            raise InputError("--resume takes the run's own configuration: leave --config out")
        if self.resume is not None and self.smoke:
            raise InputError("--smoke starts a run of its own: leave --resume out")


def train(options: TrainOptions, keys: Mapping[str, Any]) -> Path:
    """Train; returns the run folder.

    Args:
        options: where the keys come from.
        keys: unchecked keys of the run, which override those of the file.

    Raises:
        InputError: anything the user can mend.
    """
    flags = checked_keys(keys, "flag --", beside=[*vars(options), *vars(options.trust)])
    if options.resume is not None:
        folder = run.resume(options.resume, flags, trusted=options.trust.folders, on_model=fit_threads)
    else:
        of_file = {} if options.config is None else read_config(options.config)
        values = merged(of_file, flags)
        with read_from(f"config {options.config}", of_file.keys() - flags.keys()):
            if options.smoke:
                from equipoise.commands.smoke import smoke

                folder = smoke(values)
            else:
                folder = run.train(values, on_model=fit_threads)
    print(f"Done: {folder}")
    return folder


def keys_help() -> str:
    """The keys of equipoise in their groups, for `--help`; those of TRL are in TRL's documentation."""
    lines = []
    for title, fields in key_groups(RunSettings, EquipoiseConfig, host=GRPOConfig).items():
        lines += ["", f"{title}:"]
        for key in fields:
            default = key.default_factory() if callable(key.default_factory) else key.default
            lines.append(f"  --{key.name}" + ("" if default in (None, "") else f" (default: {default})"))
            lines += textwrap.wrap(key.metadata["help"], 100, initial_indent=6 * " ", subsequent_indent=6 * " ")
    lines += [
        "",
        "All keys of TRL's GRPOConfig work as well: output_dir, learning_rate, max_steps, num_generations,",
        "steps_per_generation and num_iterations (updates per rollout batch), loss_type, epsilon, seed, report_to, …",
    ]
    return "\n".join(lines)


def key_groups(*settings: type, host: type) -> dict[str, list[dataclasses.Field]]:
    """Keys by the dataclass that defines them, in the order of the fields.

    Args:
        settings: dataclasses, whose bases are groups as well. A group's title is the beginning of its docstring.
        host: the host's own settings, which an adapter's extend. Its keys are left out, but for those that were given
            another default, which are the last group.
    """
    groups: dict[str, list[dataclasses.Field]] = {}
    changed = []
    of_host = {key.name for key in dataclasses.fields(host)}
    for kind in settings:
        for key in dataclasses.fields(kind):
            home = next(base for base in kind.__mro__ if key.name in vars(base).get("__annotations__", {}))
            if home in host.__mro__:
                continue
            title = re.split(r"[.,:]", inspect.getdoc(home) or home.__name__)[0]
            (changed if key.name in of_host else groups.setdefault(" ".join(title.split()), [])).append(key)
    return groups | ({f"Keys of {host.__name__} with another default": changed} if changed else {})
