"""Commands in processes of their own, which can be killed: forked from one that has imported everything.

A process can be told to kill itself with the N-th change that it makes to the files of a folder, so that every moment
of writing can be met. Changes are what the audit hooks see: a file opened to write, a name made, changed or removed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NAMES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}


def context() -> Any:
    """Where processes come from; the first one takes the seconds of all imports."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["equipoise.trl.run", "equipoise.commands.train", "equipoise.commands.evaluate"])
    return forkserver


def start(arguments: list[str], place: Path, *, watched: str = "run", kill_at: int | None = None) -> Any:
    """A process that runs `equipoise ARGUMENTS` in `place`; its output is in place/output, its changes are counted.

    Args:
        arguments: of the command line.
        place: its current directory.
        watched: the folder in `place` whose changes are counted.
        kill_at: the change, from 1, in place of which the process is killed.
    """
    process = context().Process(target=_command, args=(arguments, str(place), watched, kill_at))
    process.start()
    return process


def run(arguments: list[str], place: Path, **options: Any) -> int:
    """The exit code of a command, negative for a signal."""
    process = start(arguments, place, **options)
    process.join(120)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"did not end: {output(place)}")
    return process.exitcode


def output(place: Path) -> str:
    """What the last command said, on either stream."""
    return (place / "output").read_text()


def changes(place: Path) -> int:
    """Changes that the last command made, if it came to its end."""
    return int((place / "changes").read_text())


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Until it holds.

    Raises:
        AssertionError: it never does.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def _command(arguments: list[str], place: str, watched: str, kill_at: int | None) -> None:
    os.chdir(place)
    file = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    for number in (signal.SIGINT, signal.SIGTERM):  # the fork server ignores them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    counted = _counted(str(Path(place, watched).resolve()), kill_at)
    from equipoise.cli import main

    code = main(arguments)
    Path("changes").write_text(str(counted[0]))
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    sys.exit(code)


def _counted(folder: str, kill_at: int | None) -> list[int]:
    count = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (flags or 0) & WRITING:
                return
        elif event in NAMES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(folder):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count
