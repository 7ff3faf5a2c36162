"""The statistics head on a model that DeepSpeed ZeRO-3 has partitioned over two CPU processes, and the same whole.

`zero3_head_run.py FOLDER`, launched as two processes: writes what each found, as `sharded_head_run.py` does.
"""

import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from sharded_head_run import NAMES, batch, model

from equipoise.models.statistics_head import add_statistics_head

CASES = {
    "tied": {"tied": True, "bias": False},
    "untied": {"tied": False, "bias": False},
    "bias": {"tied": False, "bias": True},
}
SETTINGS = {
    "train_micro_batch_size_per_gpu": 3,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def found(made, called, backward, gradient_of) -> dict[str, torch.Tensor]:
    ids, labels = batch(dist.get_rank())
    output = called(input_ids=ids, labels=labels, fused_lm_head=True)
    backward(-output.log_probs.sum() + 0.3 * output.entropy.square().sum())
    values = {name: output[name].detach() for name in NAMES}
    return values | {f"grad {name}": gradient_of(p).float().clone() for name, p in made.named_parameters()}


def compared(settings: dict) -> dict:
    plain, sharded = model(**settings), model(**settings)
    for made in (plain, sharded):
        add_statistics_head(made, temperature=0.7)
    expected = found(plain, plain, torch.Tensor.backward, lambda p: p.grad)
    for name, value in expected.items():
        if name.startswith("grad"):  # DeepSpeed means the gradients of the ranks
            dist.all_reduce(value)
            value /= 2
    still = torch.optim.SGD(sharded.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=sharded, optimizer=still, config=SETTINGS)
    inside = sharded.lm_head.weight.numel() == 0
    times = []
    for _ in range(3):
        times.append(found(sharded, engine, engine.backward, safe_get_full_grad))
        engine.step()
        with torch.no_grad():  # in between, as for sampling and for old log-probs
            ids, labels = batch(dist.get_rank())
            engine(input_ids=ids, labels=labels, fused_lm_head=True)
            engine(input_ids=ids)
    return {"inside": inside, "plain": expected, "sharded": times}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    deepspeed.init_distributed("gloo")
    ends = {case: compared(settings) for case, settings in CASES.items()}
    torch.save(ends, folder / f"ends-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
