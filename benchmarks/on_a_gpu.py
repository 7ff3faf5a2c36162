"""Everything that only a GPU can tell, in one command: kernels, statistics head, whole training step, sampling.

    python benchmarks/on_a_gpu.py --output runs/gpu --wheels wheels          # a bare machine with torch: no network
    python benchmarks/on_a_gpu.py --output /tmp/small --small                # the same code on a CPU, to try it

Parts run in order of importance, each in a process and with a time limit of its own: a crash, a hang or memory that
runs out costs that part alone. Figures are written at once, OUTPUT/PART.json after every row, and OUTPUT/summary.md
after every part. A second call takes up what is missing: a part that is done with the same code on the same device is
not measured again, unless with --again. What does not fit into --minutes is left, and said so.

Expected on an H100 (seconds, imports and compiling included): kernels 60, head 95, step-0.5b 90, step-1.5b 100,
real-model 50 (only with --model), sampling 25. Nothing has a threshold: targets are printed beside the figures.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from on_a_gpu_parts import PARTS, records

SUMMARY = "summary.md"
SMALL_SECONDS = 240
"""Of a part with tiny shapes, most of it imports."""


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if options.setting:
        print(json.dumps(records.setting(options.small, options.commit)))
        return 0
    if options.part:
        measure_here(options)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    environment = environment_of(options)
    setting = setting_of(options, environment)
    print(f"{setting['device']}, commit {setting['commit']}, torch {setting['versions']['torch']}", flush=True)

    def measure(name: str, seconds: float) -> dict[str, Any]:
        return measured(name, seconds, options, environment)

    end = start + 60 * options.minutes
    run_parts(options.parts, options.output, setting, end, measure, small=options.small, again=options.again)
    print("\n" + (options.output / SUMMARY).read_text(encoding="utf-8"))
    return int(any(part.get("state") != "done" for part in stored(options.output, options.parts).values()))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    what = "\n".join(f"  {name:12} {part.what} (at most {part.seconds} s)" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{what}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the figures, made where it is missing")
    parser.add_argument("--wheels", type=Path, help="folder of wheels (make wheels): what is missing here is installed "
                        "from it into OUTPUT/site-packages")  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all", metavar="PART")
    parser.add_argument("--minutes", type=positive, default=8.0, help="for everything (default: %(default)g)")
    parser.add_argument("--model", type=Path, help="folder of a real model, for the part real-model")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--again", action="store_true", help="measure parts that are done as well")
    parser.add_argument("--commit", help="what to call the code where there is no git")
    for name in ("--part", "--seconds"):  # of the process of one part
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--setting", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("wheels", "model"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: no such folder")
    return options


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


# ---- all parts ------------------------------------------------------------------------------------------------------


def run_parts(
    names: list[str],
    output: Path,
    setting: dict[str, Any],
    end: float,
    measure: Callable[[str, float], dict[str, Any]],
    *,
    small: bool = False,
    again: bool = False,
) -> None:
    """Run what is not done, in order of importance, and write a summary after each.

    Args:
        names: of the parts.
        output: folder of their files.
        setting: what they are measured with.
        end: `time.monotonic()` by which all has to be over.
        measure: runs a part in so many seconds, and returns "state", "seconds", and where it failed "reason".
        small: tiny shapes.
        again: also what is done.
    """
    for name in (name for name in PARTS if name in names):
        path = output / f"{name}.json"
        before = records.read_json(path)
        if is_done(before, setting) and not again:
            print(f"{name}: done before", flush=True)
            continue
        seconds = min(SMALL_SECONDS if small else PARTS[name].seconds, end - time.monotonic())
        if seconds < PARTS[name].least:
            left(path, name, before, setting, seconds)
        else:
            print(f"{name}: {PARTS[name].what}, at most {seconds:.0f} s", flush=True)
            path.unlink(missing_ok=True)
            said = measure(name, seconds)
            figures = records.read_json(path)
            records.write_json(path, {"part": name, **said, "setting": setting, "figures": figures})
            print(f"{name}: {said['state']} after {said['seconds']:.0f} s", flush=True)
        write_summary(output)
    write_summary(output)


def is_done(before: dict[str, Any], setting: dict[str, Any]) -> bool:
    known = before.get("setting", {})
    return before.get("state") == "done" and all(known.get(key) == setting[key] for key in records.SAME)


def left(path: Path, name: str, before: dict[str, Any], setting: dict[str, Any], seconds: float) -> None:
    """Say that there was no time; figures of before, of whatever code, stay as they are."""
    reason = f"left: {max(seconds, 0):.0f} s remained, it needs {PARTS[name].least} at least"
    print(f"{name}: {reason}", flush=True)
    if not before.get("figures", {}).get("rows"):
        records.write_json(path, {"part": name, "state": "left", "reason": reason, "setting": setting, "figures": {}})


def stored(output: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the files of parts hold."""
    found = {name: records.read_json(output / f"{name}.json") for name in names}
    return {name: part for name, part in found.items() if "state" in part}


def write_summary(output: Path) -> None:
    from on_a_gpu_parts.summary import summary

    part = output / f"{SUMMARY}.part"
    part.write_text(summary(stored(output, list(PARTS))), encoding="utf-8")
    part.replace(output / SUMMARY)


# ---- one part, in a process of its own ------------------------------------------------------------------------------


def measured(name: str, seconds: float, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part in a process and wait for it no longer than it may take."""
    command = [sys.executable, str(Path(__file__).resolve()), "--output", str(options.output), "--part", name]
    command += ["--seconds", f"{seconds - min(10, seconds / 5):.1f}"]
    command += ["--small"] if options.small else []
    command += ["--model", str(options.model)] if options.model else []
    return watched(command, seconds, environment, options.output / f"{name}.log")


def watched(command: list[str], seconds: float, environment: dict[str, str], log: Path) -> dict[str, Any]:
    """State, seconds and reason of a process, whose output goes into a log; ended with all its children when late."""
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    said: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "command": " ".join(command)}
    if code == 0:
        return {"state": "done"} | said
    if code is None:
        return {"state": "out of time", "reason": f"stopped after {seconds:.0f} s; figures until then are kept"} | said
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "no output"
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"state": "failed", "reason": f"{ended}: {last}"} | said


def end_group(process: subprocess.Popen) -> None:
    """The process and its children; those of a part that has ended by itself as well."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure_here(options: argparse.Namespace) -> None:
    """The process of one part."""
    import torch
    from on_a_gpu_parts import measure

    sys.path.insert(0, str(Path(__file__).parent))
    figures = records.Figures(options.output / f"{options.part}.json")
    figures.save()
    with tempfile.TemporaryDirectory(prefix="on-a-gpu-") as place:
        plan = records.Plan(
            part=options.part,
            model=PARTS[options.part].model,
            small=options.small,
            end=time.monotonic() + float(options.seconds),
            device="cuda" if torch.cuda.is_available() else "cpu",
            folder=Path(place),
            real_model=options.model,
        )
        measure(options.part, figures, plan)


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """That of the processes: this code, the wheels, no network."""
    paths = [str(records.ROOT / "src")]
    if options.wheels:
        from on_a_gpu_parts import wheels

        site = options.output / "site-packages"  # by that name dill knows installed code
        for said in wheels.install(options.wheels, site):
            print(said, flush=True)
        paths.append(str(site.resolve()))
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def setting_of(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Asked in a process: a context here would take memory of the device from every part."""
    command = [sys.executable, str(Path(__file__).resolve()), "--output", str(options.output), "--setting"]
    command += ["--small"] if options.small else []
    command += ["--commit", options.commit] if options.commit else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if done.returncode:
        raise SystemExit(f"torch does not start here:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
