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
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
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
    parser.add_argument("--number", type=int, help="Only this one, of the one kind; shows what it printed.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Processes side by side.")
    parser.add_argument("--plain", action="store_true", help="Mutate nothing: what is valid must be accepted.")
    parser.add_argument("--kept", type=Path, default=Path("runs/fuzz"), help="Folder for the inputs that fail.")
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path) -> int:
    _import_everything()
    from equipoise.progress import progress_bar
    from fuzz.kinds import KINDS, numbers
    from fuzz.summary import Summary
    from fuzz.workers import results

    _make_materials(folder / "materials")
    if options.plain:
        _mutate_nothing()
    kinds = options.kind or list(KINDS)
    inputs = numbers(options.inputs, kinds) if options.number is None else [(kinds[0], options.number)]
    summary, begin = Summary(options.seed, options.kept), time.monotonic()
    # What has come so far is shown when it is interrupted.
    with contextlib.suppress(KeyboardInterrupt), progress_bar("fuzz", len(inputs), "input") as bar:
        for result in results(inputs, options.seed, folder / "materials", folder, options.jobs):
            summary.add(result, list(folder.glob("worker-*")))
            bar.update()
            if options.number is not None:
                print(shlex.join(result.words), result.told, sep="\n")
    print(*summary.lines(), sep="\n")
    print(f"{time.monotonic() - begin:.0f} s, {options.jobs} side by side")
    return 1 if summary.failures else 0


def _import_everything() -> None:
    """Once, before the workers are forked; what is cached is filled."""
    from equipoise.cli import COMMANDS
    from fuzz.command_lines import flags

    for command in COMMANDS.values():
        importlib.import_module(f"equipoise.commands.{command.function.partition(':')[0]}")
    flags()


def _mutate_nothing() -> None:
    from fuzz import kinds, place_mutations, tables, value_mutations, word_mutations

    for module, name in ((tables, "spoil"), (place_mutations, "misplace"), (kinds, "spoil_yaml")):
        setattr(module, name, lambda *arguments: None)
    word_mutations.mutated = lambda rng, words, flags: list(words)
    value_mutations.hostile = lambda rng: None
    kinds.SUFFIXES, kinds.QUERIES = (".jsonl",), ("",)


def _make_materials(folder: Path) -> None:
    """In a process of its own, so that this one has no threads when the workers are forked."""
    process = multiprocessing.get_context("fork").Process(target=_materials, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the valid inputs could not be made: {folder.with_suffix('.log').read_text()[-2000:]}")


def _materials(folder: Path) -> None:
    from fuzz.materials import make

    with folder.with_suffix(".log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        make(folder, REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
