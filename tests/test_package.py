"""What `import equipoise` loads, what it offers, and that imports run one way."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import equipoise

SOURCE = Path(equipoise.__file__).parent
HOSTS = ["transformers", "trl", "verl", "triton", "accelerate", "datasets"]
HOUSE = SOURCE.parents[1] / "docs" / "house.md"

ORDER = [
    {
        "errors",
        "types",
        "files",
        "inputs",
        "interrupts",
        "paths",
        "plain_data",
        "progress",
        "redaction",
        "splitmix",
        "user_modules",
    },
    {"statistics"},
    {"ratios", "clipping", "polarity", "balance", "entropy_control", "aggregation"},
    {"objectives"},
    {"controllers"},
    {"rollouts"},
    {"tasks"},
    {"settings"},
    {"steering"},
    {"diagnostics"},
    {"models"},
    {"trl", "verl"},
    {"commands"},
    {"cli", "__main__"},
]
ALLOWED = {
    "trl": {"trl"},
    "verl": {"verl"},
    "accelerate": {"trl", "verl"},
    "transformers": {"models", "trl", "verl"},
    "datasets": {"tasks", "settings", "models", "trl", "verl", "commands"},
    "triton": {"statistics"},
    "tensordict": {"verl"},
    "omegaconf": {"verl"},
    "ray": {"verl"},
}
"""Host library -> the rooms that may import it, at any depth of nesting."""

MODULES = sorted(SOURCE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST_FUNCTION = 60
"""Lines from `def` to the end, docstring included."""

RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
ROOT = "__init__"
RANK[ROOT] = RANK["controllers"]  # the package itself offers the core and no more


@pytest.mark.slow
@pytest.mark.parametrize("room", ["", ".settings", ".steering", ".diagnostics"])
def test_import_loads_no_host(room):
    modules = [".".join(["equipoise", *p.relative_to(SOURCE).with_suffix("").parts]) for p in MODULES]
    own = [name for name in modules if room and f"{name}.".startswith(f"equipoise{room}.") and "__init__" not in name]
    hosts = [host for host in HOSTS if host != "datasets" or room != ".settings"]  # tasks are data sets
    code = f"import sys, equipoise{room}\nfor name in {own}: __import__(name)\n"
    code += f"print([m for m in {hosts} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", equipoise.__all__)
def test_every_public_name_exists_and_is_documented(name):
    documentation = getattr(equipoise, name).__doc__
    assert documentation
    # A dataclass or named tuple without a docstring is given its signature as one.
    assert not documentation.startswith(f"{name}(")


def test_public_names_are_sorted_and_unique():
    assert equipoise.__all__ == sorted(set(equipoise.__all__))


def room_of(path):
    """The room a module of the package belongs to: its first folder, or its own name."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_modules(tree, package):
    """Full dotted names of everything a module imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    """The rooms of equipoise that a module imports from; the package's own names count as its root."""
    package = ["equipoise", *path.relative_to(SOURCE).parts[:-1]]
    for name in imported_modules(ast.parse(path.read_text()), package):
        first, *rest = name.split(".")
        if first == "equipoise":
            is_module = rest and ((SOURCE / rest[0]).is_dir() or (SOURCE / f"{rest[0]}.py").is_file())
            yield rest[0] if is_module else ROOT


CORE = [path for path in MODULES if RANK.get(room_of(path), len(ORDER)) <= RANK[ROOT]]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    assert room in RANK, f"{room} has no place in the import order"
    backward = {other for other in imported_rooms(path) if RANK[other] > RANK[room]}
    assert not backward


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_host_is_imported_in_its_rooms_only(path):
    imported = {name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()), ["equipoise"])}
    assert not {host for host in imported & set(ALLOWED) if room_of(path) not in ALLOWED[host]}


def functions_of(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_function_fits_on_a_screen(path):
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions_of(path)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_adapters_never_import_each_other():
    for path in MODULES:
        if (room := room_of(path)) in ("trl", "verl"):
            assert not set(imported_rooms(path)) & ({"trl", "verl"} - {room}), path


def test_the_drawing_of_the_house_shows_the_imports_there_are():
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", HOUSE.read_text(encoding="utf-8"), re.MULTILINE))
    rooms = {room for edge in drawn for room in edge}
    found = {(room_of(path), other) for path in MODULES for other in imported_rooms(path)}
    below = ORDER[0] | {ROOT, "__main__"}  # what everything imports, and what nothing does
    found = {(a, b) for a, b in found if a != b and not {a, b} & below}
    group = dict.fromkeys(ORDER[2] | ORDER[3], "mathematics")
    found = {(group.get(a, a), group.get(b, b)) for a, b in found}
    found = {(a, b) for a, b in found if a != b}
    assert rooms
    assert drawn == found


def test_import_order_sees_imports():
    assert set(imported_rooms(SOURCE / "objectives.py")) >= {"clipping", "ratios", "types"}
    assert "types" in set(imported_rooms(SOURCE / "statistics" / "dense.py"))
    tree = ast.parse("def f():\n    from ..cli import main\n    from . import linear\n    import trl.trainer")
    found = set(imported_modules(tree, ["equipoise", "statistics"]))
    assert found == {"equipoise.cli.main", "equipoise.statistics.linear", "trl.trainer"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(SOURCE)))
def test_core_imports_no_host_even_when_called(path):
    imported = {name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()), ["equipoise"])}
    assert not imported & set(HOSTS) - {"triton"}  # kernels may load triton when they are called


def test_extras_can_be_installed_by_the_names_that_are_told():
    """Without underscores: the pip of Python 3.11 does not find an extra that has one."""
    top = Path(__file__).parents[1]
    extras = tomllib.loads((top / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not [name for name in extras if "_" in name]
    places = [*SOURCE.rglob("*.py"), *top.glob("docs/**/*.md"), *top.glob("recipes/**/*.*"), *top.glob("*.md")]
    told = {
        extra
        for path in [*places, top / "Makefile"]
        for names in re.findall(r"(?:\bequipoise|[\"' ]\.)\[([a-z][\w,-]*)\]", path.read_text())
        for extra in names.split(",")
    }
    assert {"peft", "reasoning-gym", "real-model"} <= told <= set(extras)
