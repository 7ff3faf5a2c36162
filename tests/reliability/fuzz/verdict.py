"""What must hold of every input, whatever is in it.

A command ends within its time with 0,
or with 2 and one line that names what cannot be used; `doctor` and `compare` also
with 1. It raises nothing, changes no input, leaves nothing half-written and nothing running.
"""

import hashlib
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.trl.keys import known_keys

ONE = ("doctor", "compare")
"""Commands that end with 1 when they have found something."""

READERS = ("doctor", "plan")
"""Commands that write nothing."""

LONGEST_LINE = 2000
"""Characters of a refusal."""


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        words: of the command line.
        code: what `main` returned; None where it raised.
        begun: it passed every check and was stopped where the work begins.
        output: on stdout.
        error: on stderr.
        raised: the exception and its place, "" where there was none.
        traceback: of it.
        before: what lay in the folder before, by path.
        after: and what lies there now.
        works: it may change what it was given, as a run that goes on.
        running: names of threads and processes that are left.
    """

    words: list[str]
    code: int | None = None
    begun: bool = False
    output: str = ""
    error: str = ""
    raised: str = ""
    traceback: str = ""
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    works: bool = False
    running: list[str] = field(default_factory=list)


def problems(ended: Ended) -> list[str]:
    """What does not hold, each in a few words that are equal where the cause is."""
    return [*_said(ended), *_left(ended), *(f"left running: {name.rpartition(' ')[0]}" for name in ended.running)]


def _said(ended: Ended) -> list[str]:
    if ended.raised:
        return [f"raised {ended.raised}"]
    found = []
    if "Traceback (most recent call last)" in ended.error + ended.output:
        found.append("printed a traceback")
    if ended.begun or ended.code == 0:
        return found
    command = ended.words[0] if ended.words else ""
    if ended.code == 1 and command in ONE:
        return found
    if ended.code != 2:
        return [*found, f"exit code {ended.code}"]
    lines = [line for line in ended.error.split("\n") if line.startswith("equipoise: ")]
    if len(lines) != 1:
        return [*found, f"exit code 2 with {len(lines)} lines that say why"]
    if len(lines[0]) > LONGEST_LINE:
        found.append("a refusal that is no line any more: its length")
    if not lines[0].isprintable():
        found.append("a refusal with control characters")
    if not _names(lines[0], ended):
        found.append(f"a refusal that names nothing that was given: {re.sub(r'[0-9]+', 'N', lines[0])[:120]}")
    return found


def _names(line: str, ended: Ended) -> bool:
    """Whether a refusal names a word of the command line, a flag of its command, a key or a file that was given."""
    if re.search(r"--[a-z_]+|flag [a-z_]+ must|\brequired\b|give a command", line):
        return True
    pieces = {
        piece
        for word in ended.words
        for piece in (word, *word.partition("=")[::2], *re.split(r"[?&=:]", word))
        if piece.strip()
    }
    given = {" ".join(piece.split()) for piece in pieces} | {Path(p).name for p in ended.before}
    if any(_stands_in(line, form) for name in given for form in (name, repr(name)[1:-1], repr(name)[1:30])):
        return True
    return not known_keys().keys().isdisjoint(re.findall(r"\w+", line))


def _stands_in(line: str, name: str) -> bool:
    """Whether the line holds the name; one of a single character as a word of its own."""
    return name in line if len(name) > 1 else bool(name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", line))


def _left(ended: Ended) -> list[str]:
    found = []
    forced = any(word.startswith(("--force", "--f")) for word in ended.words)
    for path, was in ended.before.items():
        now = ended.after.get(path)
        if now != was and was != "folder" and not (forced and now) and not (ended.works and ended.code == 0):
            found.append(f"input {'removed' if now is None else 'changed'}: {_shape(path)}")
    new = sorted(set(ended.after) - set(ended.before))
    parts = [path for path in new if path.endswith(".part") or ".part/" in path]
    found += [f"left half-written: {_shape(path)}" for path in parts]
    command = ended.words[0] if ended.words else ""
    wrote = ended.begun or (ended.code in (0, 1) and command not in READERS)
    whole = {path for path in new if path not in parts and (not wrote or path.startswith("tmp/"))}
    found += [f"left behind: {_shape(path)}" for path in sorted(whole) if os.path.dirname(path) not in whole]
    return list(dict.fromkeys(found))


def _shape(path: str) -> str:
    """The path without what differs from input to input."""
    return re.sub(r"[0-9]+", "N", path if len(path) < 60 else path[:60] + "…")


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> what is there: folder, link and where to, pipe, or a checksum of the content."""
    found = {}
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(base, name)
            found[os.path.relpath(path, folder)] = _content(path)
    return found


def _content(path: str) -> str:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        return "special"
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=12).hexdigest()


SERVANTS = ("/tasks/workers/start.py", "multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes that end with the one they serve."""


def running() -> set[str]:
    """Threads of Python that hinder the end of the process, and its child processes, each with its number."""
    threads = {f"thread {t.name} {t.ident}" for t in threading.enumerate() if not t.daemon}
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = {pid: _command_line(pid) for pid in children}
    return threads | {f"process {line} {pid}" for pid, line in lines.items() if not any(s in line for s in SERVANTS)}


def _command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "that has ended since"
