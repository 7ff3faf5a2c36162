# What the recipes of this folder have in common: sourced, not run. "$@" of the recipe comes last, and wins.
#
# Parquet files as verl wants them (data_source, prompt, reward_model: {style, ground_truth}), and where the run goes:
#   TRAIN_FILES=… TEST_FILES=… OUTPUT=/shared/runs/name bash recipes/verl/RECIPE.sh [KEY=VALUE …]
# With several nodes: start Ray on them first (`ray start --head`, `ray start --address=…`), then this on the first one.
set -euo pipefail
: "${TRAIN_FILES:?a Parquet file of prompts, or [a.parquet,b.parquet]}" "${TEST_FILES:?the same, held out}"
: "${OUTPUT:?folder of the run; every node must see it}"
[[ "$OUTPUT" == /* ]] || OUTPUT=$PWD/$OUTPUT # Ray's workers need not run in this folder

EQUIPOISE=(
    actor_rollout_ref.model.external_lib=equipoise.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=equipoise
    actor_rollout_ref.actor.policy_loss._target_=equipoise.verl.EquipoiseLossConfig
)

# The ratio is taken to the policy that sampled: its log-probs come with the rollout, and are not computed anew.
BEHAVIOR=(
    actor_rollout_ref.rollout.calculate_log_probs=True
    algorithm.rollout_correction.bypass_mode=True
)

TRAINER=(
    algorithm.adv_estimator=grpo
    algorithm.use_kl_in_reward=False
    actor_rollout_ref.actor.use_kl_loss=False
    actor_rollout_ref.actor.entropy_coeff=0
    actor_rollout_ref.actor.loss_agg_mode=token-mean
    data.train_files="$TRAIN_FILES"
    data.val_files="$TEST_FILES"
    data.filter_overlong_prompts=True
    data.truncation=error
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.fsdp_config.param_offload=True
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True
    actor_rollout_ref.model.use_remove_padding=True
    actor_rollout_ref.model.enable_gradient_checkpointing=True
    actor_rollout_ref.rollout.name="${ENGINE:-vllm}"
    trainer.n_gpus_per_node=8
    "trainer.logger=[console,file]"
    trainer.project_name=equipoise
    trainer.val_before_train=False
    trainer.default_local_dir="$OUTPUT/checkpoints"
    hydra.run.dir="$OUTPUT/hydra"
)

# The settings of equipoise, in one line; the run folder of equipoise lies within that of the run.
settings() {
    echo "+actor_rollout_ref.actor.policy_loss.equipoise={$1, output_dir: '$OUTPUT/equipoise', record_tokens: 10}"
}

train() {
    exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${TRAINER[@]}" "${EQUIPOISE[@]}" "$@"
}
