"""`make fuzz`: so many hostile inputs, and what does not hold of them, by its cause."""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
sys.dont_write_bytecode = True

REPOSITORY = Path(__file__).parents[3]


def main() -> int:
    """Run the inputs; 1 when anything does not hold of one."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="equipoise-fuzz-"))
    try:
        return _run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="How many.")
    parser.add_argument("--seed", type=int, default=0, help="Of all of them.")
    parser.add_argument("--kind", action="append", help="Only of this kind; may be repeated.")
    parser.add_argument("--number", type=int, help="Only this one, of the one kind: shows what it printed.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Processes side by side.")
    parser.add_argument(
        "--kept", type=Path, default=Path("runs/fuzz"), help="Where inputs that failed are kept; a new folder."
    )
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path) -> int:
    from equipoise.cli import COMMANDS

    for command in COMMANDS.values():  # once, before the workers are forked
        importlib.import_module(f"equipoise.commands.{command.function.partition(':')[0]}")
    from fuzz import materials
    from fuzz.kinds import KINDS, numbers
    from fuzz.workers import results

    process = multiprocessing.get_context("fork").Process(target=_made, args=(materials.make, folder / "materials"))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the materials could not be made: {(folder / 'materials.log').read_text()[-2000:]}")
    kinds = options.kind or list(KINDS)
    inputs = numbers(options.inputs, kinds) if options.number is None else [(kinds[0], options.number)]
    failures: dict[tuple, list] = defaultdict(list)
    begin, seconds, counts = time.monotonic(), defaultdict(float), defaultdict(lambda: [0, 0, 0, 0])
    for done, result in enumerate(results(inputs, options.seed, folder / "materials", folder, options.jobs), start=1):
        seconds[result.kind] += result.seconds
        counts[result.kind][0] += 1
        counts[result.kind][1] += result.begun or result.code in (0, 1)
        counts[result.kind][2] += bool(result.problems)
        for problem in result.problems:
            failures[problem].append(result)
            if len(failures[problem]) == 1:
                _keep(result, folder, options)
        if options.number is not None:
            print(shlex.join(result.words), result.told, result.problems, sep="\n")
        elif sys.stderr.isatty() or done % 500 == 0:
            print(
                f"\r{done}/{len(inputs)} inputs, {len(failures)} kinds of failure",
                end="\n" * (not sys.stderr.isatty()),
                file=sys.stderr,
                flush=True,
            )
    _report(failures, counts, seconds, time.monotonic() - begin, options)
    return 1 if failures else 0


def _made(make, folder: Path) -> None:
    with folder.with_name("materials.log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        make(folder, REPOSITORY)


def _keep(result, folder: Path, options: argparse.Namespace) -> None:
    """The folder of an input that failed, and what was printed."""
    place = options.kept / f"{result.kind}-{options.seed}-{result.number}"
    boxes = [box for box in folder.glob("worker-*") if (box / "words.json").exists()]
    place.mkdir(parents=True, exist_ok=True)
    (place / "told.txt").write_text(
        f"{shlex.join(result.words)}\n{result.problems}\n{result.told}", errors="backslashreplace"
    )
    for box in boxes:
        import json

        if json.loads((box / "words.json").read_text()) == result.words:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(box / "work", place / "work", symlinks=True, ignore=_no_pipes, dirs_exist_ok=True)


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


def _report(failures, counts, seconds, took: float, options: argparse.Namespace) -> None:
    for problem, found in sorted(failures.items(), key=lambda item: -len(item[1])):
        first = min(found, key=lambda r: len(shlex.join(r.words)))
        line = shlex.join(first.words).encode("ascii", "backslashreplace").decode()
        kinds = ", ".join(sorted({r.kind for r in found}))
        print(
            f"{len(found):5} x {problem}  [{kinds}]\n        --kind {first.kind} --seed {options.seed} --number {first.number}: equipoise {line[:150]}"
        )
        last = [x for x in first.told.strip().splitlines() if x.strip()][-1:] or [""]
        print(f"        {last[0][:200]}")
    print(f"\n{'kind':<15}{'inputs':>8}{'accepted':>10}{'failed':>8}{'s':>8}")
    for kind, (inputs, accepted, failed, _) in counts.items():
        print(f"{kind:<15}{inputs:>8}{accepted:>10}{failed:>8}{seconds[kind]:>8.1f}")
    total = [sum(row[i] for row in counts.values()) for i in range(3)]
    print(
        f"{'all':<15}{total[0]:>8}{total[1]:>10}{total[2]:>8}{sum(seconds.values()):>8.1f}   in {took:.0f} s, {options.jobs} side by side"
    )
    if failures:
        print(f"kept in {options.kept}")


if __name__ == "__main__":
    sys.exit(main())
