"""One place for the names of a run folder's files, and for what a host calls its metrics."""

import ast
import json
from pathlib import Path

import pytest
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

import equipoise
from equipoise.diagnostics import metric_names, run_folder
from equipoise.diagnostics.runs import read_log, read_run
from equipoise.errors import InputError

SOURCE = Path(equipoise.__file__).parent
FILES = {value for name, value in vars(run_folder).items() if name.endswith(("_FILE", "_MARKER"))}
HOST_METRICS = {name for names in metric_names.HOSTS.values() for name in names.values()}
ALSO_SETTINGS = {"learning_rate", "reward", "entropy"}  # words that are keys or columns too


def strings(path):
    """The strings of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation)
    return {node.value for node in constants if isinstance(node.value, str)}


def modules(*rooms):
    return [path for room in rooms for path in sorted((SOURCE / room).rglob("*.py"))]


@pytest.mark.parametrize("path", modules("."), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_spells_the_name_of_a_file(path):
    if path.name != "run_folder.py":
        assert not strings(path) & FILES


@pytest.mark.parametrize("path", modules("diagnostics", "commands"), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_diagnostic_reads_a_name_of_a_host(path):
    if path.name != "metric_names.py":
        assert not strings(path) & (HOST_METRICS - ALSO_SETTINGS)


def test_checkpoints_are_found_in_their_order_and_by_the_name_that_transformers_gives(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    folders = run_folder.checkpoint_folders(tmp_path)
    assert folders == [run_folder.checkpoint_folder(tmp_path, update) for update in (9, 10)]
    assert folders[0].name == f"{PREFIX_CHECKPOINT_DIR}-9"


def test_processes_do_not_share_their_files_of_a_checkpoint():
    names = [of_rank(rank) for of_rank in (run_folder.rollout_file, run_folder.replay_file) for rank in range(3)]
    assert len(set(names)) == 6


def test_a_run_folder_is_read_with_our_names_beside_those_of_its_host(tmp_path):
    lines = [{"update": 1, "grad_norm": 0.5, "equipoise/entropy": 1.0}, {"update": 2, "grad_norm": None, "reward": 0.0}]
    (tmp_path / run_folder.METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_run(tmp_path).metrics
    assert first == lines[0] | {metric_names.GRADIENT_NORM: 0.5}
    assert second == lines[1] | {metric_names.GRADIENT_NORM: None, metric_names.REWARD: 0.0}


def test_what_is_logged_by_our_name_is_not_overwritten():
    line = {metric_names.REWARD: 1.0, "reward": 2.0}
    assert metric_names.translated(line) == line


def verls_log(folder, *steps):
    """What verl's file logger writes: a line per step, with its prefix before every scalar of a worker."""
    path = folder / "run.jsonl"
    path.write_text("".join(json.dumps({"step": n, "data": data}) + "\n" for n, data in enumerate(steps, start=1)))
    return path


def test_verls_own_log_is_read_with_our_names(tmp_path):
    record = read_log(
        verls_log(tmp_path, {"actor/equipoise/entropy": 1.5, "actor/lr": 1e-6, "critic/score/mean": 0.25}, {"x": 1})
    )
    first, second = record.metrics
    assert (first["update"], second["update"]) == (1, 2)
    assert first["equipoise/entropy"] == 1.5
    assert "actor/equipoise/entropy" not in first
    assert (first[metric_names.LEARNING_RATE], first[metric_names.REWARD]) == (1e-6, 0.25)


def test_a_run_folders_own_lines_are_read_from_the_file_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"update": 3, "equipoise/entropy": 1.0}\n')
    assert read_log(tmp_path / "a.jsonl").metrics == [{"update": 3, "equipoise/entropy": 1.0}]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1]\n", "line 1"),
        ('{"step": 1, "data": {"actor/equipoise/entropy": 1.0}}\n{"step": 2}\n', "line 2"),
        ('{"step": 1, "data": 5}\n', "line 1"),
        ('{"step": 1, "data": {"actor/lr": 1.0}}\n', "no scalars of equipoise"),
        ("not json\n", "line 1"),
        ("", "no scalars"),
    ],
)
def test_a_log_of_something_else_is_one_line(text, named, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_log(path)
    assert str(path) in str(refused.value)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
