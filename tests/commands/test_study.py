"""A study: its file, what is run and what is not, and the numbers made of it by hand."""

import csv
import json
import math

import pytest
import yaml

from equipoise.cli import main
from equipoise.commands import side_by_side
from equipoise.commands.compare import runs as study_runs
from equipoise.commands.compare.figures import conditions_figure, differences_figure
from equipoise.commands.compare.results import (
    TRAINING,
    Row,
    differences,
    evaluation_measures,
    markdown,
    rows_of,
    shared_conditions,
)
from equipoise.commands.compare.study import StudyRun, file_name, read_study
from equipoise.errors import InputError

pytestmark = pytest.mark.slow

BASE = {"task": "ladder", "model": "m", "use_cpu": True, "max_steps": 2, "learning_rate": 1e-4}
STUDY = {
    "title": "a study",
    "base": BASE,
    "seeds": [3, 1],
    "conditions": {"on policy": {}, "stale": {"num_iterations": 2}, "very stale": {"num_iterations": 4}},
    "methods": {"GRPO": {}, "wide [0.9, 3]": {"epsilon": 0.1, "epsilon_high": 2.0}, "other": {"learning_rate": 1e-3}},
    "only": {"on policy": ["GRPO"]},
    "baselines": ["GRPO"],
}


def write(tmp_path, **changes):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (STUDY | changes).items() if v is not None}, sort_keys=False))
    return file


def test_runs_are_base_then_condition_then_method_seed_by_seed(tmp_path):
    study = read_study(write(tmp_path))
    assert [run.seed for run in study.runs] == [3] * 7 + [1] * 7
    assert [(run.condition, run.method) for run in study.runs[:4]] == [
        ("on policy", "GRPO"), ("stale", "GRPO"), ("stale", "wide [0.9, 3]"), ("stale", "other"),
    ]  # fmt: skip
    assert study.runs[2].keys == BASE | {"num_iterations": 2, "epsilon": 0.1, "epsilon_high": 2.0}
    assert study.runs[3].keys["learning_rate"] == 1e-3
    assert study.runs[2].folder(tmp_path) == tmp_path / "runs" / "stale" / "wide_0.9_3" / "seed-3"
    assert shared_conditions(study) == ["stale", "very stale"]


def test_seeds_of_the_flag_replace_those_of_the_file(tmp_path):
    assert read_study(write(tmp_path), seeds=[7]).seeds == (7,)


def test_names_become_folders():
    assert file_name("fixed [0.98, 3.0]") == "fixed_0.98_3.0"
    assert file_name("..") == "_"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes is not known; a study has title, base"),
        ({"methods": {}}, "methods must name at least one method"),
        ({"methods": ["GRPO"]}, "methods must be a mapping"),
        ({"methods": {"GRPO": "x"}, "only": None}, "methods, GRPO must be a mapping of keys to values, got 'x'"),
        (
            {"methods": {"a b": {}, "a_b": {}}, "only": None, "baselines": None},
            "'a b' and 'a_b' would share the folder",
        ),
        ({"methods": {"GRPO": {"sed": 1}}}, "on policy / GRPO: sed is not known; did you mean seed?"),
        ({"methods": {"GRPO": {True: 1}}}, "on policy / GRPO: True is not known"),
        ({"methods": {"GRPO": {7: 1, None: 2}}}, "on policy / GRPO: 7 is not known"),
        ({"methods": {"GRPO": {1.5: 1}}}, "on policy / GRPO: 1.5 is not known"),
        ({"methods": {"GRPO": {"seed": 1}}}, "on policy / GRPO: seed is set by the study"),
        ({"methods": {"GRPO": {"epsilon": -1}}}, "on policy / GRPO: epsilon must be >= 0 and <= 1e"),
        ({"seeds": [1, 1]}, r"seeds must be a list of different whole numbers from 0 to \d+, got \[1, 1\]"),
        ({"seeds": [2**32]}, "seeds must be a list of different whole numbers from 0"),
        ({"base": {"preset": []}, "warm_start": False}, r"study.*\.yaml, .*preset must be one of"),
        ({"seeds": [-1]}, "seeds must be a list of different whole numbers"),
        ({"seeds": "1"}, "seeds must be a list"),
        *(
            ({key: value}, f"{key} must be a mapping")
            for key in ("base", "methods", "conditions")
            for value in (0, [], "")
        ),
        *(({"methods": {"GRPO": value}}, "methods, GRPO must be a mapping") for value in (0, [], False, "")),
        *(({"conditions": {"stale": value}}, "conditions, stale must be a mapping") for value in (0, [], False, "")),
        *(({"only": value}, "only must map conditions") for value in (0, [], False, "")),
        *(({"baselines": value}, "baselines must be a list") for value in (0, [], False, "", ["GRPO"] * 2)),
        ({"only": {"stale": []}}, "only, stale must be a list of names, each once"),
        ({"only": {"stael": ["GRPO"]}}, "only must map conditions to lists of methods"),
        ({"only": {"stale": ["GRP"]}}, "only, stale must be a list of names, each once, out of 'GRPO'"),
        ({"baselines": ["GRP"]}, "baselines must be a list of names, each once, out of"),
        ({"warm_start": "ladder"}, "warm_start must be true or false, got 'ladder'"),
        ({"warm_start": True}, "either warm_start or a model in base, not both"),
        (
            {"base": BASE | {"warm_start_steps": 3}},
            "warm_start_steps must be a whole number >= 1",
        ),
        ({"base": {"max_steps": 1}, "warm_start": True}, "GRPO: warm_start needs a task"),
        ({"base": {"task": "ladder"}}, "model is required"),
    ],
)
def test_study_files_that_cannot_be_used(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        read_study(write(tmp_path, **changes))
    assert str(tmp_path / "study.yaml") in str(raised.value)


TINY = {
    "title": "tiny",
    "base": {
        "task": "ladder", "num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 2, "use_cpu": True,
        "max_completion_length": 4, "save_strategy": "no", "evaluate_samples": 8, "evaluate_prompts": 2,
    },
    "methods": {"GRPO": {}, "broken": {"learning_rate": 1e38}},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with one method that works and one that diverges, from a model made once."""
    from equipoise.models.warm_starts import warm_start_ladder

    folder = tmp_path_factory.mktemp("study")
    model = warm_start_ladder(folder / "model", steps=2, batch_size=4, progress=False)
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY | {"base": TINY["base"] | {"model": str(model)}}))
    code = main(["compare", str(folder / "study.yaml"), "--output", str(folder / "out"), "--jobs", "1"])
    return folder, code


def test_a_run_that_fails_is_told_and_the_others_go_on(finished):
    folder, code = finished
    assert code == 1
    with (folder / "out" / "runs.csv").open() as file:
        works, broken = csv.DictReader(file)
    assert (works["method"], works["error"]) == ("GRPO", "")
    assert 0 <= float(works["pass@8"]) <= 1
    assert float(works["entropy"]) > 0
    assert "training has diverged" in broken["error"]
    assert broken["greedy"] == ""
    assert "- runs/broken/seed-0: update" in (folder / "out" / "table.md").read_text()
    assert {p.name for p in (folder / "out").glob("*.png")} == {"conditions.png", "differences-GRPO.png"}


def test_a_finished_run_is_never_run_again(finished, monkeypatch):
    folder, _ = finished
    metrics = folder / "out" / "runs" / "GRPO" / "seed-0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    started = []
    monkeypatch.setattr(study_runs, "work", lambda jobs, *_: started.extend(job.name for job in jobs) or {})
    main(["compare", str(folder / "study.yaml"), "--output", str(folder / "out")])
    assert started == ["broken, seed 0"]
    assert metrics.stat().st_mtime_ns == before


def test_a_finished_run_with_other_settings_is_refused(finished, capsys):
    folder, _ = finished
    values = yaml.safe_load((folder / "study.yaml").read_text())
    values["base"]["max_steps"] = 3
    (folder / "other.yaml").write_text(yaml.safe_dump(values))
    assert main(["compare", str(folder / "other.yaml"), "--output", str(folder / "out")]) == 2
    assert "is finished, but with other settings than the study's (max_steps)" in capsys.readouterr().err


def test_a_report_starts_nothing(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(study_runs, "work", None)
    assert main(["compare", str(folder / "study.yaml"), "--output", str(folder / "out"), "--report"]) == 0
    assert "1 runs, 0 failed, 1 not run yet" in capsys.readouterr().out
    assert main(["compare", str(folder / "study.yaml"), "--output", str(folder / "none"), "--report"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    from equipoise.trl import run

    called = []
    monkeypatch.setattr(run, "train", lambda values: called.append("train"))
    monkeypatch.setattr(run, "resume", lambda folder, changes, **given: called.append("resume"))
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(side_by_side, "latest_checkpoint", lambda folder: tmp_path)
    study_runs._train(tmp_path / "run", {}, {})
    assert called == ["resume"]
    monkeypatch.setattr(side_by_side, "latest_checkpoint", lambda folder: None)
    monkeypatch.setattr(run, "train", lambda values: (called.append("train"), (tmp_path / "run").mkdir()))
    study_runs._train(tmp_path / "run", {}, {})
    assert called == ["resume", "train"], "without a checkpoint from the beginning, in an empty folder"


def test_an_interrupted_run_goes_on_only_with_its_own_settings(tmp_path, monkeypatch):
    run = StudyRun("", "GRPO", 0, {"learning_rate": 1.0}, 300)
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    monkeypatch.setattr(study_runs, "latest_checkpoint", lambda folder: folder)
    study_runs._settings_file(folder).write_text(yaml.safe_dump({"learning_rate": 1.0, "warm_start_steps": 300}))
    study_runs._check_interrupted(run, tmp_path)
    for other in (StudyRun("", "GRPO", 0, {"learning_rate": 2.0}, 300), StudyRun("", "GRPO", 0, run.keys, 600)):
        with pytest.raises(InputError, match=r"was begun, but .* (.(learning_rate|warm_start_steps).)"):
            study_runs._check_interrupted(other, tmp_path)


def test_a_preset_of_a_method_overrides_the_base(tmp_path):
    base = BASE | {"clipping": "fixed", "bapo_low": [0.6, 0.98]}
    methods = {"GRPO": {}, "BAPO": {"preset": "bapo_paper", "bapo_target_share": 0.45}}
    study = read_study(write(tmp_path, base=base, methods=methods, only=None, conditions=None))
    keys = next(run.keys for run in study.runs if run.method == "BAPO")
    assert (keys["clipping"], keys["bapo_low"], keys["bapo_target_share"]) == ("balanced", [0.6, 0.9], 0.45)


def row(condition, method, seed, value):
    run = StudyRun(condition, method, seed, {})
    return Row(
        run,
        dict.fromkeys(("greedy", "pass@1", "pass@8", "distinct of 8", *TRAINING), value),
        "" if math.isfinite(value) else "diverged",
    )


def test_differences_are_paired_by_seed_and_averaged_over_conditions_first():
    rows = [
        row("a", "x", 0, 1.0), row("a", "y", 0, 3.0), row("b", "x", 0, 1.0), row("b", "y", 0, 2.0),
        row("a", "x", 1, 5.0), row("a", "y", 1, 6.0), row("b", "x", 1, 0.0), row("b", "y", 1, 0.0),
        row("a", "x", 2, 5.0), row("a", "y", 2, 9.0), row("b", "x", 2, 0.0), row("b", "y", 2, math.nan),
    ]  # fmt: skip
    assert differences(rows, "y", "x", "greedy", ["a"]).mean == pytest.approx((2 + 1 + 4) / 3)
    both = differences(rows, "y", "x", "greedy", ["a", "b"])
    assert both.num_pairs == 2, "a seed with a failed run is left out"
    assert both.mean == pytest.approx((1.5 + 0.5) / 2)


def test_tables_and_figures_of_a_study_with_failures(tmp_path):
    study = read_study(write(tmp_path))
    rows = [
        row(run.condition, run.method, run.seed, math.nan if run.method == "other" else run.seed + len(run.method))
        for run in study.runs
    ]
    text = markdown(study, rows, evaluation_measures(study))
    assert "| wide [0.9, 3] | **+9.000** [+9.000, +9.000] (2/2) |" in text
    assert "| other | – |" in text
    assert "## One setting over stale, very stale" in text
    conditions_figure(study, rows, tmp_path / "a.png")
    differences_figure(study, rows, tmp_path / "b.png", baseline="GRPO")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("a.png", "b.png"))


def test_every_shipped_study_can_be_read():
    from equipoise.commands.quickstart import recipe_folder

    files = sorted((recipe_folder() / "studies").glob("*.yaml"))
    assert files
    for file in files:
        assert read_study(file).runs


def test_rows_are_read_from_the_run_folder(finished):
    folder, _ = finished
    study = read_study(folder / "study.yaml")
    (found,) = rows_of(study, folder / "out")
    lines = (folder / "out" / "runs" / "GRPO" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert found.values["largest gradient norm"] == max(norms)
    evaluation = json.loads(
        (folder / "out" / "runs" / "GRPO" / "seed-0" / "evaluation.jsonl").read_text().splitlines()[-1]
    )
    assert found.values["pass@8"] == evaluation["pass_at"]["8"]["mean"]


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_jobs_must_be_positive(tmp_path, capsys, jobs):
    assert main(["compare", str(write(tmp_path)), "--jobs", jobs]) == 2
    assert f"--jobs must be >= 1 and <= 1024, got --jobs={jobs}" in capsys.readouterr().err
