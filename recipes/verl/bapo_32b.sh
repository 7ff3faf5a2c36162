#!/usr/bin/env bash
# BAPO (arXiv 2510.18927) on DeepSeek-R1-Distill-Qwen-32B with verl: stale data. For 4 nodes of 8 GPUs of 80 GB.
#
#   ray start --head                                    on the first node; on the others: ray start --address=FIRST:6379
#   TRAIN_FILES=… TEST_FILES=… OUTPUT=/shared/runs/bapo_32b bash recipes/verl/bapo_32b.sh      on the first node
#
# [P] is the paper's, [O] ours. We have not run this at full size. The same on TRL, with the paper's numbers:
# recipes/papers/bapo_r1_distill_32b.yaml.
source "$(dirname "$0")/common.sh"

RESPONSE=${RESPONSE:-8192} # [P] 8k in preliminary experiments; 32768 in the main table, which needs its logits to fit
ARGUMENTS=(
    "${BEHAVIOR[@]}"
    "$(settings 'preset: bapo_paper')" # [P]
    actor_rollout_ref.actor.clip_ratio_c=1e6 # [P] no dual clip, which the surrogate measure does not go with
    actor_rollout_ref.model.path="${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Qwen-32B}" # [P] the family
    # [P] 256 prompts x 16 responses per rollout batch, mini-batches of 64 prompts: 4 updates, staleness 4.
    data.train_batch_size=256
    actor_rollout_ref.rollout.n=16
    actor_rollout_ref.actor.ppo_mini_batch_size=64
    actor_rollout_ref.actor.ppo_epochs=1
    data.max_prompt_length=2048
    data.max_response_length="$RESPONSE"
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$((RESPONSE + 2048))
    actor_rollout_ref.rollout.temperature=1.0 # [P] 0.6 to 1
    actor_rollout_ref.actor.optim.lr=1e-6 # [P] 1e-6 to 2e-6
    actor_rollout_ref.actor.optim.lr_warmup_steps=3 # [O]
    actor_rollout_ref.rollout.tensor_model_parallel_size=8 # [O] one copy of the weights per node
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 # [O]
    trainer.v1.trainer_mode=sync # colocate_async for partial rollouts
    trainer.nnodes=4
    trainer.experiment_name=bapo_32b
    trainer.total_training_steps=100 # [O]
    trainer.save_freq=5
    trainer.test_freq=5
)
train "${ARGUMENTS[@]}" "$@"
