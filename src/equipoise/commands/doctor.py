"""`equipoise doctor`: what is wrong with a run, a configuration or a model.

The target is recognised by what is there: a run folder by its settings and metrics, a configuration by being a file, a
model by its config.json or by being a hub id. Reads only: nothing is written, and no code that a run folder or a
configuration names is run, whoever wrote them. A reward that was given on the command line is the user's own word.
"""

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from tyro.conf import Positional, arg

from equipoise.commands import probe as probing
from equipoise.commands.data import DataOptions
from equipoise.commands.doctor_checks import (
    SEQUENCES,
    bf16_slowdown,
    check_chat,
    check_comparison,
    check_padding,
    check_probe,
    check_tokens,
    check_verifier,
    compare_logprobs,
)
from equipoise.commands.doctor_run import check_files, read_run_files
from equipoise.commands.threads import fit_threads
from equipoise.commands.trusting import TrustOptions
from equipoise.diagnostics.doctor import (
    RUN_CHECKS,
    SETTINGS_CHECKS,
    Finding,
    RunEvidence,
    SettingsEvidence,
    as_json,
    not_checked,
    print_findings,
)
from equipoise.diagnostics.run_folder import ENVIRONMENT_FILE, METRICS_FILE, RESOLVED_FILE
from equipoise.diagnostics.trust import named_code
from equipoise.errors import InputError
from equipoise.models.loading import load_model, load_tokenizer, template_settings
from equipoise.settings.run import RunSettings
from equipoise.settings.task_loading import load_task
from equipoise.tasks import Task
from equipoise.trl.keys import build, read_config

Kind = Literal["run", "config", "model"]
RUN_FILES = (METRICS_FILE, RESOLVED_FILE, ENVIRONMENT_FILE)
HOW_TO_GIVE = "--reward module:function"
PROBE = probing.ProbeSampling(prompts=8, batches=2)
"""The small probe of --probe; `equipoise probe` has the larger one."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Find what usually goes wrong: ratios that are always 1, padding or tool output in the entropy, truncated
    completions, groups with equal rewards, a verifier that accepts nothing, sampling and training log-probs that
    disagree, bounds and controllers at their limit, steps too large for first order, batch arithmetic. Every finding
    says what was seen, why it matters and what to change. Reads only, and runs no code that the target names;
    docs/doctor.md has all checks.

    Exit code 1 when something is wrong, 0 when not (warnings do not count), 2 when the target is none of the three.
    """

    target: Annotated[Positional[str], arg(metavar="RUN|CONFIG|MODEL")] = dataclasses.field(
        metadata={"help": "Run folder, log of a verl run (JSONL), YAML file, model folder or hub id."}
    )
    json: bool = dataclasses.field(default=False, metadata={"help": "Print the findings as JSON, and nothing else."})
    probe: bool = dataclasses.field(
        default=False, metadata={"help": "Also take one real step and measure it (needs data)."}
    )
    learning_rate: float | None = dataclasses.field(
        default=None, metadata={"help": "Of the probe; unset: that of the run, else 1e-5."}
    )
    data: DataOptions[str] = dataclasses.field(default_factory=DataOptions[str])
    trust: TrustOptions = dataclasses.field(default_factory=TrustOptions)


def doctor(options: DoctorOptions) -> int:
    """Examine the target and print the findings; 1 when something is wrong, else 0.

    Raises:
        InputError: a target that is no run, configuration or model, or one that cannot be read.
    """
    kind = recognised(options.target)
    options.trust.check([options.target])
    if options.learning_rate is not None and not options.probe:
        raise InputError("--learning_rate is of the probe: give --probe too, or leave it out")
    if options.probe and kind == "config":
        raise InputError(f"--probe needs a run or a model, and {options.target} was taken for a config")
    try:
        findings = {"run": _run, "config": _config, "model": _model}[kind](options)
    except InputError as error:
        raise InputError(f"{options.target} was taken for a {kind}: {error}") from error
    if options.json:
        print(json.dumps(as_json(options.target, kind, findings), indent=2, ensure_ascii=False))
    else:
        print_findings(options.target, kind, findings, Console())
    return int(any(finding.severity == "wrong" for finding in findings))


def recognised(target: str) -> Kind:
    """What a target is.

    Raises:
        InputError: when it is none of the three; says what it lacks.
    """
    path = Path(target)
    if path.is_file():
        return "run" if path.suffix == ".jsonl" else "config"
    if path.is_dir():
        if any((path / name).is_file() for name in RUN_FILES):
            return "run"
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            return "model"
        raise InputError(
            f"{target} is no run (it has no {METRICS_FILE}), no configuration (it is no file) and no model (it has no "
            f"config.json)"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", target) and not target.startswith(".") and path.suffix not in (".yaml", ".yml"):
        return "model"
    raise InputError(f"{target} is no run, no configuration and no model: there is no such file or folder")


def _run(options: DoctorOptions) -> list[Finding]:
    found = read_run_files(Path(options.target))
    findings = check_files(found.left_out)
    findings += [check(RunEvidence(found.record, found.resolved)) for check in RUN_CHECKS]
    task, reason = _task(options, found.given)
    environment = found.environment
    if (host := environment.get("host", "trl")) == "trl":
        device = environment.get("device", "cpu").split(":")[0]
        findings += _settings(found.given, found.resolved, environment.get("world_size", 1), device, task)
    else:
        findings.append(not_checked("settings", f"they are those of {host[:80]}, which checks them itself"))
    findings.append(check_verifier(task, reason))
    return [*findings, _probed(options, found.resolved)]


def _config(options: DoctorOptions) -> list[Finding]:
    given = read_config(options.target)
    task, reason = _task(options, given)
    # What flags of `equipoise train` would add does not hinder the examination of the rest.
    later = {"model": "MODEL", "output_dir": "RUN"} | ({} if given.get("task") else {"task": "ladder"})
    settings, config = build(later | given)
    values = vars(settings) | config.to_dict()
    findings = _settings(given, values, config.world_size, config.device.type, task)
    return [*findings, check_verifier(task, reason)]


def _settings(
    given: dict[str, Any], values: dict[str, Any], world_size: int, device: str, task: Task | None
) -> list[Finding]:
    if not values:
        return [not_checked("settings", f"there is no {RESOLVED_FILE}")]
    defaults = {f.name: f.default for f in dataclasses.fields(RunSettings) if f.default is not dataclasses.MISSING}
    evidence = SettingsEvidence(
        settings=defaults | given | values,
        given=given,
        world_size=world_size,
        device=device,
        bf16_slowdown=bf16_slowdown() if values.get("bf16") and device == "cpu" else None,
        completion_tokens=None if task is None else task.max_completion_length,
    )
    return [check(evidence) for check in SETTINGS_CHECKS]


def _task(options: DoctorOptions, given: dict[str, Any]) -> tuple[Task | None, str]:
    """The data that the options name, else that of the run or configuration; or why there is none."""
    data = options.data.keys_over(given)
    if not data.get("task"):
        return None, "no data was named: give --task, or --dataset and --reward"
    code = [] if options.data.named else _named_code(given, data)
    foreign = [what for what in code if what not in options.data.code]
    if foreign:
        return None, f"it takes {', '.join(foreign)}, which doctor does not run: to try a reward give {HOW_TO_GIVE}"
    try:
        return load_task(RunSettings(model="MODEL", **data)), ""
    except InputError as error:
        if options.data.named:
            raise
        return None, f"the data cannot be loaded: {error}"


def _named_code(given: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """The code behind the reward of a run or configuration; None of a model is loaded for it."""
    return named_code(data | {"environment": given.get("environment")})


def _model(options: DoctorOptions) -> list[Finding]:
    task, reason = _task(options, {})
    on_cpu = not torch.accelerator.is_available()
    tokenizer, model = load_tokenizer(options.target), load_model(options.target, on_cpu=on_cpu)
    fit_threads(model, on_cpu=on_cpu)
    if not on_cpu:
        model = model.to(str(torch.accelerator.current_accelerator()))  # pyright: ignore[reportArgumentType]
    findings = [check_tokens(model, tokenizer), check_chat(tokenizer, task)]
    prompts = None if task is None else task.train[:SEQUENCES]["prompt"]
    told = template_settings(options.data.chat_template_kwargs)
    comparison = compare_logprobs(model, tokenizer, prompts, template_kwargs=told)
    findings += [check_comparison(comparison), check_padding(comparison), check_verifier(task, reason)]
    return [*findings, _probed(options, {})]


def _probed(options: DoctorOptions, settings: dict[str, Any]) -> Finding:
    name = "learning rate and first order"
    if not options.probe:
        return not_checked(name, "not asked for: --probe takes one step and measures it")
    rate = options.learning_rate or settings.get("learning_rate") or 1e-5
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = probing.probe(
                probing.ProbeOptions(
                    model=options.target,
                    output=Path(folder) / "probe",
                    data=options.data,
                    trust=options.trust,
                    step=probing.StepOptions(learning_rate=rate),
                    sampling=dataclasses.replace(PROBE, max_new_tokens=settings.get("max_completion_length")),
                )
            )
        except ValueError as error:
            return not_checked(name, str(error))
    return check_probe(report, probing.MEANINGLESS)
