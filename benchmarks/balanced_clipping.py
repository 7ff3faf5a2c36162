"""What BAPO's search costs: against the loop that recomputes the share after every step, and within a TRL step.

    OMP_NUM_THREADS=1 python benchmarks/balanced_clipping.py

Search: one update of a million tokens, ratios and advantages drawn as log-normal and normal, target out of reach (the
worst case: the loop then visits every point of the grid); also a target that is reached early. Both sides get the same
tensors, and must return the same bounds.
Step: the quick start's run; processor time of all that equipoise does in an update beyond the forward and the backward
pass (measures, search, reweighting, reduction), as a share of the whole update, rollout batch by rollout batch.
Writes results/balanced_clipping.md.
"""

import argparse
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from equipoise import BoundGrid, contribution, select_bounds
from equipoise.commands.quickstart import recipe_folder
from equipoise.models.warm_starts import warm_start_ladder
from equipoise.settings.reading import read_yaml
from equipoise.trl import run
from equipoise.trl.keys import build, checked_keys

RESULTS = Path(__file__).parent / "results" / "balanced_clipping.md"
STEPS = {
    "fixed bounds, polarity off (measures alone)": {"clipping": "fixed", "polarity": "off"},
    "balanced clipping": {"polarity": "off"},
    "balanced clipping and PAPO": {},
    "balanced clipping, the update in two micro-batches": {
        "polarity": "off",
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 8,
    },
}
TARGETS = {"worst case: target out of reach": 0.9999, "target .5": 0.5}


def recomputing_loop(ratio, advantage, mask, grid, target):
    """Algorithm 1 as printed: the share of all tokens after every step of the bounds."""
    ratio, advantage = ratio[mask], advantage[mask]
    weighted = ratio * advantage.abs()

    def share(low, high):
        positive = weighted[(advantage > 0) & (ratio < high)].sum(dtype=torch.float64)
        negative = weighted[(advantage < 0) & (ratio > low)].sum(dtype=torch.float64)
        return float(positive / (positive + negative))

    points = [(grid.low_points[0], high) for high in grid.high_points]
    points += [(low, grid.high_points[-1]) for low in grid.low_points[1:]]
    for low, high in points:
        if share(low, high) >= target - 1e-9:
            break
    return low, high


def ours(ratio, advantage, mask, grid, target):
    bounds = select_bounds(contribution(ratio, advantage, mask, grid), grid, target_share=target).bounds
    return bounds.low, bounds.high


def search(repetitions):
    generator = torch.Generator().manual_seed(0)
    shape = (1000, 1000)
    ratio = torch.randn(shape, generator=generator).mul(0.4).exp()
    advantage = torch.randn(shape, generator=generator) - 0.2
    mask = torch.rand(shape, generator=generator) < 0.99
    rows = []
    for name, target in TARGETS.items():
        arguments = ratio, advantage, mask, BoundGrid(), target
        assert recomputing_loop(*arguments) == ours(*arguments)
        times = {recomputing_loop: [], ours: []}
        for _ in range(repetitions):
            for function, seconds in times.items():
                start = time.process_time()
                function(*arguments)
                seconds.append(time.process_time() - start)
        ratios = [a / b for a, b in zip(times[recomputing_loop], times[ours], strict=True)]
        rows.append(
            f"| {name} | {1e3 * statistics.median(times[recomputing_loop]):.0f} ms "
            f"| {1e3 * statistics.median(times[ours]):.1f} ms | {spread(ratios)} |"
        )
    return rows


class Stopwatch:
    """Processor time spent inside some methods of an object."""

    def __init__(self, subject, names):
        self.seconds, self.depth = 0.0, 0
        for name in names:
            setattr(subject, name, self.timed(getattr(subject, name)))

    def timed(self, method):
        def wrapper(*args, **kwargs):
            self.depth += 1
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:  # a method within a method counts once
                    self.seconds += time.process_time() - start

        return wrapper


class EachUpdate(TrainerCallback):
    """Processor time of every update, and the part of it on the stopwatch."""

    def __init__(self, watch):
        self.watch, self.whole, self.part = watch, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start, self.before = time.process_time(), self.watch.seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.whole.append(time.process_time() - self.start)
        self.part.append(self.watch.seconds - self.before)


def step(num_updates):
    """What equipoise does in an update beyond the forward and backward pass, as a share of the whole update."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_start_ladder(folder / "base")
        recipe = read_yaml(recipe_folder() / "ladder_stale_equipoise.yaml")
        for label, keys in STEPS.items():
            values = recipe | {"model": str(folder / "base"), "output_dir": str(folder / label), "disable_tqdm": True}
            values |= {"max_steps": num_updates, "save_strategy": "no", "evaluate_every": 0} | keys
            trainer = run._prepare(*build(checked_keys(values, "")), extra_rewards=(), on_model=None)
            trainer.callback_handler.callbacks = [
                c for c in trainer.callback_handler.callbacks if "HeldOut" not in str(c)
            ]
            updates = EachUpdate(Stopwatch(trainer, ["_open_update", "_steer", "_close_update"]))
            trainer.add_callback(updates)
            trainer.train()
            # Per rollout batch of 8 updates: the first samples and has nothing to search.
            batches = range(8, len(updates.whole), 8)
            shares = [100 * sum(updates.part[i : i + 8]) / sum(updates.whole[i : i + 8]) for i in batches]
            rows.append(
                f"| {label} | {1e3 * statistics.median(updates.whole):.0f} ms "
                f"| {1e3 * statistics.median(updates.part):.2f} ms | {spread(shares)} % |"
            )
    return rows


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="of the search (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=80, help="of each run (default: %(default)s)")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# What balanced clipping and PAPO cost",
        "    OMP_NUM_THREADS=1 python benchmarks/balanced_clipping.py",
        f"Processor time of one thread, torch {torch.__version__}, {platform.machine()}, commit {commit}; median and "
        "quartiles.",
        "## Search over a million tokens, paper's grid, against the loop that recomputes the share",
        "\n".join(["| | loop | ours | loop / ours |", "|---|---|---|---|", *search(options.repetitions)]),
        "## An update of the quick start (128 completions, one of 8 updates per rollout batch)",
        "\n".join(["| | update | equipoise's part | share |", "|---|---|---|---|", *step(options.updates)]),
    ]
    RESULTS.write_text("\n\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
