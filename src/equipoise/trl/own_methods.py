"""Methods of entropy control that TRL has itself: a name sets TRL's keys. And what TRL's losses do with the ratio."""

from equipoise.settings.entropy_control import NOT_NEGATIVE, POSITIVE, HostMethod

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's loss types that clip the ratio from both sides. The others cap, smooth or drop it in ways of their own."""

LOSSES = (*CLIPPED_LOSSES, "cispo", "sapo", "vespo")

TRL_METHODS = {
    "entropy_bonus": HostMethod({"bonus": 0.01}, lambda bonus: {"entropy_coef": bonus}, {"bonus": POSITIVE}),
    "adaptive_entropy_bonus": HostMethod(
        {"target": 0.2, "step": 0.005, "largest": 1.0},
        lambda target, step, largest: {
            "use_adaptive_entropy": True,
            "entropy_target": target,
            "entropy_coef_delta": step,
            "entropy_coef_max": largest,
        },
        {"target": POSITIVE, "step": POSITIVE, "largest": NOT_NEGATIVE},
        closed_loop=True,
    ),
    "top_entropy": HostMethod(
        {"top_fraction": 0.2},
        lambda top_fraction: {"top_entropy_quantile": top_fraction},
        {"top_fraction": ("in (0, 1)", lambda x: 0 < x < 1)},
    ),
}
