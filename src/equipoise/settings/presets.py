"""Settings that belong together, by name: `preset: bapo_paper` in a recipe, `**PRESETS["bapo_paper"]` in Python.

A key that is given beside a preset overrides it.
"""

import difflib
from typing import Any

from equipoise.errors import InputError

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2510.18927 as printed: the clipped objective weighted by the rollout's probabilities (Eq. 8), Algorithm 1's
    # values. Raising the lower bound lowers this share, so the search ends on the upper bound or at its end.
    "bapo_paper": {
        "clipping": "balanced",
        "bapo_measure": "surrogate",
        "bapo_token_weight": "rollout",
        "bapo_target_share": 0.4,
        "bapo_low": [0.6, 0.9],
        "bapo_high": [1.2, 3.0],
        "bapo_low_step": 0.02,
        "bapo_high_step": 0.05,
    },
    # Ours, and the defaults of `clipping: balanced`: contributions of the tokens whose gradient survives (Eq. 5 and 7),
    # which both bounds raise; a target above the .44 to .48 that group-normalised advantages give by themselves; a
    # lower bound close to 1, which is what helps most on stale data (docs/studies/staleness.md).
    "bapo": {
        "clipping": "balanced",
        "bapo_measure": "gradient",
        "bapo_token_weight": "uniform",
        "bapo_target_share": 0.55,
        "bapo_low": [0.9, 0.98],
        "bapo_high": [1.2, 3.0],
        "bapo_low_step": 0.02,
        "bapo_high_step": 0.05,
    },
    # Fixed clips, in the keys of TRL: [0.8, 1.28] of DAPO (arXiv 2503.14476), and the wide one that every adaptive clip
    # has to be compared with.
    "clip_higher": {"clipping": "fixed", "epsilon": 0.2, "epsilon_high": 0.28},
    "wide_clip": {"clipping": "fixed", "epsilon": 0.1, "epsilon_high": 2.0},
}


def merged(*levels: dict[str, Any]) -> dict[str, Any]:
    """Keys of several levels (a file, then flags), a later one overriding an earlier; a preset counts at its own level.

    Raises:
        InputError: as `with_preset`.
    """
    keys: dict[str, Any] = {}
    for level in levels:
        keys |= with_preset(level)
    return keys


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The keys with those of the preset that they name, which they override.

    Raises:
        InputError: a preset that does not exist, with the nearest one.
    """
    name = values.get("preset")
    if name is None:
        return values
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise InputError(
            f"preset must be one of {', '.join(PRESETS)}, got preset={name!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return PRESETS[name] | values
