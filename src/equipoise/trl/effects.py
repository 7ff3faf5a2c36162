"""Keys that were given and change nothing beside the others: said before a run begins, in a line each.

Not refused: the methods of a study share their keys, and one of them turns off what the others tune.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from equipoise.settings.run import RunSettings
from equipoise.trl.config import EquipoiseConfig

logger = logging.getLogger("equipoise")

Held = Callable[[Mapping[str, Any]], bool]

NEEDS: dict[tuple[str, ...], tuple[str, Held]] = {
    ("bapo_",): ("clipping: balanced", lambda keys: keys["clipping"] == "balanced"),
    ("papo_",): ("polarity: papo", lambda keys: keys["polarity"] == "papo"),
    ("lora_",): ("use_peft", lambda keys: keys["use_peft"]),
    ("environment_", "max_failed_fraction"): ("environment", lambda keys: keys["environment"]),
    ("replay_capacity", "replay_max_age", "replay_sampling"): ("replay_fraction", lambda keys: keys["replay_fraction"]),
    ("record_tokens_fraction",): ("record_tokens", lambda keys: keys["record_tokens"]),
    ("vllm_",): ("use_vllm", lambda keys: keys["use_vllm"]),
    ("sapo_",): ("loss_type: sapo", lambda keys: keys["loss_type"] == "sapo"),
    ("vespo_",): ("loss_type: vespo", lambda keys: keys["loss_type"] == "vespo"),
    ("ref_model_",): ("sync_ref_model", lambda keys: keys["sync_ref_model"]),
    ("num_completions_to_print", "log_unique_prompts"): ("log_completions", lambda keys: keys["log_completions"]),
}
"""Names, or beginnings that end in "_", of keys -> what they need to have an effect, and whether that holds."""


def without_effect(given: Collection[str], settings: RunSettings, config: EquipoiseConfig) -> dict[str, str]:
    """The keys that were given in vain, and what each needs.

    Args:
        given: names of the keys that the user wrote.
        settings: that they make.
        config: likewise.
    """
    keys, found = vars(config) | vars(settings), {}
    for names, (needed, held) in NEEDS.items():
        if not held(keys):
            found |= {key: needed for key in given if _is_one_of(key, names)}
    return found


def tell_without_effect(given: Collection[str], settings: RunSettings, config: EquipoiseConfig) -> None:
    """Warn of the keys that were given in vain."""
    for key, needed in without_effect(given, settings, config).items():
        logger.warning("%s has no effect without %s.", key, needed)


def _is_one_of(key: str, names: tuple[str, ...]) -> bool:
    return any(key.startswith(name) if name.endswith("_") else key == name for name in names)
