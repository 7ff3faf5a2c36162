"""Tiny models that vLLM's CPU build takes, and trainers that sample with it in their own process."""

import os
from pathlib import Path

from trainer_setup import character_tokenizer, config, digit_reward, prompts, tiny_model
from transformers import LlamaForCausalLM

from equipoise.trl import EquipoiseTrainer

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its generator is the trainer's
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
# What vLLM's log-probs may differ by from the trainer's in float32, in nats, on average and at most: its CPU kernels
# approximate exponentials.
MEAN_ERROR, MOST_ERROR = 1e-4, 1e-3
COLOCATED = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_max_model_length": 64,
    "vllm_enable_sleep_mode": False,
    "vllm_importance_sampling_correction": False,
}


def model_folder(folder: Path, **changes) -> Path:
    """A saved model with the smallest heads that vLLM computes on a CPU, 32 wide, and its tokenizer."""
    tiny_model(**({"hidden_size": 64, "intermediate_size": 64} | changes)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def share_engines(setattr=setattr) -> None:
    """Let all make one engine for each model folder, without compiling the model, and in the model's own precision.

    A trainer sends its weights before it first samples, so that nothing of one run is left in the next. By itself TRL
    leaves the precision to vLLM, which takes bf16 for a model in float32: log-probs could then be compared to the
    second digit only. And on CPUs vLLM multiplies by packed copies of the weights where oneDNN or its own kernels know
    the processor and the precision: new weights could not be sent, or would not be used.
    """
    import vllm
    from trl.generation import vllm_generation
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    setattr(_custom_ops, "_supports_onednn", False)
    setattr(utils, "check_cpu_sgl_kernel", lambda *shape: False)
    plain, made = vllm.LLM, {}

    def engine(model: str, **settings):
        if model not in made:
            made[model] = plain(model=model, dtype="float32", enforce_eager=True, **settings)
        return made[model]

    for user in (vllm, vllm_generation):
        setattr(user, "LLM", engine)


def colocated(folder: Path, model: Path, *, trainer_class=EquipoiseTrainer, dataset=None, others=None, **settings):
    """A trainer of `trainer_setup` with an engine of its own."""
    os.environ.update(ENVIRONMENT)
    return trainer_class(
        model=LlamaForCausalLM.from_pretrained(model),
        reward_funcs=digit_reward,
        args=config(folder, **(COLOCATED | settings)),
        train_dataset=prompts() if dataset is None else dataset,
        processing_class=character_tokenizer(),
        **(others or {}),
    )
