"""Every rank generates in every turn that one of them still has, where none can generate alone."""

from types import SimpleNamespace

import pytest
import torch
from thread_ranks import on_threads

from equipoise.trl.turns import Turns

ONE_ENGINE = {"use_vllm": True, "vllm_mode": "server"}
NUMBERS = [[3, 1], [], [2, 2, 1]]
"""Episodes with a turn to come, turn by turn, of each of three ranks."""


def trainer(rank, gather, *, sharded=False, parallel=1, **settings):
    plugin = SimpleNamespace(fsdp_version=2) if sharded else None
    accelerator = SimpleNamespace(
        num_processes=3,
        process_index=rank,
        device=torch.device("cpu"),
        state=SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=plugin),
        gather=lambda tensor: torch.cat(gather(tensor)),
    )
    defaults = {"use_vllm": False, "vllm_mode": "colocate"}
    tensor_parallel = SimpleNamespace(vllm_tensor_parallel_size=parallel)
    return SimpleNamespace(accelerator=accelerator, args=tensor_parallel, **(defaults | settings))


def played(rank, gather, **settings):
    """How many prompts each call of this rank had; the samples are the prompts."""
    turns, calls = Turns(trainer(rank, gather, **settings)), []

    def sample(prompt_ids, *args, **kwargs):
        if turns.in_step:
            assert len(set(gather("generates"))) == 1
        calls.append(len(prompt_ids))
        return [list(ids) for ids in prompt_ids], [[-1.0]] * len(prompt_ids)

    assert turns.sample(sample, [[1], [2]], None, {}, 2) == ([[1], [2]], [[-1.0], [-1.0]])  # the first turn of all
    with turns.loop(sample, [9]):
        for number in NUMBERS[rank]:
            prompts = [[10 * rank + n] for n in range(number)]
            assert turns.sample(sample, prompts, None, {}, num_generations=1) == (prompts, [[-1.0]] * number)
    assert turns.sample(sample, [[7]], None, {}, 2)[0] == [[7]], "and the next rollout"
    return calls


@pytest.mark.parametrize("settings", [ONE_ENGINE, {"use_vllm": True, "parallel": 3}], ids=["server", "parallel"])
def test_one_engine_is_given_as_many_prompts_by_each_rank(settings):
    assert on_threads(3, lambda *rank: played(*rank, **settings)) == [[2, 3, 2, 1, 1]] * 3


@pytest.mark.parametrize("settings", [{}, {"use_vllm": True}])
def test_with_shards_each_rank_generates_as_often_as_any(settings):
    ends = on_threads(3, lambda *rank: played(*rank, sharded=True, **settings))
    assert ends == [[2, 3, 1, 1, 1], [2, 1, 1, 1, 1], [2, 2, 2, 1, 1]]


def test_whole_models_wait_for_nobody():
    assert on_threads(3, played) == [[2, 3, 1, 1], [2, 1], [2, 2, 2, 1, 1]]


def test_the_turns_of_others_leave_torchs_generator_as_it_was():
    def last(rank, gather):
        turns = Turns(trainer(rank, gather, sharded=True))

        def sample(prompt_ids, *args, **kwargs):
            if rank == 0:
                torch.rand(3)
            return prompt_ids, None

        before = torch.get_rng_state()
        with turns.loop(sample, [9]):
            for _ in range(rank):
                turns.sample(sample, [[1]])
        return torch.equal(torch.get_rng_state(), before)

    assert on_threads(3, last) == [True] * 3
