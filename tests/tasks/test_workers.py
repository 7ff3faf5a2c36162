"""The pool of workers: limits of CPU time and memory, deaths and retries, and systems that lack what Linux has."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from equipoise.errors import InputError
from equipoise.tasks.verification import Verdict, VerifierPool
from equipoise.tasks.workers import pool as pool_module
from equipoise.tasks.workers.pool import default_workers
from equipoise.tasks.workers.process import WorkerProcess, how_it_ended

pytestmark = pytest.mark.slow

DEAF, LOOP, BOMB, GROWS = "#deaf", "#loop", "#bomb", "#grows"
KIND = """
import importlib, sys, types

def judged(payload):
    text, golds = payload
    if text == "#deaf":
        sum(range(10**12))  # one operation that hears of no signal
    while text == "#loop":
        try:
            pass
        except Exception:
            pass
    if text == "#bomb":
        bytearray(2**45)
    held = []
    while text == "#grows":
        held.append(bytearray(2**20))
    return importlib.import_module("equipoise.tasks.mathematics").verdict(text, golds)

kind = types.ModuleType("equipoise.tasks.verification_worker")
kind.warm = lambda: importlib.import_module("equipoise.tasks.mathematics").warm()
kind.modules_with_eval = list
kind.prepared = lambda arguments: judged
sys.modules[kind.__name__] = kind
"""
"""The kind "math", beside which four texts behave as no mathematics does that is limited by itself."""
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """The file that every worker runs at its start."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KIND)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder / "sitecustomize.py"


def lacking(site, code):
    """Takes away, at the start of every worker, what other systems lack."""
    site.write_text(site.read_text() + code)


@pytest.fixture
def make():
    """Makes pools that are closed in the end."""
    pools = []

    def made(*arguments, **settings):
        pools.append(VerifierPool(*arguments, **settings))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close()


def outcomes(pool, texts, golds=None):
    verdicts = pool.verdicts(texts, [[gold] for gold in golds or ["7"] * len(texts)])
    return [verdict.outcome for verdict in verdicts]


def started(pool):
    """The one process of a pool with one worker, after its first answer."""
    assert outcomes(pool, ["7"]) == ["correct"]
    return pool._workers[0].process


def waits_for(condition, seconds=30):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


TIMER = """
import time
from equipoise.tasks.workers.limits import CpuTimer

def turning(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"

def swallowing():
    for _ in range(3):
        try:
            turning(10)
        except BaseException:
            pass
    return "swallowed"

timer = CpuTimer()
print(timer.limited(lambda: [time.sleep(1), turning(0.05)][1], 0.3), timer.expired)
begin = time.process_time()
print(timer.limited(lambda: turning(10), 0.3), timer.expired, 0.25 < time.process_time() - begin < 0.6)
print(timer.limited(swallowing, 0.1), timer.expired)
print(timer.limited(lambda: turning(0.05), 0.3), timer.expired)
turning(1)  # nothing rings any more
timer.limited(lambda: sum(range(10**12)), 0.2)  # hears of no signal
"""


@posix
def test_the_timer_of_a_worker_counts_cpu_time_and_ends_what_does_not_listen():
    ended = subprocess.run([sys.executable, "-c", TIMER], capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines() == ["done False", "None True True", "swallowed True", "done False"]
    assert ended.returncode == -signal.SIGVTALRM


@posix
def test_cpu_time_counts_and_not_the_time_that_passes(make):
    pool = make(1, seconds=0.5)
    process = started(pool)
    pause = threading.Timer(0.0, os.kill, (process.pid, signal.SIGSTOP))
    pause.start()
    pause.join()
    threading.Timer(3.0, os.kill, (process.pid, signal.SIGCONT)).start()
    assert outcomes(pool, [r"\boxed{\sqrt{49}}"] * 3) == ["correct"] * 3
    assert pool._workers[0].process is process


@pytest.mark.parametrize("text", [DEAF, LOOP])
def test_what_takes_too_much_cpu_time_is_a_timeout(make, text):
    pool = make(1, seconds=0.5)
    assert outcomes(pool, ["7", text, "7"]) == ["correct", "timeout", "correct"]


@posix
def test_a_worker_that_stands_still_is_replaced_and_its_answer_tried_again(make):
    pool = make(1, seconds=0.3, wall_seconds=1.0)
    process = started(pool)
    os.kill(process.pid, signal.SIGSTOP)
    assert outcomes(pool, ["1", "2", "3"], ["1", "2", "3"]) == ["correct"] * 3
    assert process.poll() == -signal.SIGKILL


@posix
def test_one_that_stands_still_twice_is_a_timeout(make):
    pool = make(1, seconds=0.3, wall_seconds=1.0)
    stopping = _Striker(pool, signal.SIGSTOP, 2)
    started(pool)
    with stopping:
        verdicts = pool.verdicts([LOOP, "7"], [["7"], ["7"]])
    assert verdicts == [Verdict("timeout", "stood still"), Verdict("correct")]


class _Striker:
    """Sends a signal to every new worker of a pool as soon as it works, a number of times."""

    def __init__(self, pool, number, times):
        self.pool, self.number, self.times, self.struck, self.stop = pool, number, times, set(), threading.Event()
        self.thread = threading.Thread(target=self._strike)

    def _strike(self):
        while not self.stop.wait(0.002) and len(self.struck) < self.times:
            for worker in list(self.pool._workers):
                if worker.ready and worker.prepared and worker.pending and worker.process.pid not in self.struck:
                    self.struck.add(worker.process.pid)
                    os.kill(worker.process.pid, self.number)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


@posix
@pytest.mark.parametrize("times", [1, 4])
def test_innocent_answers_of_workers_that_are_killed_are_tried_again(make, times):
    pool = make(1)
    with _Striker(pool, signal.SIGKILL, times) as _:
        texts = [rf"\boxed{{\sqrt{{{n * n}}}}}" for n in range(1, 41)]
        assert outcomes(pool, texts, [str(n) for n in range(1, 41)]) == ["correct"] * 40
    assert set(pool.counts) == {"correct"}


@posix
def test_what_ends_each_worker_that_tries_it_is_an_error_with_the_signal(make):
    pool = make(1, seconds=30)
    started(pool)
    with _Striker(pool, signal.SIGSEGV, 2):
        verdicts = pool.verdicts([DEAF, "7"], [["7"], ["7"]])
    assert verdicts == [Verdict("error", "the worker died 2 times (SIGSEGV)"), Verdict("correct")]


@posix
def test_what_was_tried_before_is_tried_alone(make):
    pool = make(2)
    sent = []
    send = WorkerProcess.send

    def noted(worker, request):
        sent.append((request.index, request.deaths, [other.deaths for other in worker.pending]))
        send(worker, request)

    WorkerProcess.send = noted
    try:
        with _Striker(pool, signal.SIGKILL, 2):
            assert outcomes(pool, [r"\boxed{\sqrt{49}}"] * 40) == ["correct"] * 40
    finally:
        WorkerProcess.send = send
    assert any(deaths for _, deaths, _ in sent)
    assert all(not beside for _, deaths, beside in sent if deaths)
    assert all(not any(beside) for *_, beside in sent)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is kept from inside")
def test_memory_beyond_the_limit_is_an_outcome_of_its_own(make):
    pool = make(1, memory_bytes=2**29, seconds=20)
    assert outcomes(pool, ["7", BOMB, GROWS, "7"]) == ["correct", "memory", "memory", "correct"]


def test_memory_is_watched_from_outside_as_well(make, monkeypatch):
    pool = make(1, seconds=20)
    started(pool)
    monkeypatch.setattr(pool, "memory_bytes", 2**20)
    assert pool.verdicts([DEAF], [["7"]]) == [Verdict("memory", "needs more memory than a worker has")]


def test_cpu_time_is_watched_from_outside_as_well(make, site):
    lacking(site, "import signal; del signal.setitimer")
    pool = make(1, seconds=0.5)
    verdicts = pool.verdicts([DEAF, "7"], [["7"], ["7"]])
    assert [verdict.outcome for verdict in verdicts] == ["timeout", "correct"]
    assert "had to be ended" in verdicts[0].reason


WITHOUT = """
import os, signal, sys
sys.modules["resource"] = None
for name in ("setitimer", "SIGPROF", "SIGVTALRM", "ITIMER_PROF", "ITIMER_VIRTUAL"):
    delattr(signal, name)
for name in ("sched_getaffinity", "set_blocking", "fork", "killpg"):
    delattr(os, name)
sys.platform = "win32" if sys.argv[-1] == "never" else "darwin"
"""


def test_without_timers_limits_and_seccomp_the_answers_are_the_same(make, site):
    lacking(site, WITHOUT)
    pool = make(2, seconds=0.5)
    texts = ["7", "8", "none", DEAF, r"\boxed{\sqrt{49}}"] * 2
    assert outcomes(pool, texts) == ["correct", "wrong", "unparsable", "timeout", "correct"] * 2
    assert pool.walls == ["audit"]


def test_the_number_of_workers_where_nobody_knows_the_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert default_workers() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1


def test_workers_that_cannot_start_are_one_line(make, site):
    lacking(site, "import sys; sys.modules['sympy'] = None")
    with pytest.raises(InputError, match="a worker of math cannot work: ModuleNotFoundError: .*sympy"):
        make(1).verdicts(["7"], [["7"]])


def test_workers_that_die_before_they_are_ready_are_one_line(make, site):
    lacking(site, "import os; os._exit(3)")
    with pytest.raises(InputError, match=rf"{pool_module.MAX_STARTS} in a row died \(exit code 3\)"):
        make(1).verdicts(["7"], [["7"]])


def test_a_worker_knows_nothing_of_the_environment(make, monkeypatch):
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setenv("A_SECRET_TOKEN", "x")
    pool = make(1)
    environment = Path(f"/proc/{started(pool).pid}/environ").read_bytes()
    assert b"A_SECRET_TOKEN" not in environment
    assert b"OMP_NUM_THREADS=1" in environment


def test_what_imitates_an_answer_is_none(make):
    pool = make(1, seconds=1)
    started(pool)
    forged = {"identity": "0" * 16, "outcome": "done", "reason": "", "value": ["correct", ""], "retire": False}

    def forge():
        for _ in range(3):
            time.sleep(0.05)
            for worker in list(pool._workers):
                pool._events.put((worker, forged))

    thread = threading.Thread(target=forge)
    thread.start()
    verdicts = pool.verdicts([DEAF, r"\boxed{\sqrt{64}}", r"\boxed{\sqrt{49}}"], [["7"]] * 3)
    thread.join()
    assert [verdict.outcome for verdict in verdicts][1:] == ["wrong", "correct"]
    assert verdicts[0].outcome in ("timeout", "error")


def test_text_on_standard_output_is_no_answer(make, site):
    lacking(
        site,
        """
quiet = judged
def judged(payload):
    print('{"identity": "0"}', flush=True)
    return quiet(payload)
""",
    )
    assert outcomes(make(1), ["7", "8"]) == ["correct", "wrong"]


def test_two_threads_share_a_pool(make):
    pool, results = make(2), queue.SimpleQueue()

    def verify(n):
        results.put((n, outcomes(pool, [rf"\boxed{{\sqrt{{{n * n}}}}}"] * 20, [str(n)] * 20)))

    threads = [threading.Thread(target=verify, args=(n,)) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {results.get_nowait()[0] for _ in threads} == {3, 4}
    assert pool.counts == {"correct": 40}


@posix
def test_nothing_is_left_of_a_pool_that_is_closed(make):
    pool = make(2)
    outcomes(pool, ["7"] * 20)
    workers = list(pool._workers)
    pool.close()
    for worker in workers:
        waits_for(lambda worker=worker: worker.process.poll() is not None)
    waits_for(lambda: all(w.process.stdin.closed and w.process.stdout.closed for w in workers))


@pytest.mark.parametrize(("code", "text"), [(3, "exit code 3"), (-9, "SIGKILL"), (-1000, "signal 1000")])
def test_how_a_process_ended(code, text):
    assert how_it_ended(code) == text
