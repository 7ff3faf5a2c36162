"""The data-parallel ranks of a verl worker, as steering needs them."""

import torch
import torch.distributed as dist
from torch import Tensor
from verl.utils.device import get_device_id

from equipoise.steering import Ranks


def group_ranks(group: dist.ProcessGroup) -> Ranks:
    """The ranks of a process group.

    What is reduced or gathered goes over the accelerator, wherever it lies: a group may know no other way.
    """
    size, device = dist.get_world_size(group), get_device_id()

    def all_reduce(vector: Tensor) -> Tensor:
        total = vector.detach().to(device, copy=True)
        dist.all_reduce(total, group=group)
        return total.to(vector.device)

    def all_gather(rows: Tensor) -> list[Tensor]:
        counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=device), group=group)
        sizes = [int(count) for count in counts]
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=device)
        padded[: len(rows)] = rows.detach()
        gathered = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(gathered, padded, group=group)
        return [part[:count].to(rows.device) for part, count in zip(gathered, sizes, strict=True)]

    return Ranks(all_reduce, all_gather, dist.get_rank(group))
