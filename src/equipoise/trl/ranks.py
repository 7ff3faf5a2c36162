"""The ranks of an accelerate run, as steering needs them."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from equipoise.steering.ranks import Ranks


def accelerator_ranks(accelerator: Accelerator) -> Ranks:
    """All processes of a run."""

    def all_reduce(vector: Tensor) -> Tensor:
        return cast(Tensor, accelerator.reduce(vector, reduction="sum"))

    def all_gather(rows: Tensor) -> list[Tensor]:
        return gathered_rows(rows, accelerator)

    return Ranks(all_reduce, all_gather, accelerator.process_index)


def gathered_rows(rows: Tensor, accelerator: Any) -> list[Tensor]:
    """The rows [n, …] of every process, in order of rank; processes may have different numbers of them."""
    if accelerator.num_processes == 1:
        return [rows]
    sizes = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    ranks = padded.split(max(sizes)) if max(sizes) else [padded] * len(sizes)
    return [rank[:size] for rank, size in zip(ranks, sizes, strict=True)]
