"""What a resumed run is compared by."""

TIMINGS = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")

# 4 sequences per micro-batch, 2 micro-batches per update, 4 updates per rollout batch, 4 rollout batches per epoch;
# the run goes from the first epoch into the second.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "clipping": "balanced",
    "polarity": "papo",
    "papo_warmup_updates": 2,
    "papo_reference_fraction": 1.5,
    "bapo_target_share": 0.55,
    "max_steps": 22,
    "save_strategy": "steps",
    "save_steps": 1,
    "lr_scheduler_type": "cosine",
}


def history(subject):
    return [
        {k: v for k, v in entry.items() if k not in TIMINGS} for entry in subject.state.log_history if "loss" in entry
    ]


def weights(subject):
    return {name: value.clone() for name, value in subject.model.state_dict().items()}
