"""The command line as a user meets it: own data end to end, resume, evaluation, one line for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import arguments, refusal, run_lines, untimed
from safetensors.torch import load_file
from trainer_setup import character_tokenizer

from equipoise.cli import main
from equipoise.models.warm_starts import ladder_tokenizer
from equipoise.trl import EquipoiseTrainer, checkpoints

pytestmark = pytest.mark.slow


def test_own_model_and_data_end_to_end(workplace, capsys):
    assert main(arguments()) == 0
    files = {p.name for p in Path("run").iterdir()}
    assert {"config.yaml", "resolved.yaml", "environment.json", "metrics.jsonl", "evaluation.jsonl", "model"} <= files
    assert [m["update"] for m in run_lines("run/metrics.jsonl")] == [1, 2, 3, 4]
    assert {"equipoise/entropy", "equipoise/bounds_high", "equipoise/phase"} <= run_lines("run/metrics.jsonl")[0].keys()
    assert [e["update"] for e in run_lines("run/evaluation.jsonl")] == [0, 2, 4]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["learning_rate"] == 0.01
    assert yaml.safe_load(Path("run/resolved.yaml").read_text())["bapo_target_share"] == 0.55
    assert json.loads(Path("run/environment.json").read_text())["versions"]["torch"] == torch.__version__
    assert {p.name for p in Path().iterdir()} - {"__pycache__"} == {
        "data.jsonl",
        "held_out.jsonl",
        "judges.py",
        "model",
        "run",
    }

    assert main(["evaluate", "run", "model", "--samples", "4", "--k", "1", "2", "--output", "e.json",
                 "--dataset", "held_out.jsonl", "--reward", "exact", "--max_new_tokens", "4"]) == 0  # fmt: skip
    assert json.loads(Path("e.json").read_text()).keys() == {"run", "model"}
    assert "pass@2" in capsys.readouterr().out


def test_a_resumed_run_keeps_the_defaults_it_began_with(workplace, caplog):
    main(arguments(evaluate_every=0, papo_warmup_updates=1, papo_reference_fraction=1.5, papo_strength=0.9))
    expected = run_lines("run/metrics.jsonl")
    # As if papo_strength had not been given and 0.9 its default when the run began; it is 0.5.
    given = yaml.safe_load(Path("run/config.yaml").read_text())
    assert given.pop("papo_strength") == 0.9
    Path("run/config.yaml").write_text(yaml.safe_dump(given))
    for name in ("model", "checkpoint-4", "checkpoint-3"):
        shutil.rmtree(f"run/{name}")
    # A flag is no default; a configuration that was changed is nobody's.
    assert main(["train", "--resume", "run", "--record_tokens", "2", "--trust", "run"]) == 0
    assert "run began with papo_strength=0.9 and keeps it; now the default is 0.5" in caplog.text
    assert len(caplog.text.split("began with")) == 2
    for entry, reference in zip(run_lines("run/metrics.jsonl"), expected, strict=True):
        assert untimed(entry) == untimed(reference)


def test_a_run_from_its_own_config_is_the_same_run(workplace):
    main(arguments(evaluate_every=0))
    main(["train", "--config", "run/config.yaml", "--output_dir", "again"])
    kept = [[untimed(m) for m in run_lines(f"{name}/metrics.jsonl")] for name in ("run", "again")]
    assert kept[0] == kept[1]


def test_an_interrupted_run_resumes_to_the_same_files(workplace, monkeypatch):
    main(arguments(output_dir="whole"))
    original = checkpoints.write_marker

    def interrupt(folder, state):
        original(folder, state)
        if folder.name == "checkpoint-3":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_marker", interrupt)
        assert main(arguments()) == 130
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "loss"')  # cut off by the interruption
    assert main(["train", "--resume", "run"]) == 0
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        lines = [[untimed(m) for m in run_lines(f"{r}/{name}")] for r in ("whole", "run")]
        assert lines[0] == lines[1]
    weights = [torch.load(f"{r}/checkpoint-4/optimizer.pt", weights_only=True)["state"] for r in ("whole", "run")]
    assert all(torch.equal(weights[0][i]["exp_avg"], weights[1][i]["exp_avg"]) for i in weights[0])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_other_file_formats(workplace, suffix):
    import pandas

    frame = pandas.read_json("data.jsonl", lines=True, dtype=str)
    getattr(frame, f"to_{suffix}")(f"data.{suffix}", index=False)
    keys = {"dataset": f"data.{suffix}", "eval_dataset": None, "evaluate_every": 0, "max_steps": 1, "reward": "math"}
    assert main(arguments(**keys)) == 0


@pytest.mark.parametrize("name", ["what?.jsonl", "2*3 + 4&5=x.jsonl", "C:\\data\\it's mine.jsonl", "a?b=c.jsonl"])
def test_a_file_whose_name_has_signs_of_the_language_of_tasks(workplace, capsys, name):
    rows = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({"question": row["prompt"], "answer": row["answer"]}) + "\n" for row in rows)
    Path(name).write_text(text)
    keys = {"max_steps": 1, "evaluate_every": 0, "eval_dataset": None, "reward": "exact"}
    assert main(arguments(dataset=f"{name}?prompt_column=question", **keys)) == 0
    quoted = name.replace("'", "''")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["task"] in (
        f"data:'{quoted}'?prompt_column=question", f"data:{name}?prompt_column=question",
    )  # fmt: skip
    flags = ["--prompts", "2", "--samples", "1", "--k", "1", "--max_new_tokens", "2"]
    assert main(["evaluate", "model", "--dataset", f"{name}?prompt_column=question", *flags]) == 0
    assert main(["evaluate", "model", "--task", f"data:'{quoted}'?prompt_column=question", *flags]) == 0
    assert main(["doctor", "model", "--dataset", f"{name}?prompt_column=question", "--json"]) in (0, 1)
    capsys.readouterr()


def test_chat_prompts(workplace):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained("model")
    assert main(arguments(chat="true", max_steps=2, reward="exact")) == 0
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1="}], "answer": str(i + 1)} for i in range(16)]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "dataset": "chat.jsonl",
        "eval_dataset": None,
        "evaluate_every": 0,
        "output_dir": "other",
        "reward": "praises:praised",
    }
    Path("praises.py").write_text(
        "def praised(completions, **columns): return [float(len(c[0]['content'])) for c in completions]"
    )
    assert main(arguments(**keys, max_steps=2)) == 0
    assert run_lines("other/metrics.jsonl")[0]["equipoise/rollout_reward"] > 1


def test_lora(workplace):
    assert main(arguments(use_peft="true", lora_r=2, max_steps=2, evaluate_every=0)) == 0
    assert Path("run/model/adapter_config.json").exists()
    assert main(["evaluate", "run", "--samples", "2", "--k", "1"]) == 0


REFUSED = {
    "missing model": ({"model": "nowhere/"}, "model nowhere/ cannot be loaded"),
    "no model folder": ({"model": "."}, "model . is no model folder: it has no config.json"),
    "missing data": ({"dataset": "none.jsonl"}, "none.jsonl"),
    "missing column": ({"dataset": "data.jsonl?prompt_column=question"}, "no column 'question' for the prompt"),
    "key that is gone": ({"answer_column": "solution"}, "dataset: FILE?answer_column=solution"),
    "data and a task": ({"task": "ladder"}, "give either task or dataset"),
    "parameter of the data": ({"dataset": "data.jsonl?splitt=test"}, "has no parameter 'splitt'; did you mean split?"),
    "unknown flag": ({"clippin": "fixed"}, "flag --clippin is not known; did you mean clipping?"),
    "wrong type": ({"max_steps": "some"}, "flag --max_steps must be a whole number, got 'some'"),
    "bounds out of order": ({"bapo_low": "[0.9, 0.6]"}, "bapo_low must satisfy 0 < low[0] <= low[1] <= 1"),
    "target share": ({"bapo_target_share": 1}, "bapo_target_share must be in (0, 1), got bapo_target_share=1"),
    "strength": ({"papo_strength": 1}, "papo_strength must leave every weight > 0, got strength=1.0"),
    "batch arithmetic": ({"num_generations": 3}, "generation_batch_size (8) must be divisible by num_generations (3)"),
    "little data": ({"per_device_train_batch_size": 128}, "data.jsonl: 16 training prompts, but a rollout"),
    "no such module": ({"reward": "nojudge:x"}, "nojudge"),
    "no such function": ({"reward": "judges:praise"}, "praise"),
    "raising reward": ({"reward": "judges:broken"}, "the judge is away"),
    "reward of wrong length": ({"reward": "judges:short"}, "short"),
    "only None": ({"reward": "judges:nothing"}, "nothing"),
    "only NaN": ({"reward": "judges:undefined"}, "undefined"),
    "output that cannot be made": ({"output_dir": "data.jsonl/run"}, "run folder data.jsonl/run cannot be made: Not a"),
    "tracker that is not there": ({"report_to": "comet_ml"}, "comet"),
    "evaluation without data": ({"eval_dataset": None}, "evaluate_every needs held-out data"),
    "lora modules": ({"use_peft": "true", "lora_target_modules": "[nothing]"}, "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_and_nothing_left_behind(workplace, capsys, case):
    changes, expected = REFUSED[case]
    assert expected in refusal(arguments(**changes), capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": }\n', "data.jsonl, line 2"),
        ("", "data.jsonl"),
        ('{"prompt": "a", "answer": "+*"}\n', "+*"),
    ],
)
def test_data_that_cannot_be_used(workplace, capsys, content, expected):
    Path("data.jsonl").write_text(content)
    assert expected in refusal(arguments(reward="math"), capsys)
    assert not Path("run").exists()


def test_chat_prompts_need_a_chat_template(workplace, capsys):
    expected = "model model, row 1: the prompt is a list of chat messages, but the tokenizer has no chat template"
    assert expected in refusal(arguments(chat="true"), capsys)


def test_prompts_outside_the_vocabulary_are_named(workplace, capsys):
    ladder_tokenizer().save_pretrained("model")
    assert "model model, row 1: the prompt '0+3=' cannot be encoded" in refusal(arguments(), capsys)


def test_an_existing_run_folder_is_neither_overwritten_nor_mistaken(workplace, capsys):
    main(arguments(evaluate_every=0))
    before = Path("run/metrics.jsonl").read_text()
    assert "run folder run exists; continue it with --resume run" in refusal(arguments(), capsys)
    assert Path("run/metrics.jsonl").read_text() == before
    changed = refusal(["train", "--resume", "run", "--learning_rate", "1"], capsys)
    assert "flag --learning_rate=1.0 would make run another run (it has 0.01)" in changed
    assert "model is no run folder: it has no config.yaml" in refusal(["train", "--resume", "model"], capsys)


def test_a_full_disk_leaves_the_previous_checkpoint(workplace, capsys, monkeypatch):
    original = torch.save

    def full(value, target, *args, **kwargs):
        if "checkpoint-3" in str(target):
            raise OSError(28, "No space left on device")
        return original(value, target, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        assert "checkpoint-3 could not be written" in refusal(arguments(), capsys)
    assert main(["train", "--resume", "run"]) == 0
    assert len(run_lines("run/metrics.jsonl")) == 4


def test_a_full_disk_while_metrics_are_written(workplace, capsys, monkeypatch):
    original = Path.open

    def full(path, mode="r", *args, **kwargs):
        file = original(path, mode, *args, **kwargs)
        if path.name == "metrics.jsonl" and "a" in mode and file.tell() > 3000:
            file.write('{"update": 3, "lo')
            file.close()
            raise OSError(28, "No space left on device")
        return file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        line = refusal(arguments(evaluate_every=0), capsys)
    assert "run/metrics.jsonl cannot be written: No space left on device" in line
    assert "continue with --resume run" in line
    assert main(["train", "--resume", "run"]) == 0
    assert [m["update"] for m in run_lines("run/metrics.jsonl")] == [1, 2, 3, 4]


def test_a_run_whose_model_could_not_be_saved_is_completed_by_resuming_it(workplace, capsys, monkeypatch):
    original = EquipoiseTrainer.save_model

    def interrupted(trainer, output_dir=None, _internal_call=False):
        original(trainer, output_dir, _internal_call)
        if output_dir.endswith("model.part"):
            (Path(output_dir) / "model.safetensors").write_bytes(b"half")
            raise next(failures)

    failures = iter([OSError(28, "No space left on device"), KeyboardInterrupt()])
    for code in (2, 130):
        with monkeypatch.context() as patched:
            patched.setattr(EquipoiseTrainer, "save_model", interrupted)
            command = ["train", "--resume", "run"] if Path("run").exists() else arguments(evaluate_every=0)
            assert main(command) == code
        assert not Path("run/model").exists()
    assert "run/model cannot be written: No space left on device" in capsys.readouterr().err
    assert main(["train", "--resume", "run"]) == 0
    assert {p.name for p in Path("run").glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (1, 2, 3, 4)}
    final, last = (load_file(f"run/{name}/model.safetensors") for name in ("model", "checkpoint-4"))
    assert all(torch.equal(value, last[name]) for name, value in final.items())
    assert [m["update"] for m in run_lines("run/metrics.jsonl")] == [1, 2, 3, 4]
    assert not list(Path("run").glob("*.part"))


def test_interrupted_before_the_first_update_nothing_is_left(workplace, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(EquipoiseTrainer, "_generate_and_score_completions", interrupt)
    assert main(arguments(evaluate_every=0)) == 130
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["nowhere", "--task", "ladder"], "model nowhere cannot be loaded"),
        (["model"], "model names no held-out data: give --task, or --dataset and --reward"),
        (["model", "--task", "ladder", "--dataset", "data.jsonl"], "give either --task or --dataset"),
        (["model", "--dataset", "data.jsonl", "--prompt_column", "question"], "dataset: FILE?prompt_column="),
        (["model", "--task", "chess"], "task 'chess' is not known"),
        (["model", "--task", "calculator"], "task calculator has episodes, which only a run evaluates"),
        (["model", "--dataset", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["model", "--task", "ladder", "--k", "32"], "--k must be from 1 to --samples=16"),
        (["model", "--task", "ladder", "--temperature", "0"], "--temperature must be >= 1e-6"),
        (["model", "model", "--task", "ladder"], "each model can be given once"),
        (["model", "--task", "ladder", "--output", "data.jsonl"], "output data.jsonl exists"),
        (["model", "--task", "ladder", "--sampels", "x"], "flag --sampels is not known"),
    ],
)
def test_evaluate_refuses(workplace, capsys, flags, expected):
    assert expected in refusal(["evaluate", *flags], capsys)


def test_help_teaches(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("--model", "--dataset", "--clipping", "--bapo_target_share", "--papo_strength", "--resume"):
        assert key in text
    done = subprocess.run([sys.executable, "-m", "equipoise", "--help"], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout
