"""The quick start over several seeds, with controls from the same weights: paired differences instead of one picture.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 --output runs/quickstart_seeds

Writes benchmarks/results/quickstart_seeds.csv, one row per seed and run: the final evaluation and the entropy of the
last 50 updates. Each seed has its own warm start. Finished runs are kept: an interrupted benchmark goes on. Rows of
other commits stay, and the means are over all of them: code that rounds differently makes other runs of the same seeds.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from equipoise.diagnostics.runs import read_run

CONTROLS = {
    "GRPO, fixed [0.98, 3.0]": ("ladder_stale_grpo.yaml", ["--epsilon", "0.02", "--epsilon_high", "2.0"]),
    "balanced clipping alone": ("ladder_stale_equipoise.yaml", ["--polarity", "off"]),
    "PAPO alone": ("ladder_stale_equipoise.yaml", ["--clipping", "fixed"]),
}
RESULTS = Path(__file__).parent / "results" / "quickstart_seeds.csv"
MEASURES = ("greedy", "pass@1", "pass@8", "distinct of 8", "entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart_seeds"))
    options = parser.parse_args()
    for seed in options.seeds:
        equipoise("quickstart", "--output", options.output / str(seed), "--seed", seed)
    with ThreadPoolExecutor(2) as pool:
        jobs = [(options.output / str(seed), seed, name) for seed in options.seeds for name in CONTROLS]
        list(pool.map(lambda job: control(*job), jobs))
    rows = [row for seed in options.seeds for row in rows_of(options.output / str(seed), seed)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [*rows_of_others(commit), *({"commit": commit} | row for row in rows)]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["commit", "seed", "run", *MEASURES])
        writer.writeheader()
        writer.writerows(rows)
    summary(rows)


def rows_of_others(commit: str) -> list[dict]:
    """What other commits have measured."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["commit"] != commit]
    return [row | {"seed": int(row["seed"])} | {measure: float(row[measure]) for measure in MEASURES} for row in rows]


def equipoise(*arguments) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "equipoise", *map(str, arguments)], env=environment, check=True)


def control(folder: Path, seed: int, name: str) -> None:
    if (folder / name / "model").exists():
        return
    recipe, flags = CONTROLS[name]
    equipoise(
        "train", "--config", Path(__file__).parents[1] / "recipes" / recipe, "--model", folder / "base",
        "--output_dir", folder / name, "--seed", seed, "--disable_tqdm", "true", *flags,
    )  # fmt: skip


def rows_of(folder: Path, seed: int):
    for name in ("GRPO", "equipoise", *CONTROLS):
        record = read_run(folder / name)
        final, entropy = record.evaluations[-1], record.curve("equipoise/entropy")[1][-50:].mean()
        values = (
            final["greedy"]["mean"], final["pass_at"]["1"]["mean"], final["pass_at"]["8"]["mean"],
            final["distinct_correct_at"]["8"]["mean"], float(entropy),
        )  # fmt: skip
        yield {"seed": seed, "run": name} | {m: round(v, 4) for m, v in zip(MEASURES, values, strict=True)}


def summary(rows: list[dict]) -> None:
    """Means over seeds and commits, and the mean paired difference to GRPO with its standard error over seeds.

    Runs of one seed by several commits share data and random numbers: they count as one, by their mean.
    """
    by_run = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    print(f"| run | {' | '.join(MEASURES)} |")
    for name, own in by_run.items():
        cells = []
        for measure in MEASURES:
            values = [row[measure] for row in own]
            by_seed = {}
            for row, grpo in zip(own, by_run["GRPO"], strict=True):
                by_seed.setdefault(row["seed"], []).append(row[measure] - grpo[measure])
            differences = [statistics.mean(of_seed) for of_seed in by_seed.values()]
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
            paired = "" if name == "GRPO" else f" ({statistics.mean(differences):+.3f} ± {error:.3f})"
            cells.append(f"{statistics.mean(values):.3f}{paired}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
