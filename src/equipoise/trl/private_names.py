"""What equipoise overrides, calls, reads or sets of its hosts that they do not promise to keep.

The upper bounds of trl, transformers and accelerate in pyproject.toml are there for this list. Each name is held by
`tests/trl/test_private_names.py`; when a host is raised to a newer version, what fails there has moved.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """One name of a host.

    Attributes:
        name: of a method or attribute.
        owner: the class it belongs to, "module:Class"; where it is defined or assigned.
        use: what is done with it.
        breaks: what goes wrong here when it moves or changes its meaning.
        parameters: of a method, in order; None for an attribute.
    """

    name: str
    owner: str
    use: str
    breaks: str
    parameters: tuple[str, ...] | None = None


GRPO, TRAINER = "trl.trainer.grpo_trainer:GRPOTrainer", "transformers.trainer:Trainer"

METHODS = (
    PrivateName(
        "_generate_and_score_completions", GRPO, "overridden; called for evaluations in environments",
        "replay and partial rollouts, the policy version of a rollout batch, evaluate_episodes",
        ("inputs",),
    ),
    PrivateName(
        "_prepare_inputs", GRPO, "overridden; a new rollout batch is a new _buffered_inputs",
        "staleness, and whether bounds are searched",
        ("generation_batch",),
    ),
    PrivateName(
        "_calculate_rewards", GRPO, "overridden, and its answers noted; ends with one gather",
        "rewards in token records, on one process as on many; a reward that fails on one of several processes hangs",
        ("inputs", "prompts", "completions", "completion_ids_list"),
    ),
    PrivateName(
        "_generate_single_turn", GRPO, "overridden; called for partial rollouts, and in turns of other processes",
        "partial rollouts; the log-probs of the sampler; episodes of sharded models hang",
        ("prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    ),
    PrivateName(
        "_tool_call_loop", GRPO, "overridden", "episodes: who answers which call of a tool",
        ("prompts", "prompt_ids", "completion_ids", "completions", "logprobs", "images", "multimodal_fields"),
    ),
    PrivateName(
        "_tokenize_prompts", GRPO, "called", "prompts of partial rollouts are not those that TRL would give the model",
        ("prompts",),
    ),
    PrivateName(
        "_get_train_sampler", GRPO, "overridden", "a resumed run sees other prompts in its second epoch", ("dataset",)
    ),
    PrivateName(
        "_compute_loss", GRPO, "overridden", "everything: an update is opened, steered and closed there",
        ("model", "inputs"),
    ),
    PrivateName(
        "_get_per_token_logps_and_entropies", GRPO, "overridden",
        "everything: the statistics are taken from the forward pass that TRL makes there",
        (
            "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
            "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask",
            "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
        ),
    ),
    PrivateName(
        "_save_checkpoint", GRPO, "overridden", "checkpoints without our state, or marked before they are whole",
        ("model", "trial"),
    ),
    PrivateName(
        "_load_optimizer_and_scheduler", GRPO, "overridden", "a resumed run begins without our state", ("checkpoint",)
    ),
    PrivateName(
        "_load_from_checkpoint", TRAINER, "overridden", "a damaged checkpoint of another trainer is a traceback",
        ("resume_from_checkpoint", "model"),
    ),
    PrivateName("_load_rng_state", TRAINER, "overridden", "the same", ("checkpoint",)),
    PrivateName(
        "_get_output_dir", TRAINER, "called", "the checkpoint is marked in another folder than it lies in", ("trial",)
    ),
    PrivateName(
        "_finalize_training", TRAINER, "overridden",
        "with save_total_limit=1, the best checkpoint's end of a run removes those of other trainers",
        ("trial", "num_train_samples", "start_time"),
    ),
    PrivateName(
        "_run_epoch", TRAINER, "overridden", "a run resumed within a rollout batch skips the wrong batches",
        (
            "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
            "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
    ),
)  # fmt: skip
"""Methods, with the parameters that are passed on or read."""

REPEAT_SAMPLER = "trl.trainer.utils:RepeatSampler"

ATTRIBUTES = (
    PrivateName(
        "_metrics", GRPO, "read and added to", "our scalars are not logged, or those of an evaluation among them"
    ),
    PrivateName("_step", GRPO, "read, set on resume", "which micro-batch of a rollout batch is next"),
    PrivateName("_buffered_inputs", GRPO, "read, set on resume", "bounds of an update; a resumed run samples anew"),
    PrivateName("_tokenizer", GRPO, "read", "padding of replayed samples, texts of token records"),
    PrivateName("_tr_loss", TRAINER, "read, added to on resume", "the first loss that a resumed run logs"),
    PrivateName("_globalstep_last_logged", TRAINER, "read, set on resume", "the same, when updates are not all logged"),
    PrivateName("current_gradient_accumulation_steps", TRAINER, "read", "where an update ends: the last is shorter"),
    PrivateName("generator", REPEAT_SAMPLER, "seeded", "the order of prompts in a resumed epoch"),
    PrivateName("shuffle", REPEAT_SAMPLER, "read", "the same"),
    PrivateName("seed", REPEAT_SAMPLER, "read", "the same"),
    PrivateName(
        "max_completion_length", "trl.generation.vllm_generation:VLLMGeneration", "set for a while",
        "the token budget of a partial rollout with vLLM",
    ),
    PrivateName(
        "enable_sleep_mode", "trl.generation.vllm_generation:VLLMGeneration", "read, off for a while",
        "vLLM is sent the weights in every round of partial rollouts, or sleeps when it has to sample",
    ),
    PrivateName("_llm_weights_sleeping", "trl.generation.vllm_generation:VLLMGeneration", "set", "the same"),
    PrivateName("_last_loaded_step", GRPO, "set", "the same"),
    PrivateName(
        "_wandb", "transformers.integrations.integration_utils:WandbCallback", "called", "the asymmetry map in wandb"
    ),
    PrivateName(
        "distributed_type", "accelerate.state:PartialState", "set", "FSDP2 on CPUs would be DDP, without a word"
    ),
    PrivateName("fsdp_plugin", "accelerate.state:AcceleratorState", "set", "the same"),
    PrivateName(
        "mixed_precision_policy", "accelerate.utils.dataclasses:FullyShardedDataParallelPlugin", "replaced",
        "FSDP2 rounds log-probs and entropies to bf16",
    ),
)  # fmt: skip
"""Attributes of instances; the owner assigns them."""
