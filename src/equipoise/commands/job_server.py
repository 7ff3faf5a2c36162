"""The parent of the processes of `side_by_side`: it imports everything once, and forks a process for each job.

`python -P job_server.py PATH MODULE …` is run as a script, and imported by nobody; PATH is `sys.path` as JSON. Requests
come as lines of plain data (`equipoise.plain_data`) on its standard input: {"name", "function": "module:function",
"folder", "arguments", "log", "path", "cwd"}. For each it writes {"name", "code"} once the process has ended. When the
input ends, so do all processes.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

POLL_SECONDS = 0.1


def main(path: str, *modules: str) -> None:
    """Serve until the input ends; in a forked process, do its job."""
    sys.path[:] = json.loads(path)
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the processes, and for who has started this one
    for module in modules:
        importlib.import_module(module)
    job = _serve(answers)
    if job is not None:
        _work(job)


def _serve(answers: int) -> dict[str, Any] | None:
    """The job that this process has been forked for; None in the parent, when all is done."""
    from equipoise import plain_data

    running: dict[int, str] = {}
    for line in _lines():
        for number, code in _ended(running):
            os.write(answers, plain_data.written({"name": running.pop(number), "code": code}).encode() + b"\n")
        if line is None:
            continue
        job = plain_data.read(line)
        child = os.fork()
        if not child:
            os.close(answers)
            return job
        running[child] = job["name"]
    for child in running:
        os.kill(child, signal.SIGTERM)
    for child in running:
        os.waitpid(child, 0)
    return None


def _lines() -> Iterator[bytes | None]:
    """The lines of the input, and None whenever nothing has come for a while."""
    begun = b""
    while True:
        if not select.select([0], [], [], POLL_SECONDS)[0]:
            yield None
            continue
        chunk = os.read(0, 2**16)
        if not chunk:
            return
        *whole, begun = (begun + chunk).split(b"\n")
        yield from whole


def _ended(running: dict[int, str]) -> Iterator[tuple[int, int]]:
    for child in list(running):
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            yield number, os.waitstatus_to_exitcode(status)


def _work(job: dict[str, Any]) -> None:
    """Do a job, with everything that is printed in its log; what it raises ends this process as it would any other."""
    from equipoise import user_modules
    from equipoise.errors import InputError
    from equipoise.interrupts import Interrupted
    from equipoise.redaction import log_to_stderr, without_secrets

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["cwd"])  # first: the log's path is relative to it, and the server may have begun elsewhere
    _redirect(job["log"])
    log_to_stderr()
    sys.path[:] = job["path"]
    module, _, function = job["function"].partition(":")
    with user_modules.kept():
        try:
            getattr(importlib.import_module(module), function)(job["folder"], *job["arguments"])
        except InputError as error:
            print(f"equipoise: {without_secrets(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
            sys.exit(2)
        except Interrupted as error:
            print(f"equipoise: {error}", file=sys.stderr, flush=True)
            sys.exit(128 + error.signal)


def _redirect(log: str) -> None:
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for source, number in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, number)
    for source in (nothing, file):
        os.close(source)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # who has started this one has ended
        main(*sys.argv[1:])
