"""Each name of a host that it does not promise to keep is there, as it was when it was written down."""

import ast
import functools
import importlib
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import Trainer
from trl import GRPOTrainer

import equipoise
from equipoise.trl.private_names import ATTRIBUTES, METHODS
from equipoise.trl.trainer import EquipoiseTrainer

ADAPTER = Path(equipoise.__file__).parent / "trl"
LISTED = {entry.name for entry in (*METHODS, *ATTRIBUTES)}


def owner_of(entry):
    module, _, name = entry.owner.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_a_method_belongs_to_its_owner_and_takes_what_it_took(entry):
    method = vars(owner_of(entry))[entry.name]
    assert tuple(inspect.signature(method).parameters)[1:] == entry.parameters
    assert issubclass(GRPOTrainer, owner_of(entry))


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_what_is_overridden_is_overridden(entry):
    ours = getattr(EquipoiseTrainer, entry.name)
    assert (ours is not getattr(GRPOTrainer, entry.name)) == entry.use.startswith("overridden")


@pytest.mark.parametrize("entry", ATTRIBUTES, ids=lambda entry: f"{entry.owner.partition(':')[2]}.{entry.name}")
def test_an_attribute_is_assigned_by_its_owner(entry):
    owner = owner_of(entry)
    fields = getattr(owner, "__dataclass_fields__", {})
    assert entry.name in fields or re.search(rf"\bself\.{entry.name}\b\s*(:[^=\n]+)?=[^=]", inspect.getsource(owner))


@functools.cache
def private_names_of_hosts():
    """What the trainers of both hosts define or assign under a private name."""
    source = inspect.getsource(GRPOTrainer) + inspect.getsource(Trainer)
    assigned = set(re.findall(r"\bself\.(_[a-z]\w*)", source))
    return assigned | {name for name in dir(GRPOTrainer) if re.match("_[a-z]", name)}


def private_names_used(path):
    """Attributes read, set or called, and methods defined, under a private name."""
    tree = ast.parse(path.read_text())
    methods = [node for each in ast.walk(tree) if isinstance(each, ast.ClassDef) for node in each.body]
    names = {node.name for node in methods if isinstance(node, ast.FunctionDef)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in names if re.match("_[a-z]", name)}


@pytest.mark.parametrize("path", sorted(ADAPTER.glob("*.py")), ids=lambda path: path.name)
def test_no_private_name_of_a_trainer_is_used_that_is_not_listed(path):
    assert not (private_names_used(path) & private_names_of_hosts()) - LISTED


def test_every_listed_name_is_used():
    used = "\n".join(path.read_text() for path in ADAPTER.glob("*.py") if path.name != "private_names.py")
    assert {name for name in LISTED if not re.search(rf"\b{name}\b", used)} == set()


@pytest.mark.parametrize("host", ["trl", "transformers", "accelerate"])
def test_hosts_have_an_upper_bound_that_the_tested_version_is_just_below(host):
    """The next minor version may move any of these names."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (requirement,) = [r for r in map(Requirement, project["dependencies"]) if r.name == host]
    major, minor, *_ = version(host).split(".")
    assert requirement.specifier.contains(version(host))
    assert not requirement.specifier.contains(f"{major}.{int(minor) + 1}.0")
