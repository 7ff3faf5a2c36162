"""Workers of verl on CPUs, without its trainer: Ray, a group of FSDP2 ranks, and sequences to update them with."""

import contextlib
import importlib.util
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "verl" / "cpu"
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(RECIPE), str(ROOT / "tests" / "support")]),
}
"""Of this process before it imports verl, and of all that Ray starts."""
EQUIPOISE = ["equipoise.verl"]
"""What a worker loads before it builds its model, beside what lets it run on CPUs."""


def installed() -> bool:
    """Whether verl itself is there, which no test folder of that name counts as."""
    return importlib.util.find_spec("verl") is not None and importlib.util.find_spec("verl").origin is not None


def prepare() -> None:
    """Let this process import verl: its environment, and the modules of the recipe."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"})
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)  # or Ray writes one to the home folder
    if str(RECIPE) not in sys.path:
        sys.path.insert(0, str(RECIPE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of engines that are not installed
        import equipoise.verl  # noqa: F401


@contextlib.contextmanager
def ray_cluster(places: int = 8) -> Iterator[None]:
    """Ray on this machine with room for so many ranks; what was started ends with it."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address="local",
                num_cpus=32,
                num_gpus=places,
                include_dashboard=False,
                log_to_driver=bool(os.environ.get("EQUIPOISE_TEST_LOGS")),
                object_store_memory=200_000_000,
                runtime_env={"env_vars": ENVIRONMENT},
                _temp_dir=sockets,
            )
        try:
            yield
        finally:
            ray.shutdown()


def configuration(model: Path, *overrides: str, libraries: list[str] = EQUIPOISE, policy_loss: Mapping | None = None):
    """verl's own configuration of a trainer, float32 on CPUs.

    Args:
        model: A folder with a model and its tokenizer.
        overrides: More of hydra's, as on verl's command line; they win.
        libraries: What `external_lib` names beside `cpu_ranks`.
        policy_loss: Keys of `actor_rollout_ref.actor.policy_loss`; a key that verl does not have is added.
    """
    import verl
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={model}",
                f"actor_rollout_ref.model.external_lib=[{','.join(['cpu_ranks', *libraries])}]",
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
                "actor_rollout_ref.model.enable_gradient_checkpointing=False",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
                "actor_rollout_ref.actor.optim.lr=1e-3",
                "actor_rollout_ref.actor.optim.total_training_steps=10",
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision="
                "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
                "trainer.device=cpu",
                *overrides,
            ],
        )
    if policy_loss:
        with open_dict(config):
            config.actor_rollout_ref.actor.policy_loss = OmegaConf.merge(
                config.actor_rollout_ref.actor.policy_loss, OmegaConf.create(dict(policy_loss))
            )
    return config


@contextlib.contextmanager
def worker_group(model: Path, *overrides: str, ranks: int = 1, worker_class: type | None = None, **more):
    """A group of FSDP2 ranks with the role of an actor; they end with it.

    Args:
        model: As for `configuration`, which `overrides` and `more` are for too.
        overrides: Likewise.
        ranks: That share an update.
        worker_class: Extends verl's `ActorRolloutRefWorker`; None for that itself.
        more: Likewise.
    """
    import ray
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.workers.engine_workers import ActorRolloutRefWorker

    config = configuration(model, *overrides, **more)
    remote = ray.remote(worker_class or ActorRolloutRefWorker)
    worker = RayClassWithInitArgs(cls=remote, config=config.actor_rollout_ref, role="actor")
    pool = RayResourcePool(process_on_nodes=[ranks], use_gpu=True, max_colocate_count=1)
    group = RayWorkerGroup(resource_pool=pool, ray_cls_with_init=worker, device_name="cpu")
    try:
        group.init_model()
        yield group
    finally:
        for actor in group.workers:
            ray.kill(actor)
        ray.util.remove_placement_group(pool.pgs[0])


def sequences(vocabulary: int = 41, seed: int = 7, count: int = 8) -> dict[str, torch.Tensor]:
    """Right-padded answers of several lengths to left-padded prompts, as verl's trainer holds them.

    Every `count` / 2 sequences are of 12, 7, 9 and so on tokens; the first answer has a hole in its mask, as a tool's
    result makes one. `old_log_probs` are no policy's: a test replaces them by those of the model, moved.
    """
    draw = torch.Generator().manual_seed(seed)
    prompt, answer = 5, 12
    prompts = torch.randint(3, vocabulary, (count, prompt), generator=draw)
    responses = torch.randint(3, vocabulary, (count, answer), generator=draw)
    lengths = torch.tensor([12, 7, 9, 12, 3, 10, 5, 11]).repeat(count)[:count]
    prompt_lengths = torch.tensor([5, 4, 3, 5, 2, 5, 1, 4]).repeat(count)[:count]
    asked = torch.arange(prompt).flip(0)[None] < prompt_lengths[:, None]
    answered = torch.arange(answer)[None] < lengths[:, None]
    mask = torch.cat([asked, answered], 1).long()
    response_mask = answered.long()
    response_mask[0, 3:6] = 0
    advantages = torch.randn(count, 1, generator=draw).expand(count, answer) - 0.2
    old = -3 + torch.randn(count, answer, generator=draw)
    return {
        "input_ids": torch.cat([prompts, responses], 1),
        "prompts": prompts,
        "responses": responses,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "advantages": advantages.contiguous(),
        "old_log_probs": old,
        "rollout_log_probs": old.clone(),
    }


def log_probs(model: Path, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model in that folder gives each token of the answers, at temperature 1. [sequences, answer]"""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    first = rows["prompts"].shape[1] - 1
    with torch.no_grad():
        logits = policy(
            rows["input_ids"], attention_mask=rows["attention_mask"], position_ids=rows["position_ids"]
        ).logits[:, first:-1]
    return logits.log_softmax(-1).gather(-1, rows["responses"][..., None])[..., 0]


def update(group, rows: Mapping[str, torch.Tensor], *, temperature: float = 1.0, epochs: int = 1, **non_tensor) -> dict:
    """What `update_actor` says of one optimizer update for each epoch, over all rows at once.

    Args:
        group: Of `worker_group`.
        rows: Of `sequences`, or with more columns; every rank takes its own next rows.
        temperature: Of sampling.
        epochs: Updates with these rows.
        non_tensor: More of what verl's trainer gives a batch, as `micro_batch_size_per_gpu=1`; it wins.

    Returns:
        Metric -> a list with what verl makes of it for each update (`Metric`), or of all micro-batches and ranks.
    """
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    data = DataProto.from_single_dict(
        {name: tensor.clone() for name, tensor in rows.items()}, meta_info={"temperature": temperature}
    )
    batch = left_right_2_no_padding(data.to_tensordict())
    count = len(rows["input_ids"])
    settings = {
        "global_batch_size": count,
        "mini_batch_size": count,
        "epochs": epochs,
        "seed": 42,
        "dataloader_kwargs": {"shuffle": False},
        "calculate_entropy": False,
        "distillation_use_topk": False,
    }
    tu.assign_non_tensor(batch, **(settings | non_tensor))
    output = group.update_actor(batch)
    if not isinstance(output, TensorDict):
        output = output.get()
    return dict(tu.get(output, "metrics"))


def weights(group, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a group holds, whole, in float32, by the names of transformers.

    Args:
        group: Of `worker_group`.
        folder: Where it saves a checkpoint of its own for this.
    """
    group.save_checkpoint(str(folder), None, 0)
    return checkpoint_weights(folder)


def checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's folder `actor`, whole, from the parts of its FSDP2 ranks.

    verl's own tool, `python -m verl.model_merger merge`, rounds them to bfloat16.
    """
    parts = [
        torch.load(file, weights_only=False)
        for file in sorted(folder.glob("model_world_size_*_rank_*.pt"), key=lambda file: int(file.stem.split("_")[-1]))
    ]
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """A whole tensor from the parts that the ranks of one dimension hold."""
    if not hasattr(parts[0], "placements"):
        return parts[0]
    (placement,) = parts[0].placements
    local = [part.to_local() for part in parts]
    return torch.cat(local, placement.dim) if placement.is_shard() else local[0]
