"""The tests of the kernels, as they are, on the device: wrong numbers make no benchmark."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

from on_a_gpu_parts.records import ROOT

FILES = ("test_on_a_gpu.py", "test_triton_fused.py", "test_triton_rows.py")


def measure(figures, plan) -> None:
    """Counts of each file of tests."""
    if plan.device != "cuda":
        figures.note("no GPU: the tests of the kernels run in the ordinary test suite, in Triton's interpreter")
        return
    for name in FILES:
        left = plan.end - time.monotonic()
        if left < 5:
            figures.note(f"{name}: no time left")
            continue
        run_file(figures, plan, name, left)
    if any(row["failed"] or row["errors"] or not row["passed"] for row in figures.rows):
        raise SystemExit("tests of the kernels are red: figures of the other parts may be those of wrong numbers")


def run_file(figures, plan, name: str, left: float) -> None:
    report, start = plan.folder / f"{name}.xml", time.monotonic()
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    path = str(ROOT / "tests" / "statistics" / name)
    try:
        done = subprocess.run([*command, path], cwd=ROOT, env=environment, timeout=left)
    except subprocess.TimeoutExpired:
        figures.note(f"{name}: cut after {left:.0f} s")
        return
    seconds = round(time.monotonic() - start, 1)
    figures.add(tests=name, **counts(report), exit_code=done.returncode, seconds=seconds)


def counts(report) -> dict[str, int]:
    """Of a report in JUnit's form; an error where there is none, which is how a run ends that could not begin."""
    if not report.exists():
        return {"passed": 0, "failed": 0, "errors": 1, "skipped": 0}
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failed - errors - skipped, "failed": failed, "errors": errors, "skipped": skipped}
