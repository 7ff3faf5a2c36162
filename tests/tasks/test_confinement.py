"""What a worker may not do: tried as Python, without the closed parser before it, against each wall alone and both."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.tasks.workers import seccomp

SCRIPT = Path(__file__).with_name("walled_process.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's wall is Linux's")
WALLS = [
    pytest.param(walls, marks=linux if "seccomp" in walls else ()) for walls in ("audit", "seccomp", "audit,seccomp")
]

ACTIONS = [
    "open('made', 'w')",
    "open('kept', 'a').write('more')",
    "open('kept', 'r+').write('more')",
    "open('made', 'xb')",
    "import pathlib; pathlib.Path('made').write_text('x')",
    "import pathlib; pathlib.Path('made').touch()",
    "import os; os.open('made', os.O_CREAT | os.O_WRONLY)",
    "import os; os.remove('kept')",
    "import os; os.rename('kept', 'made')",
    "import os; os.mkdir('made')",
    "import os; os.symlink('kept', 'made')",
    "import os; os.link('kept', 'made')",
    "import os; os.chmod('kept', 0)",
    "import os; os.truncate('kept', 0)",
    "import os; os.utime('kept', (0, 0))",
    "import shutil; shutil.copy('kept', 'made')",
    "import shutil; shutil.rmtree('folder')",
    "import tempfile; tempfile.TemporaryFile(dir='.')",
    "import numpy; numpy.save('made.npy', numpy.ones(3))",
    "import numpy; numpy.ones(3).tofile('made')",
    "import numpy; numpy.memmap('made', mode='w+', shape=3)",
    "import sqlite3; sqlite3.connect('made').execute('create table t (x)')",
    "import ctypes; assert ctypes.CDLL(None).creat(b'made', 511) >= 0",
    "import os; assert os.system('touch made') == 0",
    "import subprocess; subprocess.run(['touch', 'made'], check=True)",
    "import os; os.popen('touch made').read()",
    "import os; os.posix_spawn('/bin/touch', ['touch', 'made'], {})",
    "import os; os.execv('/bin/touch', ['touch', 'made'])",
    "import os\nif os.fork() == 0:\n os._exit(0)",
    "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    "import threading; threading.Thread(target=print).start()",
    "import _thread; _thread.start_new_thread(print, ())",
    "from concurrent.futures import ThreadPoolExecutor as T; T().submit(print)",
    "import os; os.kill(os.getppid(), 0)",
    "import os, signal; os.kill(os.getppid(), signal.SIGCONT)",
    "import os; os.killpg(os.getpgid(os.getppid()), 0)",
    "import socket; socket.create_connection(('127.0.0.1', PORT))",
    "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "import socket; socket.socketpair()",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT/')",
]
READING = [
    "open('kept').read()",
    "open('/etc/passwd').read()",
    "import os; os.open('kept', os.O_RDONLY)",
    "import os; os.listdir('.')",
    "import pathlib; pathlib.Path('kept').read_text()",
    "import numpy; numpy.loadtxt('kept')",
    "open(0).read()",
    "import gc; gc.get_objects()",
    "import sys; sys._current_frames()",
    "import sys; sys.addaudithook(print)",
    "import pickle; pickle.loads(b'cos\\nsystem\\n(S\"x\"\\ntR.')",
]
HARMLESS = [
    "sum(range(1000))",
    "import fractions, decimal, statistics, zoneinfo",
    "import sympy; assert sympy.sqrt(8) == 2 * sympy.sqrt(2)",
    "import numpy; assert numpy.linalg.det(numpy.eye(3)) == 1",
    "import tomllib",
    "import random; random.SystemRandom().random()",
    "print('into nothing')",
    "import re; re.compile('a(b)')",
    "assert (2**4000).bit_length() == 4001",
]


def tried(tmp_path, walls, snippets):
    """Outcome of each snippet in a process of its own within the walls, tried in a folder with a file and a folder."""
    folder = tmp_path / "work"
    (folder / "folder").mkdir(parents=True)
    (folder / "kept").write_text("1")
    before = sorted((path.name, path.stat().st_mode, path.stat().st_mtime) for path in folder.rglob("*"))
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    command = [sys.executable, "-P", "-B", str(SCRIPT), walls, str(tmp_path / "snippets.json")]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(snippets), ended.stderr[-2000:]
    after = sorted((path.name, path.stat().st_mode, path.stat().st_mtime) for path in folder.rglob("*"))
    assert after == before
    assert (folder / "kept").read_text() == "1"
    return lines


@pytest.mark.parametrize("walls", WALLS)
def test_nothing_outside_the_process_changes(tmp_path, walls):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        results = tried(tmp_path, walls, [snippet.replace("PORT", str(port)) for snippet in ACTIONS])
        for sock in (server, datagrams):
            sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()
        with pytest.raises(TimeoutError):
            datagrams.recv(1)
    assert [snippet for snippet, outcome, *_ in results if outcome == "done"] == []
    if walls == "audit":  # the kernel may come first, and takes no notes
        assert [snippet for snippet, _, refusals, was_needed in results if not (refusals and was_needed)] == []


@pytest.mark.parametrize("walls", ["audit", pytest.param("audit,seccomp", marks=linux)])
def test_files_are_not_read_and_the_walls_not_looked_behind(tmp_path, walls):
    results = tried(tmp_path, walls, READING)
    assert [snippet for snippet, _, refusals, _ in results if not refusals] == []  # no error for sys.addaudithook


@pytest.mark.parametrize("walls", WALLS)
def test_computing_goes_on_within_the_walls(tmp_path, walls):
    results = tried(tmp_path, walls, HARMLESS)
    assert [(outcome, refusals) for _, outcome, refusals, _ in results] == [("done", [])] * len(HARMLESS)


@linux
def test_the_numbers_of_system_calls_are_those_of_the_headers():
    headers = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}
    for column, path in headers.items():
        if not path.exists():
            pytest.skip(f"{path} is not installed")
        found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text()))
        if column == 1:
            found["newfstatat"] = found["fstatat"]
        numbers = {name: both[column] for name, both in seccomp._ALLOWED.items()}
        numbers |= {name: both[column] for name, (both, _) in seccomp._OPENING.items()}
        assert {name: int(found[name]) for name, number in numbers.items() if number is not None} == {
            name: number for name, number in numbers.items() if number is not None
        }
