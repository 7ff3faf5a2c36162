"""The ranks of an accelerate run, as steering needs them."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from trl.distributed import DistributedBackend

from equipoise import plain_data
from equipoise.models.evaluation_ranks import EvaluationRanks
from equipoise.steering.ranks import Ranks


def accelerator_ranks(accelerator: Accelerator) -> Ranks:
    """All processes of a run."""

    def all_reduce(vector: Tensor) -> Tensor:
        return cast(Tensor, accelerator.reduce(vector, reduction="sum"))

    def all_gather(rows: Tensor) -> list[Tensor]:
        return gathered_rows(rows, accelerator)

    return Ranks(all_reduce, all_gather, accelerator.process_index)


def is_sharded(accelerator: Any) -> bool:
    """Whether no process holds the whole model, so that all have to make a forward pass for one to make it."""
    backend = DistributedBackend(accelerator)
    return backend.is_fsdp or backend.is_zero3


def shares_engine(trainer: Any) -> bool:
    """Whether one vLLM engine serves several processes: it wants as many prompts from each, all at the same time."""
    return trainer.use_vllm and (trainer.vllm_mode == "server" or trainer.args.vllm_tensor_parallel_size > 1)


def evaluation_ranks(accelerator: Any) -> EvaluationRanks:
    """All processes of a run, sharing an evaluation."""
    if accelerator.num_processes == 1:
        return EvaluationRanks()
    return EvaluationRanks(
        accelerator.process_index,
        accelerator.num_processes,
        lambda value: gathered_data(value, accelerator),
        in_step=is_sharded(accelerator),
        own_seeds=True,
    )


def gathered_data(value: Any, accelerator: Any) -> list[Any]:
    """The plain data (`equipoise.plain_data`) of every process, in order of rank."""
    line = torch.frombuffer(bytearray(plain_data.written(value).encode()), dtype=torch.uint8)
    rows = gathered_rows(line.to(accelerator.device), accelerator)
    return [plain_data.read(row.cpu().numpy().tobytes()) for row in rows]


def gathered_rows(rows: Tensor, accelerator: Any) -> list[Tensor]:
    """The rows [n, …] of every process, in order of rank; processes may have different numbers of them."""
    if accelerator.num_processes == 1:
        return [rows]
    sizes = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    ranks = padded.split(max(sizes)) if max(sizes) else [padded] * len(sizes)
    return [rank[:size] for rank, size in zip(ranks, sizes, strict=True)]
