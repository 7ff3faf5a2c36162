"""Wheels that travel with the script: those that the machine lacks are put in a folder of the output, nothing else.

What is installed stays, unless its version is outside the range that equipoise needs. torch and triton are never
touched: their builds belong to the driver.
"""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.tags import sys_tags
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

from on_a_gpu_parts.records import ROOT

NEVER = {"torch", "triton"}


def install(wheels: Path, site: Path) -> list[str]:
    """Put missing packages into `site`; returns what was done, in lines.

    Raises:
        SystemExit: no wheels there, or pip refuses.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"--wheels {wheels}: no *.whl there (make wheels)")
    wanted, said = choose(found)
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", "--upgrade", "--target", str(site), *map(str, wanted)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"--wheels {wheels}: pip could not install them")
    return said


def choose(found: list[Path]) -> tuple[list[Path], list[str]]:
    """Wheels to install, and a line on each that is not a matter of course."""
    tags, ranges = set(sys_tags()), own_ranges()
    wanted, said = {}, []
    for path in found:
        name, _, _, wheel_tags = parse_wheel_filename(path.name)
        present = installed(name)
        if name in NEVER or (present and (name not in ranges or ranges[name].contains(present, prereleases=True))):
            continue
        if not tags & set(wheel_tags):
            said.append(f"{path.name} does not fit this Python ({sys.version.split()[0]}): left out")
        elif name in wanted:
            said.append(f"{path.name}: a second wheel of {name}, left out")
        else:
            wanted[name] = path
            said.append(f"{path.name} installed" + (f" beside {present}" if present else ""))
    return list(wanted.values()), said


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def own_ranges() -> dict:
    """The versions that equipoise needs, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in needed}
