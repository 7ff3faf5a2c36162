"""The data-parallel ranks of a verl worker, as steering needs them."""

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.steering import Ranks


def group_ranks(group: dist.ProcessGroup) -> Ranks:
    """The ranks of a process group."""
    size = dist.get_world_size(group)

    def all_reduce(vector: Tensor) -> Tensor:
        total = vector.clone()
        dist.all_reduce(total, group=group)
        return total

    def all_gather(rows: Tensor) -> list[Tensor]:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=group)
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(gathered, padded, group=group)
        return [part[:count] for part, count in zip(gathered, sizes, strict=True)]

    return Ranks(all_reduce, all_gather, dist.get_rank(group))
