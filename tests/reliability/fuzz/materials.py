"""Valid inputs of every kind, made once; each input of a kind is a changed copy of some of them.

configs/ accelerate/ studies/   YAML
model/ data.* held_out.jsonl    a model of one layer and what it is trained on
run/ begun/                     a complete run with token records, and the same run interrupted before its end
samples/                        what `evaluate --samples_output` keeps
study.yaml study/               a study whose runs are all finished
log.jsonl                       what verl's file logger writes
"""

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

DATA = ("data.jsonl", "data.csv", "data.parquet", "chat.jsonl")

TRAINING = {
    "model": "model", "dataset": "data.jsonl", "eval_dataset": "held_out.jsonl", "reward": "exact",
    "output_dir": "run", "max_steps": 3, "per_device_train_batch_size": 8, "num_generations": 4,
    "max_completion_length": 6,
    "num_iterations": 2, "clipping": "balanced", "polarity": "papo", "learning_rate": 0.01, "use_cpu": True,
    "save_steps": 1,
    "evaluate_every": 2, "evaluate_samples": 2, "evaluate_k": [1, 2], "disable_tqdm": True, "record_tokens": 1,
}  # fmt: skip
EVALUATION = "--dataset data.jsonl --reward exact --prompts 4 --samples 2 --k 1 2 --max_new_tokens 4 --batch_size 4"


def make(folder: Path, repository: Path) -> None:
    """Make all of them in a new folder.

    Args:
        folder: is made.
        repository: that holds recipes/.
    """
    from equipoise.cli import main

    folder.mkdir(parents=True)
    _copy_recipes(folder, repository / "recipes")
    with contextlib.chdir(folder):
        _make_model()
        _make_data()
        Path("configs/own.yaml").write_text(yaml.safe_dump(TRAINING, sort_keys=False))
        assert main(["train", "--config", "configs/own.yaml"]) == 0
        assert main(["evaluate", "run", *EVALUATION.split(), "--samples_output", "samples"]) == 0
        _interrupt(Path("begun"))
        _finish_study(Path("study.yaml"), Path("study"))
        _write_log(Path("run/metrics.jsonl"), Path("log.jsonl"))


def _copy_recipes(folder: Path, recipes: Path) -> None:
    for name in ("configs", "studies"):
        (folder / name).mkdir()
    for path in (*recipes.glob("*.yaml"), *recipes.glob("papers/*.yaml")):
        shutil.copy(path, folder / "configs")
    shutil.copytree(recipes / "accelerate", folder / "accelerate")
    for path in recipes.glob("studies/*.yaml"):
        study = yaml.safe_load(path.read_text())
        for key in ("methods", "conditions"):  # two of each: every run of a study is checked, which takes its time
            if key in study:
                study[key] = dict(list(study[key].items())[:2])
        only = {
            c: [m for m in ms if m in study["methods"]]
            for c, ms in study.pop("only", {}).items()
            if c in study["conditions"]
        }
        study["baselines"] = list(study["methods"])[:1]
        study = study | ({"only": only} if only else {})
        (folder / "studies" / path.name).write_text(yaml.safe_dump(study, sort_keys=False))


def _make_model() -> None:
    from trainer_setup import character_tokenizer, tiny_model

    tiny_model().save_pretrained("model")
    character_tokenizer().save_pretrained("model")


def _make_data() -> None:
    rows = [{"prompt": f"{i}+{i + 3}=", "answer": str(2 * i + 3), "level": i} for i in range(16)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [{"prompt": f"{i}+{i + 5}=", "answer": str(2 * i + 5), "level": i} for i in range(16)]
    Path("held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    with Path("data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "data.parquet")
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}], "solution": {"final": row["answer"]}} for row in rows
    ]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))


def _interrupt(folder: Path) -> None:
    """As a run that ended after its second update."""
    shutil.copytree("run", folder)
    for name in ("model", "checkpoint-3", "checkpoint-1"):
        shutil.rmtree(folder / name)


def _finish_study(path: Path, folder: Path) -> None:
    """Every run of a study, as `compare` leaves it."""
    from equipoise.commands.compare.runs import _settings, _settings_file
    from equipoise.commands.compare.study import read_study

    methods = {"GRPO": {}, "wide": {"preset": "wide_clip"}}
    keys = {"task": "ladder", "model": "model", "use_cpu": True, "max_steps": 3}
    path.write_text(yaml.safe_dump({"title": "A study", "base": keys, "seeds": [0, 1], "methods": methods}))
    for run in read_study(path).runs:
        shutil.copytree("run", run.folder(folder), ignore=shutil.ignore_patterns("checkpoint-*", "tokens"))
        _settings_file(run.folder(folder)).write_text(json.dumps(_settings(run)))


def _write_log(metrics: Path, log: Path) -> None:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    with log.open("w") as file:
        for line in lines:
            data = {f"actor/{name}": value for name, value in line.items() if name.startswith("equipoise/")}
            file.write(
                json.dumps({"step": line["update"], "data": data | {"critic/score/mean": 0.5, "actor/lr": 1e-6}}) + "\n"
            )


def take(name: str, materials: Path, place: Path) -> Path:
    """A copy of a file or folder in a place; returns it."""
    source, copy = materials / name, place / Path(name).name
    if source.is_dir():
        shutil.copytree(source, copy, symlinks=True)
    else:
        shutil.copyfile(source, copy)
    os.chmod(copy, 0o755)
    return copy
