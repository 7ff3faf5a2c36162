"""Log-prob and its gradient from hidden states and an LM head: ours beside the bare matrix products and other code.

    OMP_NUM_THREADS=1 python benchmarks/token_statistics.py --shape 2048 896 151936 --repetitions 5

All contenders run interleaved in one process on the same inputs; on a CPU a ratio compares neighbours in time, so that
other load on the machine cancels, and where processes outnumber cores, processor time is the steadier measure. A GPU
slows down when it runs hot, so that who runs after an idle moment is flattered: there a repetition is the median of a
burst of calls after two that warm it up, and the order is drawn anew each time. The floor is the three matrix products
that logits, dh and dW need (h W^T, dz W, dz^T h): on a CPU in vocabulary tiles with preallocated memory, on a GPU
whole, the fastest way we know to do nothing else. Scratch memory on a CPU is sampled every 2 ms as resident size in a
process of its own per contender (it sees what any library allocates), less what is returned; on a GPU it is the peak of
torch's allocator. Kernel tests run first: a benchmark of wrong numbers is refused.
Writes results/token_statistics_<device>.csv, in which rows of other contenders, shapes, types and devices stay.
"""

import argparse
import csv
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from equipoise import linear_token_statistics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ["test_statistics.py", "test_linear_statistics.py", "test_linear_paths.py"]
CUDA_TESTS = ["test_triton_rows.py", "test_on_a_gpu.py"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Problem:
    """Inputs of a realistic scale: logits of standard deviation 2, advantages of both signs."""

    def __init__(self, shape, device, dtype):
        num_tokens, width, vocabulary = shape
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(num_tokens, width, generator=generator)
        weight = torch.randn(vocabulary, width, generator=generator).mul_(2 / width**0.5)
        self.hidden, self.weight = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
        self.targets = torch.randint(vocabulary, (num_tokens,), generator=generator).to(device)
        self.advantage = torch.randn(num_tokens, generator=generator).to(device)

    def gradients(self, logprob, *inputs):
        return torch.autograd.grad(logprob, inputs, self.advantage.to(logprob.dtype))


def floor(problem):
    """Three bare matrix products."""
    h, w = problem.hidden.detach(), problem.weight.detach()
    if h.is_cuda:
        logits = torch.mm(h, w.t())
        return torch.mm(logits, w), torch.mm(logits.t(), h)
    tile = min(2048, max(256, 2**22 // len(h)), len(w))
    workspace, dh, dw = h.new_empty(len(h) * tile), torch.zeros_like(h), torch.empty_like(w)
    for start in range(0, len(w), tile):
        part = w[start : start + tile]
        logits = workspace[: len(h) * len(part)].view(len(h), len(part))
        torch.mm(h, part.t(), out=logits)
        dh.addmm_(logits, part)
        torch.mm(logits.t(), h, out=dw[start : start + len(part)])
    return dh, dw


@torch.no_grad()
def floor_of_forward(problem):
    """The bare matrix product of the logits."""
    torch.mm(problem.hidden, problem.weight.t())
    return ()


def ours(problem):
    out = linear_token_statistics(problem.hidden, problem.weight, problem.targets)
    return problem.gradients(out.logprob, problem.hidden, problem.weight)


def ours_with_entropy_gradient(problem):
    out = linear_token_statistics(problem.hidden, problem.weight, problem.targets)
    return problem.gradients(out.logprob + out.entropy, problem.hidden, problem.weight)


def ours_frozen_head(problem):
    out = linear_token_statistics(problem.hidden, problem.weight.detach(), problem.targets)
    return problem.gradients(out.logprob, problem.hidden)


@torch.no_grad()
def ours_forward_only(problem):
    return linear_token_statistics(problem.hidden, problem.weight, problem.targets)


def naive(problem):
    logits = (problem.hidden @ problem.weight.t()).float()
    log_p = logits.log_softmax(-1)
    with torch.no_grad():
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        p.square_()
        moments = p.sum(-1), (p * log_p).sum(-1)
    logprob = log_p.gather(-1, problem.targets[:, None])[:, 0]
    return (*problem.gradients(logprob, problem.hidden, problem.weight), entropy, moments)


def torch_cross_entropy(problem):
    logits = (problem.hidden @ problem.weight.t()).float()
    logprob = -cross_entropy(logits, problem.targets, reduction="none")
    return problem.gradients(logprob, problem.hidden, problem.weight)


def torch_linear_cross_entropy(problem):
    loss = torch.nn.functional.linear_cross_entropy(problem.hidden, problem.weight, problem.targets, reduction="none")
    return problem.gradients(-loss, problem.hidden, problem.weight)


def torch_linear_cross_entropy_chunked(problem):
    # Its chunks prepare the gradient in the forward pass, which a loss per token does not allow: a mean, no advantages.
    options = torch.nn.LinearCrossEntropyOptions()
    loss = torch.nn.functional.linear_cross_entropy(problem.hidden, problem.weight, problem.targets, options=options)
    return torch.autograd.grad(loss, (problem.hidden, problem.weight))


def trl_chunked(problem):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    sums = ("entropy", "log_sum_sq_probs")
    args = (problem.hidden, problem.weight, None, problem.targets, 1.0, trl_chunk(problem), None, 1.0, sums)
    return problem.gradients(ChunkedLogProbFunction.apply(*args)[0], problem.hidden, problem.weight)


def trl_chunked_logprob_alone(problem):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    args = (problem.hidden, problem.weight, None, problem.targets, 1.0, trl_chunk(problem), None, 1.0, ())
    return problem.gradients(ChunkedLogProbFunction.apply(*args)[0], problem.hidden, problem.weight)


def trl_chunk(problem):
    """Vocabulary entries at a time as TRL's trainer chooses them."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    return min(_CHUNKED_LOGPROB_CHUNK_SIZE, len(problem.weight))


def liger(problem):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss = liger_fused_linear_cross_entropy(problem.hidden, problem.weight, problem.targets)
    return torch.autograd.grad(loss, (problem.hidden, problem.weight))


def liger_scaled(problem):
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    args = (problem.hidden, problem.weight, problem.targets, 1.0, -100, 1, True)
    nll, _entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(*args)
    return problem.gradients(-nll, problem.hidden, problem.weight)


@torch.no_grad()
def liger_scaled_forward_only(problem):
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    args = (problem.hidden, problem.weight, problem.targets, 1.0, -100, 1, True)
    return LigerFusedLinearScaledCrossEntropyFunction.apply(*args)


def verl(problem):
    without_package_code("verl", "verl.utils", "verl.utils.experimental")
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    logprob, _ = FusedLinearForPPO()(problem.hidden[None], problem.weight, problem.targets[None])
    return problem.gradients(logprob[0], problem.hidden, problem.weight)


def verl_kernel(problem):
    without_package_code("verl", "verl.utils", "verl.utils.kernel")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    logprob, _entropy = linear_cross_entropy(problem.hidden, problem.weight, problem.targets, 1.0)
    return problem.gradients(logprob, problem.hidden, problem.weight)


@torch.no_grad()
def verl_kernel_forward_only(problem):
    without_package_code("verl", "verl.utils", "verl.utils.kernel")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(problem.hidden, problem.weight, problem.targets, 1.0)


def without_package_code(*packages):
    """Let modules of these packages be imported without the packages' own code, which wants Ray and much else."""
    for name in packages:
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = spec.submodule_search_locations


CONTENDERS = {
    "three bare matrix products": floor,
    "the one of the logits": floor_of_forward,
    "equipoise": ours,
    "equipoise, entropy gradient too": ours_with_entropy_gradient,
    "equipoise, frozen head": ours_frozen_head,
    "equipoise, forward only": ours_forward_only,
    "torch, naive": naive,
    "torch, cross_entropy": torch_cross_entropy,
    "torch, linear_cross_entropy": torch_linear_cross_entropy,
    "torch, linear_cross_entropy chunked (mean)": torch_linear_cross_entropy_chunked,
    "TRL, ChunkedLogProb, its optional sums": trl_chunked,
    "TRL, ChunkedLogProb, log-prob alone": trl_chunked_logprob_alone,
    "Liger, fused linear cross entropy (mean)": liger,
    "Liger, fused linear scaled cross entropy": liger_scaled,
    "Liger, scaled, forward only": liger_scaled_forward_only,
    "verl, FusedLinearForPPO": verl,
    "verl, linear_cross_entropy kernel": verl_kernel,
    "verl, kernel, forward only": verl_kernel_forward_only,
}
WARM_UP, BURST = 2, 5
"""Calls of a repetition on a GPU: left out, and counted."""

NEEDS = {"TRL": "trl", "Liger": "liger_kernel", "verl": "verl"}
FLOOR = "three bare matrix products"
PACKAGES = ("torch", "triton", "trl", "liger-kernel", "nvidia-cutlass-dsl", "verl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[2048, 896, 151936], metavar=("N", "D", "V"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--leave-out", nargs="*", default=[], choices=list(CONTENDERS)[1:], metavar="CONTENDER")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the process of one contender
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(scratch_here(options)))
        return
    require_green_tests(options)
    problem = Problem(options.shape, options.device, DTYPES[options.dtype])
    times, missing = measured_times(problem, options)
    rows = [row_of(name, times, scratch_of(name, problem, options), options) for name in times]
    write(rows, options)
    report(rows, missing, options)


def require_green_tests(options) -> None:
    names = CUDA_TESTS if options.device.startswith("cuda") else TESTS
    tests = [str(ROOT / "tests" / "core" / name) for name in names]
    if subprocess.run([sys.executable, "-m", "pytest", "-x", *tests], cwd=ROOT).returncode:
        raise SystemExit("kernel tests are red: no benchmark of wrong numbers")


def measured_times(problem, options) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    missing, times = {}, {}
    small = Problem((8, options.shape[1], 16), options.device, DTYPES[options.dtype])
    for name, contender in CONTENDERS.items():
        if name in options.leave_out:
            continue
        try:  # the first call loads code and shows what cannot run
            contender(problem if problem.hidden.is_cuda else small)  # kernels are compiled for their sizes
            times[name] = []
        except (ImportError, AttributeError, RuntimeError, AssertionError, TypeError, ValueError) as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else repr(error)
    order = list(times)
    for repetition in range(options.repetitions):
        if problem.hidden.is_cuda:
            random.Random(repetition).shuffle(order)
        for name in order:
            times[name].append(seconds(CONTENDERS[name], problem))
    return times, missing


def seconds(contender, problem) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    if not problem.hidden.is_cuda:
        return seconds_of_one(contender, problem)
    burst = [seconds_of_one(contender, problem) for _ in range(WARM_UP + BURST)][WARM_UP:]
    return statistics.median(x[0] for x in burst), statistics.median(x[1] for x in burst)


def seconds_of_one(contender, problem) -> tuple[float, float]:
    synchronize(problem)
    start, processor_start = time.perf_counter(), time.process_time()
    contender(problem)
    synchronize(problem)
    return time.perf_counter() - start, time.process_time() - processor_start


def synchronize(problem) -> None:
    if problem.hidden.is_cuda:
        torch.cuda.synchronize()


def scratch_of(name: str, problem, options) -> float:
    """Peak memory in MB beyond inputs and returned gradients; on a CPU measured in a process of its own."""
    if problem.hidden.is_cuda:
        return scratch(cuda_peak, CONTENDERS[name], problem)
    command = [sys.executable, __file__, "--shape", *map(str, options.shape), "--device", options.device]
    done = subprocess.run([*command, "--dtype", options.dtype, "--memory-of", name], capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scratch_here(options) -> float:
    problem, contender = Problem(options.shape, options.device, DTYPES[options.dtype]), CONTENDERS[options.memory_of]
    # Libraries load code and start their threads on a first call, which is not scratch memory.
    contender(Problem((8, options.shape[1], 16), options.device, DTYPES[options.dtype]))
    return scratch(resident_peak, contender, problem)


def scratch(peak_of, contender, problem) -> float:
    gc.collect()
    peak, out = peak_of(lambda: contender(problem))
    returned = [x for x in out if isinstance(x, torch.Tensor)]
    return round((peak - sum(x.nbytes for x in returned)) / 1e6, 1)


def cuda_peak(work):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, out


def resident_peak(work):
    import psutil

    process, done, sizes = psutil.Process(), threading.Event(), []

    def sample():
        while not done.wait(0.002):
            sizes.append(process.memory_info().rss)

    before = process.memory_info().rss
    sampler = threading.Thread(target=sample)
    sampler.start()
    out = work()
    sizes.append(process.memory_info().rss)
    done.set()
    sampler.join()
    return max(sizes) - before, out


def row_of(name, times, scratch, options) -> dict:
    wall, processor = zip(*times[name], strict=True)
    wall_floor, processor_floor = zip(*times[FLOOR], strict=True)
    ratios = [a / b for a, b in zip(wall, wall_floor, strict=True)]
    processor_ratios = [a / b for a, b in zip(processor, processor_floor, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "contender": name,
        "num_tokens": options.shape[0],
        "width": options.shape[1],
        "vocabulary": options.shape[2],
        "dtype": options.dtype,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartile_1": round(quartiles[0], 3),
        "ratio_quartile_3": round(quartiles[2], 3),
        "ratio_of_minima": round(min(wall) / min(wall_floor), 3),
        "processor_ratio_median": round(statistics.median(processor_ratios), 3),
        "median_seconds": round(statistics.median(wall), 5),
        "scratch_mb": scratch,
        "repetitions": options.repetitions,
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name}-{version(name)}" for name in PACKAGES),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src/equipoise/statistics")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def write(rows, options) -> None:
    """Add the rows, in place of earlier ones of the same contender, shape, type and device."""
    path = RESULTS / f"token_statistics_{options.device.split(':')[0]}.csv"

    def key(row) -> list[str]:
        columns = ("contender", "num_tokens", "width", "vocabulary", "dtype", "device", "threads")
        return [str(row[name]) for name in columns]

    new, kept = [key(row) for row in rows], []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if key(row) not in new]
    RESULTS.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept + rows)


def report(rows, missing, options) -> None:
    first = rows[0]
    print(f"\nN D V = {options.shape}, {options.dtype}, {first['repetitions']} repetitions, commit {first['commit']}")
    print(f"{first['device']}, {first['threads']} threads, {first['versions']}, load {os.getloadavg()[0]:.1f}")
    print(f"floor: {first['median_seconds']} s")
    print("| contender | time / floor (quartiles) | of minima | processor time | scratch MB |\n|---|---|---|---|---|")
    for r in rows:
        time_ratio = f"{r['ratio_median']:.2f} ({r['ratio_quartile_1']:.2f}-{r['ratio_quartile_3']:.2f})"
        processor = f"{r['processor_ratio_median']:.2f}"
        print(f"| {r['contender']} | {time_ratio} | {r['ratio_of_minima']:.2f} | {processor} | {r['scratch_mb']} |")
    for name, reason in missing.items():
        package = next((NEEDS[word] for word in NEEDS if name.startswith(word)), None)
        absent = package and reason.startswith("ModuleNotFoundError") and package in reason
        print(f"| {name} | {'not installed' if absent else reason} | | | |")


if __name__ == "__main__":
    main()
