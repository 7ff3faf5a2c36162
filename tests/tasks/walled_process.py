"""Run by test_confinement.py: tries one thing after another within the walls named, and prints what came of each.

python walled_process.py WALL,WALL SNIPPETS.json
"""

# Everything that a snippet may use is loaded before: only what it does is to be refused.
import concurrent.futures.thread
import ctypes
import importlib.util
import json
import multiprocessing.popen_fork
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy

USED = (concurrent, ctypes, multiprocessing, shutil, socket, sqlite3, subprocess, tempfile, threading, urllib, numpy)

spec = importlib.util.find_spec("equipoise")
start = Path(spec.submodule_search_locations[0]) / "tasks" / "workers" / "start.py"
starting = importlib.util.spec_from_file_location("start", start)
module = importlib.util.module_from_spec(starting)
starting.loader.exec_module(module)
module.make_packages_bare()

from equipoise.tasks.workers import limits, seccomp  # noqa: E402
from equipoise.tasks.workers.confinement import Confinement  # noqa: E402

walls, snippets = sys.argv[1].split(","), json.loads(Path(sys.argv[2]).read_text())
out = os.fdopen(os.dup(1), "w")
confinement = Confinement()
if "audit" not in walls:
    assert seccomp.forbid_all_but_computing()
else:
    if "seccomp" not in walls:
        seccomp.forbid_all_but_computing = lambda: False
        limits.forbid_growing_files = lambda: None
    assert confinement.begin() == walls
for snippet in snippets:
    confinement.forget()
    try:
        exec(snippet, {"__name__": "snippet"})
        outcome = "done"
    except BaseException as error:
        outcome = type(error).__name__
    out.write(json.dumps([snippet, outcome, confinement.refusals, confinement.was_needed]) + "\n")
    out.flush()
os._exit(0)
