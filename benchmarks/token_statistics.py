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
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from token_statistics_contenders import CONTENDERS, FLOOR, NEEDS, Problem

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ["test_statistics.py", "test_linear_statistics.py", "test_linear_paths.py"]
CUDA_TESTS = ["test_triton_rows.py", "test_triton_fused.py", "test_on_a_gpu.py"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WARM_UP, BURST = 2, 5
"""Calls of a repetition on a GPU: left out, and counted."""

PACKAGES = ("torch", "triton", "trl", "liger-kernel", "nvidia-cutlass-dsl", "verl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("N", "D", "V"), help="may be repeated")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--errors", action="store_true", help="also measure errors against float64 (slow on a CPU)")
    parser.add_argument("--leave-out", nargs="*", default=[], choices=list(CONTENDERS)[1:], metavar="CONTENDER")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the process of one contender
    options = parser.parse_args()
    shapes = options.shape or [[2048, 896, 151936]]
    options.shape = shapes[0]
    if options.memory_of:
        print(json.dumps(scratch_here(options)))
        return
    require_green_tests(options)
    for shape in shapes:
        options.shape = shape
        measure(options)


def measure(options) -> None:
    """One shape."""
    problem = Problem(options.shape, options.device, DTYPES[options.dtype])
    times, missing = measured_times(problem, options)
    rows = [row_of(name, times, scratch_of(name, problem, options), options) for name in times]
    if options.errors:
        exact = exact_numbers(problem)
        for row in rows:
            row.update(errors_of(row["contender"], problem, exact))
    write(rows, options)
    report(rows, missing, options)


def require_green_tests(options) -> None:
    names = CUDA_TESTS if options.device.startswith("cuda") else TESTS
    tests = [str(ROOT / "tests" / "statistics" / name) for name in names]
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


def exact_numbers(problem) -> dict[str, torch.Tensor]:
    """Log-prob and gradients in float64, some rows at a time."""
    h, w = problem.hidden.detach().double(), problem.weight.detach().double()
    logprob, dh, dw = [], [], torch.zeros_like(w)
    for rows, targets, advantage in zip(*(x.split(512) for x in (h, problem.targets, problem.advantage)), strict=True):
        log_p = (rows @ w.t()).log_softmax(-1)
        at_target = targets[:, None]
        logprob.append(log_p.gather(1, at_target)[:, 0])
        dz = log_p.exp_().mul_(-advantage[:, None].double()).scatter_add_(1, at_target, advantage[:, None].double())
        dh.append(dz @ w)
        dw.addmm_(dz.t(), rows)
    return {"logprob": torch.cat(logprob), "hidden_gradient": torch.cat(dh), "weight_gradient": dw}


def errors_of(name: str, problem, exact) -> dict[str, float]:
    """Largest error of a log-prob, and |x - exact| / |exact| of the gradients, as far as a contender has them."""
    problem.logprob = None
    found = CONTENDERS[name](problem)
    if problem.logprob is None:
        return {}
    gradients = dict(zip(("hidden_gradient", "weight_gradient"), found, strict=False))
    if len(found) < 2 or not isinstance(found[1], torch.Tensor) or found[1].shape != exact["weight_gradient"].shape:
        gradients.pop("weight_gradient", None)  # a frozen head
    errors = {
        f"{key}_error": float((x.double() - exact[key]).norm() / exact[key].norm()) for key, x in gradients.items()
    }
    logprob_error = float((problem.logprob.double() - exact["logprob"]).abs().max())
    return {key: float(f"{x:.2g}") for key, x in {"logprob_error": logprob_error, **errors}.items()}


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
        "logprob_error": "",
        "hidden_gradient_error": "",
        "weight_gradient_error": "",
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
    print(
        "| contender | time / floor (quartiles) | of minima | processor time | scratch MB | errors: log-prob, dh, dW |"
    )
    print("|---|---|---|---|---|---|")
    for r in rows:
        time_ratio = f"{r['ratio_median']:.2f} ({r['ratio_quartile_1']:.2f}-{r['ratio_quartile_3']:.2f})"
        processor = f"{r['processor_ratio_median']:.2f}"
        errors = " ".join(str(r[f"{key}_error"]) for key in ("logprob", "hidden_gradient", "weight_gradient"))
        beginning = f"| {r['contender']} | {time_ratio} | {r['ratio_of_minima']:.2f}"
        print(f"{beginning} | {processor} | {r['scratch_mb']} | {errors} |")
    for name, reason in missing.items():
        package = next((NEEDS[word] for word in NEEDS if name.startswith(word)), None)
        absent = package and reason.startswith("ModuleNotFoundError") and package in reason
        print(f"| {name} | {'not installed' if absent else reason} | | | | |")


if __name__ == "__main__":
    main()
