"""What the settings of TRL and transformers may be, where the hosts say so late, with a traceback, or not at all.

A rule stands with the key that it is for. tests/reliability/late_errors.py tries every key at and beyond its bounds.
"""

import math
from collections.abc import Callable
from typing import Any

from equipoise.errors import require
from equipoise.settings.clipping import require_choice
from equipoise.trl.own_methods import LOSSES

Rule = tuple[str, Callable[[Any], bool]]

MOST_TOKENS = 2**24
"""Of one sequence: beyond the context of any model, and below what sizes of tensors overflow at."""


def count(least: int, most: int = 2**31 - 1) -> Rule:
    """A whole number; beyond 32 bits the hosts' counters and sizes overflow."""
    rule = f">= {least} and < 2**31" if most == 2**31 - 1 else f"in [{least}, {most}]"
    return rule, lambda x: least <= x <= most


def number(least: float, most: float = 1e6) -> Rule:
    """A number that float32 holds, its products with ordinary ones too."""
    return f">= {least:g} and <= {most:g}", lambda x: least <= x <= most


SHARE: Rule = ("in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_ONE: Rule = ("in [0, 1)", lambda x: 0 <= x < 1)
SEED: Rule = count(0, 2**32 - 1)
PORT: Rule = count(1, 65535)
SECONDS: Rule = ("> 0 and finite", lambda x: 0 < x < math.inf)
STEPS: Rule = (">= 0 and finite, below 1 a share of the run", lambda x: 0 <= x < math.inf)

RULES: dict[str, Rule] = {
    "max_steps": ("-1 (unset) or >= 1 and < 2**31", lambda x: x == -1 or 1 <= x < 2**31),
    "num_train_epochs": number(1e-9, 2**31),
    "seed": SEED,
    "data_seed": SEED,
    # Optimizer and schedule.
    "learning_rate": number(0, 1e38),
    "weight_decay": number(0),
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": number(1e-30),  # 0 in float32 divides by 0
    "max_grad_norm": number(0, 1e30),
    "warmup_steps": STEPS,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": number(0),
    "router_aux_loss_coef": number(0),
    # Batches.
    "per_device_train_batch_size": count(1),
    "per_device_eval_batch_size": count(1),
    "gradient_accumulation_steps": count(1),
    "steps_per_generation": count(1),
    "num_iterations": count(1),
    "num_generations": count(2),
    "num_generations_eval": count(1),
    "generation_batch_size": count(1),
    "eval_accumulation_steps": count(1),
    "torch_empty_cache_steps": count(1),
    "dataloader_num_workers": count(0, 1024),
    "dataloader_prefetch_factor": count(1, 1024),
    "ddp_bucket_cap_mb": count(1),
    "ddp_timeout": count(1),
    # When something is done.
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "eval_delay": STEPS,
    "ref_model_sync_steps": count(1),
    "num_completions_to_print": count(0),
    "remove_unused_columns": ("false: rewards get every column of the data", lambda x: not x),
    # Sampling.
    "max_completion_length": count(1, MOST_TOKENS),
    "pad_to_multiple_of": count(1, MOST_TOKENS),
    "temperature": number(1e-6),
    "repetition_penalty": number(1e-6),
    "top_p": ("in (0, 1]", lambda x: 0 < x <= 1),
    "min_p": SHARE,
    "top_k": count(0),
    "max_tool_calling_iterations": count(0),
    "vllm_server_port": PORT,
    "vllm_group_port": PORT,
    "vllm_server_timeout": SECONDS,
    "vllm_gpu_memory_utilization": ("in (0, 1]", lambda x: 0 < x <= 1),
    "vllm_max_model_length": count(1, MOST_TOKENS),
    "vllm_tensor_parallel_size": count(1),
    # Loss.
    "beta": number(0),
    "epsilon": number(0),
    "epsilon_high": number(0),
    "delta": number(0),
    "sapo_temperature_neg": number(1e-6),
    "sapo_temperature_pos": number(1e-6),
    "vespo_k_pos": number(0),
    "vespo_lambda_pos": number(0),
    "vespo_k_neg": number(0),
    "vespo_lambda_neg": number(0),
    "ref_model_mixup_alpha": SHARE,
    "top_entropy_quantile": SHARE,
    "entropy_coef": number(-1e6),
    "entropy_coef_min": number(-1e6),
    "entropy_coef_max": number(-1e6),
    "entropy_coef_delta": number(0),
    "entropy_target": number(0),
    "vllm_importance_sampling_clip_max": number(0),
    "vllm_importance_sampling_clip_min": number(0),
    "vllm_importance_sampling_cap": number(0),
    "off_policy_mask_threshold": number(0),
    "reward_weights": ("finite numbers", lambda x: bool(x) and all(abs(weight) <= 1e6 for weight in x)),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": LOSSES,
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "vllm_mode": ("colocate", "server"),
}


def check_ranges(values: dict[str, Any]) -> None:
    """Refuse numbers out of range, before the host completes its settings; None is unset.

    Args:
        values: key -> value.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    for name, (rule, holds) in RULES.items():
        value = values.get(name)  # of some versions of the hosts
        # Text where a number may stand is the host's to read.
        require(name, value, rule, value is None or isinstance(value, str) or holds(value))


def check_choices(values: dict[str, Any]) -> None:
    """Refuse words that the host knows nothing of, once it has completed its settings.

    Args:
        values: key -> value.

    Raises:
        ValueError: naming the key, the choices and the value.
    """
    for name, choices in CHOICES.items():
        if values.get(name) is not None:
            require_choice(name, values[name], choices)
