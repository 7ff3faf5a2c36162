"""Run the tests on every trainer, and say what passes with TRL's and not with ours."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from trl_suite import __doc__ as about
from trl_suite.plugin import TRAINERS
from trl_suite.substitutes import make_all

TEST_FILE = "test_grpo_trainer.py"
NEEDED = ("__init__.py", "conftest.py", "testing_utils.py", "testing_constants.py", TEST_FILE)

Outcomes = dict[str, tuple[str, str]]
"""Name of a test: "passed", "failed" or "skipped", and the first line of why."""


def main() -> int:
    """0 when everything that passes with TRL's trainer passes with ours, features off; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="trl_suite", description=about)
    parser.add_argument("checkout", type=Path, help="of TRL's repository, or its folder tests/")
    parser.add_argument("-k", default="", help="of pytest: only tests of this expression")
    parser.add_argument("--workers", default="2", help="processes that share the tests")
    arguments = parser.parse_args()
    tests = arguments.checkout / "tests" if (arguments.checkout / "tests").is_dir() else arguments.checkout
    if not (tests / TEST_FILE).is_file():
        print(f"{arguments.checkout} holds no {TEST_FILE}: give a checkout of TRL", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_all(folder)
        (folder / "tests").mkdir()
        for needed in NEEDED:
            if (tests / needed).exists():
                shutil.copy(tests / needed, folder / "tests")
        found = {trainer: _run(folder, trainer, arguments.k, arguments.workers) for trainer in TRAINERS}
    return _report(found)


def _run(folder: Path, trainer: str, expression: str, workers: str) -> Outcomes:
    results = folder / f"{trainer}.xml"
    command = [
        sys.executable, "-m", "pytest", f"tests/{TEST_FILE}", "-q", "-p", "trl_suite.plugin", "-n", workers,
        "--junitxml", str(results), "-k", expression, "-o", "junit_family=xunit2", "--no-header", "--tb=line",
    ]  # fmt: skip
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"TRL_SUITE_TRAINER": trainer, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    print(f"{TRAINERS[trainer]} ...", file=sys.stderr)
    subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=subprocess.DEVNULL, check=False)
    return _outcomes(results)


def _outcomes(results: Path) -> Outcomes:
    outcomes: Outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error", "skipped")]
        state = "passed" if not bad else "skipped" if bad[0].tag == "skipped" else "failed"
        why = (bad[0].get("message") or "").strip().splitlines() if bad else []
        outcomes[str(case.get("name"))] = (state, why[0] if why else "")
    return outcomes


def _report(found: dict[str, Outcomes]) -> int:
    for trainer, outcomes in found.items():
        states = [state for state, _ in outcomes.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped"))
        print(f"{TRAINERS[trainer]}: {counts}")
    passed = [name for name, (state, _) in found["trl"].items() if state == "passed"]
    missing = {
        trainer: [name for name in passed if outcomes.get(name, ("",))[0] != "passed"]
        for trainer, outcomes in found.items()
    }
    for trainer, names in missing.items():
        for name in names:
            print(f"{trainer}: {name}: {found[trainer].get(name, ('', 'did not run'))[1]}")
    print("\nnot passed with TRL's own trainer, and so not compared:")
    for name, (state, why) in found["trl"].items():
        if state != "passed":
            print(f"  {name}: {state}: {why[:160]}")
    return 1 if missing["off"] else 0


if __name__ == "__main__":
    sys.exit(main())
