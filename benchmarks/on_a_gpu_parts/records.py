"""Files of the parts: figures that are written at once, and what they were measured with."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch", "triton", "trl", "transformers", "accelerate", "liger-kernel", "nvidia-cutlass-dsl", "verl", "datasets",
    "numpy",
)  # fmt: skip
SAME = ("commit", "sources", "device", "small")
"""What must be equal for a part not to be measured again."""


class Plan(NamedTuple):
    """How a part is to be measured.

    Attributes:
        part: its name.
        model: the shape it is about, or "".
        small: tiny shapes.
        end: `time.monotonic()` by which it should have stopped.
        device: "cuda" or "cpu".
        folder: a scratch folder of its own.
        real_model: a model folder of the user, or None.
    """

    part: str
    model: str
    small: bool
    end: float
    device: str
    folder: Path
    real_model: Path | None = None


class Figures:
    """Rows of a part, in its file after each: what was measured before a crash is not lost."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.notes = path, [], []

    def add(self, **row: Any) -> None:
        """One more row, kept at once."""
        self.rows.append(row)
        self.save()

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Rows that sum up more measurements than those before."""
        self.rows = rows
        self.save()

    def note(self, text: str) -> None:
        """A word on what was not measured, or how."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)
            self.save()

    def save(self) -> None:
        """Write what is there."""
        write_json(self.path, {"rows": self.rows, "notes": self.notes})


def write_json(path: Path, value: Any) -> None:
    """All of it or nothing: written beside its place and renamed."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What stands there; nothing where there is no such file or it is no JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def setting(small: bool, commit: str | None) -> dict[str, Any]:
    """Device, versions and code. Makes a context on the device: call it in a process that ends soon."""
    import torch

    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "kind": "cuda" if gpu else "cpu",
        "small": small,
        "commit": commit or git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain")) if git("rev-parse", "HEAD") else None,
        "sources": digest_of_sources(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "driver": driver(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found


def driver() -> str:
    """Version of the driver, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def git(*words: str) -> str:
    """What git answers, or "" where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def digest_of_sources() -> str:
    """Of the code that is measured: a changed file is measured anew, also where there is no git."""
    digest = hashlib.sha256()
    for folder in ("src", "benchmarks", "tests/statistics"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
