"""The statistics head beside Liger, TRL and verl: time and memory, forward and backward, trained and frozen.

All contenders of a shape run interleaved on the same inputs, in an order that is drawn anew each round; a round of one
is the median of two calls after one that warms the card up, by CUDA events. Rounds go on until the time of the shape
is used up. Memory is the peak of torch's allocator above what stood at the start, returned gradients left out.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from token_statistics_contenders import CONTENDERS, FLOOR, NEEDS, Problem

from on_a_gpu_parts import LIGER, OURS, spread

SHAPES = [(8192, 4096, 151_936), (8192, 896, 151_936), (8192, 576, 49_152)]
SMALL_SHAPES = [(64, 32, 512), (64, 16, 257)]
TRL_CHUNKED = "TRL, ChunkedLogProb, its optional sums"
TRL_WHOLE, VERL_WHOLE = "TRL, selective_log_softmax_and_entropy", "torch, as verl's logprobs and entropy"
ABSENT = "is not installed"
MODES = ("trained", "frozen", "forward")
WARM_UP, BURST, LEAST_ROUNDS, MOST_ROUNDS = 1, 2, 4, 60


class Task(Problem):
    """A problem with the LM head trained or frozen, or whose forward pass alone is wanted."""

    def in_mode(self, mode: str) -> "Task":
        """The same inputs in another mode."""
        task = copy.copy(self)
        task.weight = self.weight if mode == "trained" else self.weight.detach()
        task.hidden = self.hidden.detach() if mode == "forward" else self.hidden
        return task

    def gradients(self, logprob, *inputs):
        wanted = [x for x in inputs if x.requires_grad]
        if not wanted:
            self.logprob = logprob.detach()
            return ()
        return super().gradients(logprob, *wanted)


def trl_whole(problem):
    """TRL's path without its fused head: all logits, then one pass over them."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    logits = (problem.hidden @ problem.weight.t())[None]
    logprob, _ = selective_log_softmax_and_entropy(logits, problem.targets[None], entropy_requires_grad=False)
    return problem.gradients(logprob[0], problem.hidden, problem.weight)


def verl_whole(problem):
    """What verl does without its fused kernels, written with torch: log-prob and entropy of logits in float32."""
    logits = (problem.hidden @ problem.weight.t()).float()
    logprob = -torch.nn.functional.cross_entropy(logits, problem.targets, reduction="none")
    with torch.no_grad():
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    return (*problem.gradients(logprob, problem.hidden, problem.weight), entropy)


ENTRANTS: dict[str, Callable[[Any], Any]] = {
    name: CONTENDERS[name]
    for name in (
        OURS, LIGER, TRL_CHUNKED, "TRL, ChunkedLogProb, log-prob alone", "verl, linear_cross_entropy kernel",
        "verl, FusedLinearForPPO",
    )
} | {TRL_WHOLE: trl_whole, VERL_WHOLE: verl_whole}  # fmt: skip


def measure(figures, plan) -> None:
    """All shapes, each with its share of the time that is left."""
    shapes = SMALL_SHAPES if plan.small else SHAPES
    dtype = torch.bfloat16 if plan.device == "cuda" else torch.float32
    for number, shape in enumerate(shapes):
        left = plan.end - time.monotonic()
        measure_shape(figures, shape, dtype, plan, time.monotonic() + left / (len(shapes) - number))
        if plan.device == "cuda":
            torch.cuda.empty_cache()


def measure_shape(figures, shape, dtype, plan, end: float) -> None:
    problem = Task(shape, plan.device, dtype)
    runs = {(name, mode): call(name, problem.in_mode(mode)) for mode in MODES for name in ENTRANTS}
    runs[FLOOR, "trained"] = lambda: CONTENDERS[FLOOR](problem)
    memory, missing = first_calls(runs, problem)
    for (name, mode), reason in missing.items():
        where = "" if reason.endswith(ABSENT) else f", {mode}, at {'×'.join(map(str, shape))}"
        figures.note(f"{name}{where}: {reason}")
    before, rounds = figures.rows, {key: [] for key in memory}
    for number in range(3 if plan.small else MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() > end:
            break
        for key in random.Random(number).sample(list(rounds), len(rounds)):
            rounds[key].append(milliseconds(runs[key], problem.hidden.is_cuda))
        # Kept at once: a part that is cut has the rounds before.
        figures.replace(before + rows_of(shape, dtype, rounds, memory))


def call(name: str, problem) -> Callable[[], Any]:
    def run():
        with torch.set_grad_enabled(problem.hidden.requires_grad):
            return ENTRANTS[name](problem)

    return run


def first_calls(runs, problem) -> tuple[dict, dict]:
    """Memory in MB of those that run, and why others do not. Kernels are compiled by the first of two calls."""
    memory, missing = {}, {}
    for key, run in runs.items():
        try:
            run()
            memory[key] = scratch(run) if problem.hidden.is_cuda else None
        except Exception as error:  # code of others: whatever stops it, the rest goes on
            missing[key] = reason(key[0], error)
            del error
            if problem.hidden.is_cuda:
                torch.cuda.empty_cache()
    return memory, missing


def reason(name: str, error: Exception) -> str:
    package = next((NEEDS[word] for word in NEEDS if name.startswith(word)), None)
    if package and isinstance(error, ModuleNotFoundError) and package in str(error):
        return f"{package} {ABSENT}"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else repr(error)


def scratch(run) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = run()
    torch.cuda.synchronize()
    returned = sum(x.nbytes for x in out if isinstance(x, torch.Tensor))
    return round((torch.cuda.max_memory_allocated() - before - returned) / 1e6, 1)


def milliseconds(run, on_gpu: bool) -> float:
    """Median of the calls after those that warm up."""
    taken = []
    for number in range(WARM_UP + BURST):
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
            one = start.elapsed_time(end)
        else:
            clock = time.perf_counter()
            run()
            one = 1e3 * (time.perf_counter() - clock)
        if number >= WARM_UP:
            taken.append(one)
    return statistics.median(taken)


def rows_of(shape, dtype, rounds, memory) -> list[dict[str, Any]]:
    rows, tokens_width_vocabulary = [], dict(zip(("tokens", "hidden", "vocabulary"), shape, strict=True))
    for (name, mode), taken in rounds.items():
        own = rounds.get((OURS, mode))
        rows.append({
            **tokens_width_vocabulary,
            "dtype": str(dtype).removeprefix("torch."),
            "mode": mode,
            "contender": name,
            "milliseconds": spread.of(taken),
            "to_equipoise": spread.of_ratios(taken, own) if own else None,
            "scratch_mb": memory[name, mode],
            "rounds": len(taken),
        })  # fmt: skip
    return rows
