r"""Verification in processes: every answer has an outcome, whatever it is and whatever happens to its worker."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from equipoise.tasks.verification import VerifierPool

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool():
    pool = VerifierPool(2, seconds=1.0)
    yield pool
    pool.close()


def outcomes(pool, *pairs):
    texts, golds = zip(*pairs, strict=True)
    return [verdict.outcome for verdict in pool.verdicts(texts, [[gold] for gold in golds])]


def test_outcomes_in_order_and_counted(pool):
    before = dict(pool.counts)
    cases = [(r"\boxed{2}", "2"), ("3", "2"), ("no idea", "2"), ("2", r"\frac{1}{"), (r"\boxed{\frac12}", "0.5")] * 20
    expected = ["correct", "wrong", "unparsable", "bad_gold", "correct"] * 20
    assert outcomes(pool, *cases) == expected
    assert pool.counts["wrong"] - before.get("wrong", 0) == 20
    assert pool.counts["correct"] - before.get("correct", 0) == 40


def test_any_of_several_answers_is_right(pool):
    golds = [["1", "2"], ["2", "1"], ["3", "4"], ["2", r"\frac{1}{"]]
    verdicts = pool.verdicts([r"\boxed{2}"] * 4, golds)
    assert [verdict.outcome for verdict in verdicts] == ["correct", "correct", "wrong", "bad_gold"]
    assert verdicts[3].reason == r"\frac{1}{"


SLOW = r"\boxed{\int_{0}^{1} \frac{\sin(x^x)}{x^x+\cos x} dx}"
HOSTILE = [
    (SLOW, {"timeout"}),
    ("9**9**9**9", {"error", "wrong"}),
    (r"\boxed{9^{9^{9^{9}}}}", {"error"}),
    (r"$100000000!$", {"error"}),
    ("(" * 5000 + "1" + ")" * 5000, {"error", "wrong"}),
    (r"\boxed{" + r"\frac{1}{" * 40 + "2" + "}" * 41, {"timeout", "error", "wrong"}),
    (r"\boxed{" * 3000, {"unparsable"}),
    (r"\boxed{1", {"unparsable"}),
    ("$" * 10_000, {"unparsable"}),
    ("__import__('os').system('touch hacked')", {"unparsable", "wrong"}),
    (r"\boxed{__import__('os').system('touch hacked')}", {"unparsable", "wrong", "error"}),
    ("x" * 100_000, {"unparsable"}),
    ("1+" * 50_000 + "1", {"unparsable", "wrong", "timeout", "error"}),
    ("\x00\ud800\n", {"unparsable"}),
    ("1/0", {"wrong", "error"}),
    ("", {"unparsable"}),
]


@pytest.mark.parametrize(("text", "allowed"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_end_in_time_and_are_not_correct(pool, text, allowed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    first, second = pool.verdicts([text, r"\boxed{7}"], [["7"], ["7"]])
    assert first.outcome in allowed
    assert second.outcome == "correct"
    assert time.monotonic() - begin < 20
    assert not list(tmp_path.iterdir())


def test_hostile_answers_do_not_spoil_those_beside_them(pool):
    texts = [r"\boxed{7}"] * 40
    texts[3] = texts[17] = SLOW
    verdicts = pool.verdicts(texts, [["7"]] * 40)
    assert [i for i, verdict in enumerate(verdicts) if verdict.outcome != "correct"] == [3, 17]


def test_the_end_of_a_long_completion_counts(pool):
    assert outcomes(pool, ("word " * 50_000 + r"\boxed{7}", "7"), (r"\boxed{7}" + " word" * 50_000, "7")) == [
        "correct",
        "unparsable",
    ]


def test_long_requests_never_wait_for_a_worker_that_hangs():
    with_one = VerifierPool(1, seconds=0.3, wall_seconds=1)
    outcomes(with_one, ("7", "7"))
    os.kill(with_one._workers[0].process.pid, signal.SIGSTOP)
    texts = ["1", *["word " * 4000 + r"\boxed{7}"] * 8]  # together more than a pipe holds
    verdicts = with_one.verdicts(texts, [["7"]] * 9)
    assert [verdict.outcome for verdict in verdicts] == ["wrong"] + ["correct"] * 8
    with_one.close()


def test_a_worker_that_dies_costs_no_answer():
    with_one = VerifierPool(1, seconds=5)
    outcomes(with_one, ("7", "7"))
    with_one._workers[0].process.kill()
    with_one._workers[0].process.wait()
    assert outcomes(with_one, ("1", "1"), ("2", "2")) == ["correct", "correct"]
    with_one.close()


def test_memory_of_a_worker_is_limited():
    small = VerifierPool(1, memory_bytes=2**29)
    outcomes(small, ("7", "7"))
    limits = Path(f"/proc/{small._workers[0].process.pid}/limits").read_text()
    assert re.search(rf"Max address space\s+{2**29}\s+{2**29}\s", limits)
    assert re.search(r"Max core file size\s+0\s+0\s", limits)
    small.close()


def test_an_interrupt_leaves_no_answers_behind():
    with_one = VerifierPool(1)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_one.verdicts(["1"] * 20, [["1"]] * 20, done=stop)
    assert outcomes(with_one, ("2", "1")) == ["wrong"]
    with_one.close()


def test_workers_are_started_when_there_is_work_for_them():
    pool = VerifierPool(4)
    assert not pool._workers
    assert pool.verdicts([], []) == []
    assert not pool._workers
    outcomes(pool, ("7", "7"))
    assert len(pool._workers) == 1
    outcomes(pool, *[("7", "7")] * 20)
    assert 1 < len(pool._workers) <= 4
    processes = [worker.process for worker in pool._workers]
    pool.close()
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("settings", [{"num_workers": 0}, {"seconds": 0}, {"memory_bytes": 1000}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"num_workers must be >= 1, seconds > 0 and memory_bytes >= 2\*\*28, got"):
        VerifierPool(**settings)


def test_lengths_must_agree(pool):
    with pytest.raises(ValueError, match="zip"):
        pool.verdicts(["1"], [])
