"""The statistics head on a model that FSDP2 has sharded over two CPU processes, and the same unsharded.

`sharded_head_run.py FOLDER`, launched as two processes: writes what each found.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trainer_setup import tiny_model

from equipoise.models.statistics_head import add_statistics_head

NAMES = ("log_probs", "entropy", "tendency", "correction")


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a rank; the ranks score different numbers of tokens."""
    ids = torch.randint(2, 17, (3, 9), generator=torch.Generator().manual_seed(rank))
    labels = ids.clone()
    labels[:, : 2 + 3 * rank] = -100
    return ids, labels


def model(tied: bool, bias: bool) -> nn.Module:
    """A small model with two layers, and a head with a bias where asked for."""
    made = tiny_model(num_hidden_layers=2, tie_word_embeddings=tied)
    if bias:
        head = nn.Linear(16, 17)
        torch.manual_seed(1)
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
        made.lm_head = head
    return made


def shard(made, how: str) -> None:
    """Layer by layer, then the rest: in the root, with the head a unit of its own, or as accelerate 1.15 does it."""
    for layer in made.model.layers:
        fully_shard(layer)
    tied = made.config.tie_word_embeddings
    if how == "head alone":
        fully_shard(made.lm_head)
    elif how == "accelerate":
        if not tied:
            fully_shard(made.model.embed_tokens)
        tail = [made.model.norm, *([made.model.embed_tokens] if tied else []), made.lm_head]
        fully_shard(tail, reshard_after_forward=False)
    fully_shard(made)


def found(made, rank: int) -> dict[str, torch.Tensor]:
    """Statistics of this rank's batch, and the gradients of a loss on log-probs and entropies."""
    ids, labels = batch(rank)
    output = made(input_ids=ids, labels=labels, fused_lm_head=True)
    (-output.log_probs.sum() + 0.3 * output.entropy.square().sum()).backward()
    values = {name: output[name].detach() for name in NAMES}
    for name, p in made.named_parameters():
        assert p.grad is not None, name
        values[f"grad {name}"] = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    made.zero_grad()  # now, while the parameters are sharded again, as an optimizer would
    return values


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    ends = {}
    for case, (how, settings) in {
        "tied": ("root", {"tied": True, "bias": False}),
        "untied": ("root", {"tied": False, "bias": False}),
        "bias": ("root", {"tied": False, "bias": True}),
        "head alone": ("head alone", {"tied": False, "bias": True}),
        "accelerate tied": ("accelerate", {"tied": True, "bias": False}),
        "accelerate untied": ("accelerate", {"tied": False, "bias": True}),
    }.items():
        plain = model(**settings)
        sharded = model(**settings)
        for made in (plain, sharded):
            add_statistics_head(made, temperature=0.7)
        shard(sharded, how)
        inside = isinstance(sharded.lm_head.weight, DTensor)
        expected = found(plain, rank)
        for name, value in expected.items():
            if name.startswith("grad"):  # FSDP means the gradients of the ranks
                dist.all_reduce(value)
                value /= 2
        # A second and a third time: units remember which of their modules have run. In between the model is called
        # as it is for sampling, and without gradients as for old log-probs.
        first = found(sharded, rank)
        second = found(sharded, rank)
        with torch.no_grad():
            ids, labels = batch(rank)
            sharded(input_ids=ids, labels=labels, fused_lm_head=True)
            sharded(input_ids=ids)
        third = found(sharded, rank)
        ends[case] = {"inside": inside, "plain": expected, "sharded": [first, second, third]}
    torch.save(ends, folder / f"ends-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
