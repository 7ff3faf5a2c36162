"""What diagnostics call the metrics that a host measures, and what each host calls them in its log.

metrics.jsonl keeps the host's names beside those of equipoise (equipoise/...). When a run folder is read, `translated`
adds a name of ours for each that it knows, so that no diagnostic reads a name of a host.
"""

from collections.abc import Mapping
from typing import Any

LEARNING_RATE = "equipoise/learning_rate"
GRADIENT_NORM = "equipoise/gradient_norm"
REWARD = "equipoise/reward"
REWARD_STD = "equipoise/reward_std"
EQUAL_REWARD_FRACTION = "equipoise/equal_reward_fraction"
TRUNCATED_FRACTION = "equipoise/truncated_fraction"
HOST_ENTROPY = "equipoise/host_entropy"
TOOL_CALL_FREQUENCY = "equipoise/tool_call_frequency"
SAMPLER_DIFFERENCE = "equipoise/sampler_logprob_difference"

HOSTS: dict[str, dict[str, str]] = {
    "trl": {
        LEARNING_RATE: "learning_rate",
        GRADIENT_NORM: "grad_norm",
        REWARD: "reward",
        REWARD_STD: "reward_std",
        EQUAL_REWARD_FRACTION: "frac_reward_zero_std",
        TRUNCATED_FRACTION: "completions/clipped_ratio",
        HOST_ENTROPY: "entropy",
        TOOL_CALL_FREQUENCY: "tools/call_frequency",
        SAMPLER_DIFFERENCE: "sampling/sampling_logp_difference/mean",
    },
    "verl": {
        LEARNING_RATE: "actor/lr",
        GRADIENT_NORM: "actor/grad_norm",
        REWARD: "critic/score/mean",
        TRUNCATED_FRACTION: "response_length/clip_ratio",
        HOST_ENTROPY: "actor/entropy",
    },
}
"""Host -> our name -> its name. The reward and what follows it are of the rollout batch that was sampled last, and are
logged once for it; the entropy is the host's own mean, and the difference that of the engine's and the trainer's
log-probs, in nats."""

OURS = "equipoise/"
"""What the names of our scalars begin with."""

VERLS_PREFIX = "actor/"
"""What verl puts before every scalar of a worker, ours too."""


def of_verls_log(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """A line of the log that verl's file logger writes, as one of metrics.jsonl; None when it is none.

    verl logs a step, of which the scalars are means over its updates; the step stands for the update here.
    """
    if set(line) != {"step", "data"} or not isinstance(line["data"], Mapping):
        return None
    prefix = VERLS_PREFIX + OURS
    data = {name.removeprefix(VERLS_PREFIX) if name.startswith(prefix) else name: x for name, x in line["data"].items()}
    return {"update": line["step"], **data}


def translated(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with our names added; one that is there already stays."""
    ours = {name: metrics[theirs] for names in HOSTS.values() for name, theirs in names.items() if theirs in metrics}
    return {**ours, **metrics}
