r"""The process that runs math-verify on text that a model wrote: started as a script, told what to do through a pipe.

It imports nothing of equipoise, so that it starts in a fraction of a second and has little memory of its own. One JSON
object per line on standard input, {"id", "text", "golds", "seconds"}; one per line on standard output, {"id",
"outcome", "reason"}, the first of which has no id and says that the process is ready. Its memory and the time for each
answer are limited here as far as Python can interrupt itself; whoever started it kills it when that is not enough.
"""

import functools
import importlib.util
import json
import logging
import pathlib
import resource
import signal
import sys
import types


class _OutOfTimeError(BaseException):
    """Raised by the timer; no `except Exception` on the way may swallow it."""


def main(memory_bytes: int) -> None:
    """Answer requests until the pipe is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is trained
    signal.signal(signal.SIGALRM, _out_of_time)
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not get between the answers
    _mathematics().warm()  # the first answer imports and builds what all need, and takes as long
    out.write(json.dumps({"id": None}) + "\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        outcome, reason = _judged(request)
        out.write(json.dumps({"id": request["id"], "outcome": outcome, "reason": reason}) + "\n")
        out.flush()


def _out_of_time(number, frame):
    raise _OutOfTimeError


def _judged(request: dict) -> tuple[str, str]:
    try:
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        try:
            return _mathematics().verdict(request["text"], request["golds"])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTimeError:
        return "timeout", f"took longer than {request['seconds']:g} s"
    except Exception as error:
        return "error", _described(error)


def _described(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "needs more memory than a worker has"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@functools.cache
def _mathematics() -> types.ModuleType:
    """The package that judges, loaded by its place: by its name it would bring all of equipoise."""
    folder = pathlib.Path(__file__).with_name("mathematics")
    spec = importlib.util.spec_from_file_location(
        "mathematics_of_answers", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(int(sys.argv[1]))
