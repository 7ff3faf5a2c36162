"""Checks of the settings of a run, before or after it: each is one function from the settings to one finding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from equipoise.diagnostics.doctor.finding import Finding, not_checked, ok, warning, wrong
from equipoise.settings.batches import RolloutBatch

NEEDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bapo_": ("clipping: balanced", lambda s: s["clipping"] == "balanced"),
    "papo_": ("polarity: papo", lambda s: s["polarity"] == "papo"),
    "replay_": ("replay_fraction above 0", lambda s: s["replay_fraction"] > 0),
    "epsilon": ("clipping: fixed", lambda s: s["clipping"] == "fixed"),
    "lora_": ("use_peft: true", lambda s: s["use_peft"]),
    "vllm_": ("use_vllm: true", lambda s: s["use_vllm"]),
}
"""Keys by their beginning, and the setting without which they have no effect."""

TRUNCATING = {"top_p": (None, 1, 1.0), "top_k": (None, 0), "min_p": (None, 0, 0.0), "repetition_penalty": (None, 1)}
"""Settings that make the sampled distribution another than the softmax, and the values that leave it."""

BF16_SLOWER = 1.5
"""Times as long as in float32 for the same product, from which bf16 costs more time than a run should give away."""


@dataclass(frozen=True)
class SettingsEvidence:
    """How a run is set.

    Attributes:
        settings: every setting in force, by name.
        given: the keys that were given, without defaults.
        world_size: processes.
        device: kind of device, such as "cpu" or "cuda".
        bf16_slowdown: measured time of a bf16 product over that in float32; None where it was not measured.
        completion_tokens: tokens a correct completion of the task may need; None when not known.
    """

    settings: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    world_size: int = 1
    device: str = "cpu"
    bf16_slowdown: float | None = None
    completion_tokens: int | None = None


def check_batches(evidence: SettingsEvidence) -> Finding:
    """What divides what: completions, prompts and updates of a rollout batch."""
    name = "batch arithmetic"
    settings = evidence.settings
    if not settings.get("num_generations"):
        return not_checked(name, "num_generations is not known")
    batch, processes = RolloutBatch.of(settings), evidence.world_size
    rollout, update = batch.completions * processes, batch.completions_per_update * processes
    seen = _explained(batch, processes)
    if rollout % batch.group_size:
        return wrong(
            name, seen, "A rollout batch must hold whole groups: num_generations does not divide its completions.",
            f"Make per_device_train_batch_size * processes * steps_per_generation = {rollout} a multiple of "
            f"num_generations = {batch.group_size}.",
        )  # fmt: skip
    if not batch.has_whole_updates(may_span=True):
        return warning(
            name, seen, "An update mixes the end of one rollout batch with the start of the next: data of two ages.",
            f"Let gradient_accumulation_steps = {batch.accumulated} divide steps_per_generation * num_iterations = "
            f"{batch.trained_micro_batches}.",
        )  # fmt: skip
    if update < batch.group_size:
        return warning(
            name, seen,
            f"An update holds {update} completions, less than one group of {batch.group_size}: the "
            f"advantages of a group, which sum to zero, act in different updates.",
            "Raise per_device_train_batch_size or gradient_accumulation_steps.",
        )  # fmt: skip
    return ok(name, seen)


def _explained(batch: RolloutBatch, processes: int) -> str:
    updates, rollout = batch.updates, batch.completions * processes
    age = f"the last of them on data {updates - 1:g} updates old" if updates > 1 else "on fresh data"
    return (
        f"a rollout batch is {batch.rows} x {processes} processes x {batch.micro_batches} slices = {rollout} "
        f"completions = {rollout / batch.group_size:g} prompts x {batch.group_size}; an update takes "
        f"{batch.completions_per_update * processes} completions; {updates:g} updates per rollout batch, {age}"
    )


def check_useless(evidence: SettingsEvidence) -> Finding:
    """Keys that were given and have no effect, or settings that undo each other."""
    name = "settings without effect"
    settings, given = evidence.settings, evidence.given
    idle = []
    for key, value in given.items():
        for beginning, (needed, holds) in NEEDS.items():
            concerned = key.startswith(beginning) and key != "replay_fraction" and value is not None
            if concerned and not _holds(holds, settings):
                idle.append(f"{key} (needs {needed})")
    if settings.get("polarity") == "papo" and settings.get("papo_strength") == 0:
        idle.append("polarity: papo (papo_strength is 0)")
    if given.get("papo_reference_entropy") is not None and "papo_reference_fraction" in given:
        idle.append("papo_reference_fraction (papo_reference_entropy is given)")
    if not idle:
        return ok(name, f"{len(given)} keys were given" if given else "no keys are known to have been given")
    return warning(
        name, "; ".join(idle), "The run is not the one the file seems to describe.",
        "Remove these keys, or give the settings they need.",
    )  # fmt: skip


def _holds(holds: Callable[[Any], bool], settings: Mapping[str, Any]) -> bool:
    try:
        return bool(holds(settings))
    except KeyError:  # what is not known is not said to be useless
        return True


def check_clipping_acts(evidence: SettingsEvidence) -> Finding:
    """Balanced clipping where every ratio is 1."""
    name = "clipping and stale data"
    settings = evidence.settings
    if settings.get("clipping") != "balanced":
        return not_checked(name, "clipping is not balanced")
    batch = RolloutBatch.of(settings)
    if settings.get("replay_fraction") or settings.get("rollout_token_budget") or batch.updates > 1:
        return ok(name, f"{batch.updates:g} updates per rollout batch, so there are ratios to clip")
    return wrong(
        name, f"{batch.updates:g} updates per rollout batch, no replay, no partial rollouts",
        "The policy has not moved since it sampled: every ratio is 1, and bounds have nothing to bound.",
        "Raise num_iterations, or steps_per_generation above gradient_accumulation_steps; or set clipping: fixed.",
    )  # fmt: skip


def check_precision(evidence: SettingsEvidence) -> Finding:
    """bf16 on a device that computes it slowly."""
    name = "bf16"
    if not evidence.settings.get("bf16"):
        return ok(name, "not in use")
    if evidence.device != "cpu":
        return ok(name, f"in use, on {evidence.device}")
    if evidence.bf16_slowdown is None:
        return not_checked(name, "in use on a CPU; its speed there was not measured")
    evidence_text = f"in use on a CPU; here a bf16 product takes {evidence.bf16_slowdown:.1f} times as long as float32"
    if evidence.bf16_slowdown < BF16_SLOWER:
        return ok(name, evidence_text)
    return warning(
        name, evidence_text, "This processor emulates bf16: less precise and slower.",
        "Set bf16: false, or leave it out: equipoise then takes float32 on a CPU.",
    )  # fmt: skip


def check_sampled_distribution(evidence: SettingsEvidence) -> Finding:
    """Sampling from another distribution than the softmax the loss knows."""
    name = "sampled distribution"
    changed = [
        f"{key}: {evidence.settings[key]:g}"
        for key, plain in TRUNCATING.items()
        if key in evidence.settings and evidence.settings[key] not in plain
    ]
    if not changed:
        return ok(name, f"the softmax at temperature {evidence.settings.get('temperature', 1.0):g}")
    return warning(
        name, ", ".join(changed),
        "Completions come from a cut or bent distribution, while log-probs, ratios and entropy are those of the whole "
        "softmax: the gradient is biased, and the entropy counts tokens that are never sampled.",
        "Sample with temperature alone while training; use these for evaluation.",
    )  # fmt: skip


def check_learning_rate(evidence: SettingsEvidence) -> Finding:
    """A policy that cannot move. Whether a rate is too large for a model is measured by the probe."""
    name = "learning rate"
    rate = evidence.settings.get("learning_rate")
    if rate is None:
        return not_checked(name, "learning_rate is not known")
    if rate > 0:
        return ok(name, f"{rate:g}; whether first order holds at it is measured by equipoise doctor MODEL --probe")
    return wrong(name, f"learning_rate is {rate:g}", "The policy does not move.", "Give a learning_rate > 0.")


def check_room(evidence: SettingsEvidence) -> Finding:
    """Room for the completions of the task."""
    name = "room for completions"
    room, needed = evidence.settings.get("max_completion_length"), evidence.completion_tokens
    if room is None or needed is None:
        return not_checked(name, "the tokens a correct completion needs are not known for this data")
    if room >= needed:
        return ok(name, f"max_completion_length {room}, the longest correct completions need {needed}")
    return wrong(
        name, f"max_completion_length is {room}, correct completions may need {needed} tokens",
        "Correct answers to some prompts do not fit and can never be rewarded.",
        f"Set max_completion_length to {needed} or more.",
    )  # fmt: skip


SETTINGS_CHECKS: tuple[Callable[[SettingsEvidence], Finding], ...] = (
    check_batches,
    check_clipping_acts,
    check_useless,
    check_sampled_distribution,
    check_precision,
    check_learning_rate,
    check_room,
)
"""Every check of the settings, in the order in which they are reported among equals."""
