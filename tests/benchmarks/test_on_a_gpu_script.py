"""`benchmarks/on_a_gpu.py`: parts that are resumed, cut, or crash; its summary; and the whole of it in tiny shapes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import on_a_gpu
import pytest
from on_a_gpu_parts import PARTS, records

SCRIPT = Path(on_a_gpu.__file__)
SETTING = {
    "device": "a GPU", "commit": "abc", "sources": "1", "small": False, "dirty": False, "python": "3.11",
    "versions": {"torch": "2", "nvidia-cutlass-dsl": "absent"},
}  # fmt: skip


class FakeParts:
    """Parts that write what they are told and end as they are told."""

    def __init__(self, output, **ends):
        self.output, self.ends, self.measured = output, ends, []

    def __call__(self, name, seconds):
        self.measured.append(name)
        figures = records.Figures(self.output / f"{name}.json")
        figures.add(number=len(self.measured))
        return {"state": self.ends.get(name.replace("-", "_"), "done"), "seconds": 1.0}


def run_parts(output, fake, names=("head", "sampling"), setting=SETTING, seconds=1000.0, **options):
    on_a_gpu.run_parts(list(names), output, setting, time.monotonic() + seconds, fake, **options)
    return {name: records.read_json(output / f"{name}.json") for name in names}


def test_a_part_that_is_done_is_not_measured_again(tmp_path):
    fake = FakeParts(tmp_path)
    first = run_parts(tmp_path, fake)
    assert run_parts(tmp_path, fake) == first
    assert fake.measured == ["head", "sampling"]
    assert run_parts(tmp_path, fake, again=True) != first
    assert fake.measured == ["head", "sampling"] * 2


@pytest.mark.parametrize("change", [{"commit": "b"}, {"sources": "2"}, {"device": "another"}, {"small": True}])
def test_other_code_or_another_device_is_measured_again(tmp_path, change):
    fake = FakeParts(tmp_path)
    run_parts(tmp_path, fake)
    run_parts(tmp_path, fake, setting=SETTING | change)
    assert fake.measured == ["head", "sampling"] * 2


@pytest.mark.parametrize("end", ["failed", "out of time"])
def test_a_part_that_was_not_finished_keeps_its_figures_and_is_measured_again(tmp_path, end):
    parts = run_parts(tmp_path, FakeParts(tmp_path, head=end))
    assert parts["head"]["state"] == end
    assert parts["head"]["figures"]["rows"] == [{"number": 1}]
    assert parts["sampling"]["state"] == "done", "the next part goes on"
    fake = FakeParts(tmp_path)
    assert run_parts(tmp_path, fake)["head"]["state"] == "done"
    assert fake.measured == ["head"]


def test_parts_run_in_order_of_importance_whatever_order_they_are_named_in(tmp_path):
    fake = FakeParts(tmp_path)
    run_parts(tmp_path, fake, names=list(PARTS)[::-1])
    assert fake.measured == list(PARTS)


def test_what_does_not_fit_is_left_and_figures_of_before_stay(tmp_path):
    run_parts(tmp_path, FakeParts(tmp_path), names=["head"])
    fake = FakeParts(tmp_path)
    parts = run_parts(tmp_path, fake, setting=SETTING | {"commit": "b"}, seconds=5)
    assert fake.measured == []
    assert parts["head"]["figures"]["rows"] == [{"number": 1}]
    assert parts["head"]["setting"]["commit"] == "abc", "figures name the code that they are of"
    assert parts["sampling"]["state"] == "left"
    assert "| sampling | left |" in (tmp_path / on_a_gpu.SUMMARY).read_text()


def test_a_part_gets_no_more_than_the_time_that_is_left(tmp_path):
    given = []

    def measure(name, seconds):
        given.append(seconds)
        return {"state": "done", "seconds": 1.0}

    run_parts(tmp_path, measure, names=["head"], seconds=PARTS["head"].least + 5)
    run_parts(tmp_path, measure, names=["head"], seconds=10_000, again=True)
    assert PARTS["head"].least < given[0] <= PARTS["head"].least + 5
    assert given[1] == PARTS["head"].seconds


# ---- the process of a part -----------------------------------------------------------------------------------------


def watched(tmp_path, code, seconds):
    command = [sys.executable, "-c", code]
    return on_a_gpu.watched(command, seconds, dict(os.environ), tmp_path / "log")


def test_a_crash_says_how_and_what_was_said_last(tmp_path):
    said = watched(tmp_path, "import os; print('last words', flush=True); os.abort()", 60)
    assert said["state"] == "failed"
    assert "signal 6" in said["reason"]
    assert "last words" in said["reason"]
    assert "exit code 3" in watched(tmp_path, "raise SystemExit(3)", 60)["reason"]


def test_a_hang_is_ended_with_the_processes_it_started(tmp_path):
    child = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
    said = watched(tmp_path, child + "print(c.pid, flush=True); c.wait()", 5)
    assert said["state"] == "out of time"
    assert said["seconds"] < 30
    pid = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def script(*words, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=os.environ | environment
    )


def test_help_names_every_part_and_wrong_words_are_refused(tmp_path):
    helped = script("--help")
    assert all(name in helped.stdout for name in PARTS)
    for words in (["--parts", "heads"], ["--minutes", "0"], ["--minutes", "nan"], ["--wheels", str(tmp_path / "none")]):
        refused = script("--output", str(tmp_path / "out"), *words)
        assert refused.returncode == 2
        assert words[-1] in refused.stderr
    assert not (tmp_path / "out").exists()


def test_what_runs_outside_of_parts_needs_no_package():
    # torch in this process would take memory of the device; on a bare machine all else is in the folder of wheels.
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import on_a_gpu, on_a_gpu_parts.summary, on_a_gpu_parts.wheels
print(sorted({{"torch", "trl", "numpy", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_whole_step_in_tiny_shapes(tmp_path):
    done = script("--output", str(tmp_path), "--small", "--parts", "kernels", "step-0.5b", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout + done.stderr
    step = json.loads((tmp_path / "step-0.5b.json").read_text())
    from on_a_gpu_parts.step import VARIANTS

    rows = {(row["trainer"], row["micro_batches"]): row for row in step["figures"]["rows"]}
    assert set(rows) == {(variant.name, variant.micro_batches) for variant in VARIANTS}
    assert step["figures"]["notes"] == []
    assert all(row["updates"] == 4 and row["seconds"]["median"] > 0 for row in rows.values())
    assert rows["TRL", 4]["to_trl"]["median"] == 1
    assert step["setting"]["small"]
    assert "--part step-0.5b" in step["command"]
    summary = (tmp_path / on_a_gpu.SUMMARY).read_text()
    assert "| kernels | done |" in summary
    assert "balanced, papo, records, lagged" in summary
