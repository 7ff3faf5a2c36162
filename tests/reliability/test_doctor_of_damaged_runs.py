"""The doctor on run folders of any kind: findings on what can be read, one that names the rest, never a traceback."""

import json
import random

import pytest
import yaml
from report_setup import make_run

from equipoise.cli import main
from equipoise.commands.doctor_run import SETTINGS
from equipoise.trl.keys import known_keys

pytestmark = pytest.mark.slow


def examined(capsys, folder):
    """Exit code and findings by name; None where there is one line in their place."""
    code = main(["doctor", "--json", str(folder)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code == 2:
        assert said.out == ""
        assert said.err.count("\n") == 1
        return code, None
    return code, {finding["name"]: finding for finding in json.loads(said.out)["findings"]}


def whole(folder):
    make_run(folder, records=False, task="ladder")
    (folder / "config.yaml").write_text("task: ladder\nseed: 1\nmodel: base\n")
    (folder / "resolved.yaml").write_text(
        "num_generations: 4\nper_device_train_batch_size: 8\nclipping: balanced\npolarity: papo\npapo_strength: 0.5\n"
        "learning_rate: 1.0e-05\nmax_completion_length: 13\nbf16: false\ntop_p: 1.0\nreplay_fraction: 0.0\n"
    )
    return folder


def test_every_setting_that_is_looked_at_is_a_key():
    assert set(SETTINGS) <= set(known_keys())


def test_a_whole_run_has_no_finding_on_its_files(tmp_path, capsys):
    _, findings = examined(capsys, whole(tmp_path / "run"))
    assert "files of the run" not in findings


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("metrics.jsonl", b'\xff\n[]\n{"update": 1, "equipoise/entropy": 1}\n', "metrics.jsonl, line 1 must be UTF-8"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1 must be UTF-8"),
        ("evaluation.jsonl", b'{"update": 1, "greedy": 5}\n', "evaluation.jsonl, line 1: greedy"),
        ("config.yaml", b"a: &a [*a]\n", "config.yaml, line 1 is no valid YAML"),
        ("config.yaml", b"task: ladder\nseed: {}\nno_such_key: 1\n", "config.yaml: seed must be"),
        ("resolved.yaml", b"- 1\n", "resolved.yaml must be a mapping"),
        ("resolved.yaml", b"num_generations: -4\nlearning_rate: fast\n", "num_generations must be from 1"),
        ("resolved.yaml", b"papo_strength: {a: 1}\nreplay_fraction: null\n", "papo_strength must be a number"),
        ("environment.json", b"[1]", "environment.json must be a mapping"),
        ("environment.json", b'{"device": 3, "world_size": "x", "host": [1]}', "environment.json: device must be text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_finding_and_the_rest_is_examined(name, data, named, tmp_path, capsys):
    folder = whole(tmp_path / "run")
    (folder / name).write_bytes(data)
    code, findings = examined(capsys, folder)
    assert code in (0, 1)
    assert named in findings["files of the run"]["evidence"]
    assert len(findings) >= 13


def test_only_where_nothing_can_be_read_is_there_no_examination(tmp_path, capsys):
    folder = whole(tmp_path / "run")
    for name in ("config.yaml", "resolved.yaml", "environment.json", "evaluation.jsonl"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_bytes(b"\xff\n")
    assert examined(capsys, folder) == (2, None)


@pytest.mark.parametrize("seed", range(3))
def test_settings_and_environment_of_any_type_are_examined(seed, tmp_path, capsys):
    rng, folder = random.Random(seed), whole(tmp_path / "run")
    values = [None, True, -1, 0, 10**30, 1e300, float("nan"), float("inf"), "x", "", [], [1], {}, {"a": {}}, "é" * 500]
    for _ in range(6):
        (folder / "resolved.yaml").write_text(yaml.safe_dump({key: rng.choice(values) for key in SETTINGS}))
        (folder / "environment.json").write_text(
            json.dumps({key: rng.choice(values) for key in ("host", "device", "world_size", "versions")})
        )
        code, findings = examined(capsys, folder)
        assert code in (0, 1)
        assert "files of the run" in findings
