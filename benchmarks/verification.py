"""How long the verification of typical mathematical answers takes: `python benchmarks/verification.py [--workers 2]`.

10,000 completions of a few hundred words that end in a boxed or free answer, against answers as data sets have them:
integers mostly, fractions, roots, decimals, tuples, sets, intervals, polynomials, text. Half of them are right, one in
fifty has no answer, one in a thousand is hostile. Appends a CSV row; the processor time of the workers is there to tell
a slow verifier from a busy machine. Then the answers of a file that people labelled, beside math-verify alone: verdicts
right, false positives, false negatives (`--labelled FILE`; `--skip_timing` for those alone).
"""

import argparse
import csv
import dataclasses
import platform
import random
import resource
import subprocess
import time
from pathlib import Path

from verification_labels import MathVerifyAlone, counts, labelled, ours

from equipoise.tasks.verification import VerifierPool

RESULTS = Path(__file__).parent / "results" / "verification.csv"
LABEL_RESULTS = Path(__file__).parent / "results" / "verification_labels.csv"
LABELLED = Path(__file__).resolve().parents[2] / "shared" / "data" / "verdicts.jsonl"

SENTENCE = "so we have that the sum of all $n_i$ is then by symmetry equal to $\\frac{a+b}{2}$ and therefore"

KINDS = [  # weight, (answer, spelt otherwise, wrong)
    (50, lambda g: (n := str(g.randrange(1000)), n, str(g.randrange(1000, 2000)))),
    (12, lambda g: ((p := rf"\frac{{{g.randrange(1, 50)}}}{{53}}"), p, r"\frac{1}{59}")),
    (8, lambda g: (rf"{(n := g.randrange(2, 30))}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}", r"\sqrt{3}")),
    (8, lambda g: (f"{(n := g.randrange(1, 400))}.5", rf"\frac{{{2 * n + 1}}}{{2}}", "0.25")),
    (6, lambda g: (rf"({(n := g.randrange(50))}, {n + 1})", f"({n},{n + 1})", f"({n + 1}, {n})")),
    (4, lambda g: (rf"\{{{(n := g.randrange(50))}, {n + 2}\}}", rf"\{{{n + 2}, {n}\}}", rf"\{{{n}\}}")),
    (4, lambda g: (rf"[{(n := g.randrange(50))}, \infty)", rf"[{n}, \infty)", rf"({n}, \infty)")),
    (4, lambda g: (rf"x^2+{(n := g.randrange(2, 50))}x", rf"x(x+{n})", "x^2")),
    (2, lambda g: (rf"{(n := g.randrange(1, 20))}\pi", rf"{n} \pi", r"3.14")),
    (2, lambda g: (r"\text{Monday}", r"\text{Monday}", r"\text{Friday}")),
]
HOSTILE = [
    "9**9**9**9", r"\boxed{9^{9^{9^{9}}}}", "(" * 5000, r"\boxed{" * 3000,
    r"\boxed{\int_{0}^{1} \frac{\sin(x^x)}{x^x+\cos x} dx}",
]  # fmt: skip


def completions(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    generator = random.Random(seed)
    weights = [weight for weight, _ in KINDS]
    texts, golds = [], []
    for number in range(count):
        _, kind = generator.choices(KINDS, weights)[0]
        gold, same, wrong = kind(generator)
        answer = same if generator.random() < 0.5 else wrong
        reasoning = " ".join(generator.choices(SENTENCE.split(), k=generator.randrange(50, 600)))
        ending = rf"\boxed{{{answer}}}" if generator.random() < 0.8 else f"The answer is ${answer}$."
        if number % 1000 == 999:
            ending = generator.choice(HOSTILE)
        elif number % 50 == 49:
            reasoning, ending = "I have no idea", ""
        texts.append(f"{reasoning} {ending}")
        golds.append([gold])
    return texts, golds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", type=Path, default=LABELLED)
    parser.add_argument("--skip_timing", action="store_true")
    options = parser.parse_args()
    if not options.skip_timing:
        time_verdicts(options)
    if options.labelled.exists():
        compare_verdicts(options.labelled)
    else:
        print(f"{options.labelled} is not there: no labelled answers were judged")


def compare_verdicts(path: Path) -> None:
    rows = labelled(path)
    pool, alone = VerifierPool(1), MathVerifyAlone()
    for name, judge in (("equipoise", ours(pool)), ("math-verify", alone)):
        found = counts(name, rows, judge)
        print(found)
        _append(LABEL_RESULTS, {"commit": _commit(), "answers": len(rows)} | dataclasses.asdict(found))
    pool.close()
    alone.close()


def time_verdicts(options: argparse.Namespace) -> None:
    texts, golds = completions(options.count, options.seed)
    pool = VerifierPool(options.workers)
    begin = time.perf_counter()
    pool.verdicts(texts, golds)
    seconds = time.perf_counter() - begin
    pool.close()  # the processor time of the workers is known once they have ended
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcomes = ("correct", "wrong", "unparsable", "timeout", "error", "bad_gold")
    row = {
        "commit": _commit(), "machine": platform.machine(), "python": platform.python_version(), "count": options.count,
        "workers": options.workers, "seed": options.seed, "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
    } | {outcome: pool.counts[outcome] for outcome in outcomes}  # fmt: skip
    print(row)
    _append(RESULTS, row)


def _commit() -> str:
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def _append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
