#!/usr/bin/env bash
# PAPO by entropy polarity (arXiv 2605.11775) on DAPO-Math-17k with verl. For 8 GPUs of 80 GB.
#
#   TRAIN_FILES=dapo-math-17k.parquet TEST_FILES=aime-2024.parquet OUTPUT=runs/papo bash recipes/verl/papo_dapo_math.sh
#
# [P] is the paper's abstract, [D] DAPO's setting (arXiv 2503.14476), [O] ours. The paper's models, constants and tables
# are not public: this is our reading of its method in DAPO's setting, and no reproduction. We have not run this at full
# size. Without DAPO's dynamic sampling, and without its soft punishment of overlong responses. The same on TRL:
# recipes/papers/papo_dapo_math.yaml.
source "$(dirname "$0")/common.sh"

RESPONSE=${RESPONSE:-8192} # [D] 20480, which needs its logits to fit
ARGUMENTS=(
    "${BEHAVIOR[@]}"
    # [P] both branches, the entropy as the phase signal; [O] the constants
    "$(settings 'polarity: papo, papo_strength: 0.2, papo_reference_entropy: 0.3')"
    actor_rollout_ref.actor.clip_ratio_low=0.2 # [D]
    actor_rollout_ref.actor.clip_ratio_high=0.28 # [D]
    actor_rollout_ref.actor.clip_ratio_c=10.0 # [D] hardly a dual clip
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-7B}" # [O]; DAPO trains Qwen2.5-32B
    # [D] 512 prompts x 16 responses per rollout batch, mini-batches of 512 responses: 16 updates.
    data.train_batch_size=512
    actor_rollout_ref.rollout.n=16
    actor_rollout_ref.actor.ppo_mini_batch_size=32
    actor_rollout_ref.actor.ppo_epochs=1
    data.max_prompt_length=2048
    data.max_response_length="$RESPONSE"
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$((RESPONSE + 2048))
    actor_rollout_ref.rollout.temperature=1.0 # [D]
    actor_rollout_ref.actor.optim.lr=1e-6 # [D]
    actor_rollout_ref.actor.optim.weight_decay=0.1 # [D]
    actor_rollout_ref.actor.optim.lr_warmup_steps=20 # [D] rollout batches
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 # [O]
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 # [O]
    trainer.v1.trainer_mode=sync
    trainer.nnodes=1
    trainer.experiment_name=papo_dapo_math
    trainer.total_training_steps=250 # [O]
    trainer.save_freq=5
    trainer.test_freq=5
)
train "${ARGUMENTS[@]}" "$@"
