"""Statistics of an LM head split over processes: the numbers and gradients of the whole head, on every rank."""

import inspect
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from core_reference import head_logits, largest_error, textbook_statistics

from equipoise import vocabulary_parallel_token_statistics
from equipoise.statistics import walk

VOCABULARY, WIDTH, SHAPE = 23, 5, (3, 4)
SHARDS = {2: (9, 14), 3: (1, 15, 7)}
CASES = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap and bias": {"bias": True, "softcap": 2.5, "temperature": 1.7},
    "a shard without any token": {"bias": True, "masked": True},
    "float32": {"dtype": torch.float32, "bias": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "logprob only": {"entropy": False},
    "frozen head": {"frozen": True},
    "ranks in another order": {"reverse": True},
    "an empty shard": {"empty": True},
}


def problem(case, sizes, dtype=None):
    """Whole tensors, the same in every process: hidden, weight, bias or None, targets, upstream gradients."""
    generator = torch.Generator().manual_seed(0)
    dtype = dtype or case.get("dtype", torch.float64)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.get("dtype", torch.float64)).to(dtype)
        for shape in ((*SHAPE, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    targets = torch.randint(VOCABULARY, SHAPE, generator=generator)
    targets[0, :3] = torch.tensor([0, sizes[0], VOCABULARY - 1])  # at the borders of shards
    upstream = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    if case.get("masked"):
        start, stop = spans(sizes, case)[-1]
        bias[start:stop] = -math.inf
        targets %= sizes[0]
    return hidden, weight, bias if case.get("bias") else None, targets, upstream


def spans(sizes, case):
    """[start, stop) of each rank."""
    if case.get("empty"):
        sizes = (*sizes[:-2], sum(sizes[-2:]), 0)
    stops = torch.tensor(sizes).cumsum(0).tolist()
    result = [(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    return result[::-1] if case.get("reverse") else result


def settings_of(case):
    return {name: case[name] for name in ("temperature", "softcap") if name in case}


def backward(statistics, case, upstream):
    terms = (statistics.logprob, statistics.entropy)[: 1 if case.get("entropy") is False else 2]
    torch.autograd.backward(terms, tuple(upstream[: len(terms)].to(terms[0].dtype)))


def of_this_rank(case, sizes, group=None):
    """Values and gradients as one rank sees them."""
    start, stop = spans(sizes, case)[dist.get_rank(group)]
    hidden, weight, bias, targets, upstream = problem(case, sizes)
    frozen = case.get("frozen", False)
    leaves = [hidden.requires_grad_(), weight[start:stop].clone().requires_grad_(not frozen)]
    shard_bias = None if bias is None else bias[start:stop].clone().requires_grad_()
    out = vocabulary_parallel_token_statistics(
        *leaves, targets, vocabulary_start=start, group=group, bias=shard_bias, **settings_of(case)
    )
    backward(out, case, upstream)
    return {
        "values": [x.detach() for x in out],
        "requires_grad": [x.requires_grad for x in out],
        "hidden": hidden.grad,
        "weight": leaves[1].grad,
        "bias": None if shard_bias is None else shard_bias.grad,
    }


def message_of(**changes):
    """What a call with shards of 5 per rank says when it refuses; every rank must be told, or the others would hang."""
    inputs = {
        "hidden": torch.ones(2, WIDTH),
        "weight_shard": torch.ones(5, WIDTH),
        "targets": torch.tensor([0, 4]),
        "vocabulary_start": 5 * dist.get_rank(),
        **changes,
    }
    try:
        vocabulary_parallel_token_statistics(**inputs)
    except ValueError as error:
        return str(error)
    return "nothing refused"


def refusals():
    rank, world = dist.get_rank(), dist.get_world_size()
    return {
        "overlap": message_of(vocabulary_start=4 * rank),
        "gap": message_of(vocabulary_start=6 * rank),
        "twice": message_of(vocabulary_start=0),
        "start": message_of(vocabulary_start=5 * rank + 1),
        "target": message_of(targets=torch.tensor([0, 5 * world])),
        "negative target": message_of(targets=torch.tensor([-1, 3])),
        "no token": message_of(bias=torch.full((5,), -math.inf)),
        "none": message_of(),
    }


def collectives():
    """Names of the collectives of a forward and of a backward pass."""
    called = []
    originals = {name: getattr(dist, name) for name in ("all_gather_into_tensor", "all_reduce")}
    for name, original in originals.items():
        setattr(dist, name, lambda *a, _name=name, _call=original, **k: (called.append(_name), _call(*a, **k))[1])
    of_this_rank({}, SHARDS[dist.get_world_size()])
    for name, original in originals.items():
        setattr(dist, name, original)
    return called


def work(rank, world, folder):
    """What every process does: all cases one after the other, since starting processes is what takes time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    walk.TILE = 4  # several tiles in each shard
    results = {name: of_this_rank(case, SHARDS[world]) for name, case in CASES.items()}
    first_and_last = dist.new_group([0, world - 1])
    if rank in (0, world - 1):
        results["a group"] = of_this_rank({}, SHARDS[2], first_and_last)
    torch.save({"cases": results, "refusals": refusals(), "collectives": collectives()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def reference(case, sizes, dtype):
    """Values and gradients by the textbook sums on the whole head, in `dtype`."""
    hidden, weight, bias, targets, upstream = problem(case, sizes, dtype)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
    logits = head_logits(hidden, weight, bias, case.get("softcap"))
    out = textbook_statistics(logits, targets, case.get("temperature", 1.0))
    backward(out, case, upstream)
    values = [x.detach() for x in out]
    return [*values, *(x.grad.nan_to_num(0.0) for x in leaves)]


def assembled(ranks, name, case, sizes):
    """The values and gradients of all ranks, in the order of `reference`."""
    found = [rank["cases"][name] for rank in ranks]
    in_order = [x for _, x in sorted(zip(spans(sizes, case), found, strict=True), key=lambda pair: pair[0])]
    parts = [torch.cat([x[key] for x in in_order]) for key in ("weight", "bias") if found[0][key] is not None]
    return [*found[0]["values"], found[0]["hidden"], *parts]


@pytest.mark.parametrize("name", [name for name in CASES if "dtype" not in CASES[name]])
def test_equals_the_whole_head_in_one_process(ranks, name):
    case, sizes = CASES[name], SHARDS[len(ranks)]
    expected = reference(case, sizes, torch.float64)
    if case.get("frozen"):
        del expected[5]  # of the weight
    for actual, e in zip(assembled(ranks, name, case, sizes), expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=1e-12, atol=1e-12)


def test_a_group_of_some_ranks_works_by_itself(ranks):
    members = [ranks[0], ranks[-1]]
    expected = reference({}, SHARDS[2], torch.float64)
    for actual, e in zip(assembled(members, "a group", {}, SHARDS[2]), expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=1e-12, atol=1e-12)


def test_float32_error_at_most_twice_that_of_plain_torch(ranks):
    case, sizes = CASES["float32"], SHARDS[len(ranks)]
    exact, plain = (reference(case, sizes, dtype) for dtype in (torch.float64, torch.float32))
    for a, p, e in zip(assembled(ranks, "float32", case, sizes), plain, exact, strict=True):
        assert largest_error(a, e) <= 2 * largest_error(p, e)


def test_half_precision_is_summed_in_float32_and_gradients_are_rounded_once(ranks):
    case, sizes = CASES["bfloat16"], SHARDS[len(ranks)]
    exact = reference(case, sizes, torch.float64)
    actual = assembled(ranks, "bfloat16", case, sizes)
    assert [x.dtype for x in actual] == [torch.float32] * 4 + [torch.bfloat16] * 2
    for a, e in zip(actual, exact, strict=True):
        rounding = torch.finfo(a.dtype).eps / 2 * 1.01
        torch.testing.assert_close(a.double(), e, rtol=max(rounding, 1e-5), atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_same_numbers_to_the_last_bit(ranks, name):
    first, *others = [rank["cases"][name] for rank in ranks]
    for other in others:
        for a, b in zip((*first["values"], first["hidden"]), (*other["values"], other["hidden"]), strict=True):
            assert torch.equal(a, b)


def test_tendency_and_correction_are_detached(ranks):
    assert {tuple(rank["cases"]["plain"]["requires_grad"]) for rank in ranks} == {(True, True, False, False)}


def test_one_collective_forward_and_one_backward(ranks):
    assert [rank["collectives"] for rank in ranks] == [["all_gather_into_tensor", "all_reduce"]] * len(ranks)


def shards(starts):
    return str([[start, start + 5] for start in starts])


def test_every_rank_refuses_shards_that_do_not_cover_a_vocabulary(ranks):
    rule = "shards [start, stop) must cover a vocabulary from 0 on without gap or overlap, got "
    world = range(len(ranks))
    for rank in ranks:
        found = rank["refusals"]
        assert found["overlap"] == rule + shards(4 * r for r in world)
        assert found["gap"] == rule + shards(6 * r for r in world)
        assert found["twice"] == rule + shards(0 for _ in world)
        assert found["start"] == rule + shards(5 * r + 1 for r in world)
        assert found["none"] == "nothing refused"


def test_every_rank_refuses_a_target_in_no_shard_and_a_row_without_tokens(ranks):
    size = 5 * len(ranks)
    for rank in ranks:
        found = rank["refusals"]
        assert found["target"] == f"targets must be in [0, {size}), got values from 0 to {size}"
        assert found["negative target"] == f"targets must be in [0, {size}), got values from -1 to 3"
        assert found["no token"] == "every row of logits needs an entry above -inf, row [0] has none"


def refused(match, **changes):
    inputs = {
        "hidden": torch.ones(2, WIDTH),
        "weight_shard": torch.ones(5, WIDTH),
        "targets": torch.tensor([0, 4]),
        "vocabulary_start": 0,
        **changes,
    }
    with pytest.raises(ValueError, match=match):
        # Unwrapped: under the import hook of these tests the shape annotations would refuse some of these first.
        inspect.unwrap(vocabulary_parallel_token_statistics)(**inputs)


def test_refuses_before_any_collective_what_one_rank_can_see():
    refused(r"hidden must be .* weight \(5, 4\)", weight_shard=torch.ones(5, 4))
    refused(r"bias must be \[5\] like the vocabulary, got \(4,\)", bias=torch.ones(4))
    refused(r"one device, got \['cpu', 'meta'\]", weight_shard=torch.ones(5, WIDTH, device="meta"))
    refused("softcap must be > 0 and finite, or None, got softcap=-1", softcap=-1.0)
    refused("temperature must be > 0 and finite, got temperature=0", temperature=0.0)
    refused("vocabulary_start must be >= 0, got vocabulary_start=-5", vocabulary_start=-5)
    refused("need torch.distributed.init_process_group to be called first")
