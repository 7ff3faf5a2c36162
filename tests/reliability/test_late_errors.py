"""What a user can get wrong is said before the work, in one line; where it cannot be, the work's results are kept."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from command_line import arguments, refusal, workplace  # noqa: F401  (a fixture)
from late_errors import all_cases, keys_of
from trl.trainer.grpo_config import GRPOConfig

from equipoise.cli import main
from equipoise.commands import evaluate
from equipoise.errors import InputError
from equipoise.trl import run
from equipoise.trl.keys import build, checked_keys, known_keys
from equipoise.trl.ranges import RULES

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("LATE_ERRORS", "20"))
"""Of keys; half as many of options, and of pairs of keys."""

CHECKED_ELSEWHERE = {"save_total_limit", "local_rank"}
"""Numbers of the hosts that mean something, or nothing, whatever they are."""

EVALUATE = ["evaluate", "model", "--dataset", "held_out.jsonl", "--reward", "exact", "--samples", "2", "--k", "1",
            "--max_new_tokens", "2", "--prompts", "2"]  # fmt: skip


@pytest.mark.parametrize(
    "cases", [["--sample", str(CASES), "--pairs", str(CASES // 2)], ["--commands", "--sample", str(CASES // 2)]]
)
def test_keys_and_options_at_and_beyond_their_bounds(cases):
    tool = Path(__file__).with_name("late_errors.py")
    ended = subprocess.run([sys.executable, tool, *cases], capture_output=True, text=True, timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


def test_settings_that_are_refused_are_named(workplace):  # noqa: F811
    """In the words of a host too, which may name another key, a value alone, or nothing."""
    refused, unnamed = 0, []
    for case in all_cases():
        given = {key: value for key, value in keys_of(case).items() if value is not None}
        try:
            build(checked_keys(given, "flag --"))
        except InputError as error:
            refused += 1
            if set(re.findall(r"\w+", str(error))).isdisjoint(given):
                unnamed.append((str(case), str(error)))
    assert refused > 500
    assert not unnamed


GIVEN = {"model": "m", "task": "ladder", "output_dir": "run", "max_steps": 3, "seed": 7, "learning_rate": 0.25,
         "optim": "nonsense", "run_name": "a/b c.json", "bf16": True}  # fmt: skip
ALL = ", ".join(GIVEN)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("max_steps is too small", None),
        ("something about 7 and more", "seed"),
        ("something about seed=7 and more", None),
        ("must not be 0.25", "learning_rate"),
        ("must not be 0.25.", "learning_rate"),
        ("must not be 10.25, 0.255, 70 or x.7", ALL),
        ("cannot open a/b c.json", "run_name"),
        ("True is not a valid choice", ALL),
        ("nonsense is none of adamw, sgd", "optim"),
        ("gradient_checkpointing must be set", None),
        ("gradient_checkpointing must not be nonsense", "optim"),
        ("there is no file ''", ALL),
    ],
)
def test_a_hosts_refusal_is_told_with_the_keys_whose_values_it_quotes(monkeypatch, message, named):
    known_keys()

    def refuse(**_):
        raise ValueError(message)

    monkeypatch.setattr("equipoise.trl.keys.EquipoiseConfig", refuse)
    with pytest.raises(InputError) as refused:
        build(dict(GIVEN))
    told = re.search(r"\(of the keys (.*)\)$", str(refused.value))
    assert (told and told[1]) == named


def test_every_number_of_the_hosts_has_a_range():
    hints = typing.get_type_hints(GRPOConfig)
    numbers = {
        field.name
        for field in dataclasses.fields(GRPOConfig)
        if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}
    }
    assert numbers - RULES.keys() == CHECKED_ELSEWHERE


IMPORTS = {
    "exits": "import sys\nsys.exit(3)",
    "exits without a code": "raise SystemExit",
    "ends a generator": "raise GeneratorExit",
    "has errors of its own": "class Own(BaseException): pass\nraise Own('no')",
    "cannot be shown": "class Own(Exception):\n    def __str__(self): return 1 / 0\nraise Own",
    "makes names late": "def __getattr__(name): raise SystemExit",
}
CALLS = {name: "\n".join(f"    {line}" for line in body.splitlines()) for name, body in IMPORTS.items()}


@pytest.mark.parametrize("name", IMPORTS)
@pytest.mark.parametrize("key", ["reward", "environment"])
def test_modules_that_end_the_process_when_they_are_imported(workplace, capsys, key, name):  # noqa: F811
    Path("praises.py").write_text(IMPORTS[name] + "\n")
    keys = {"reward": None, "evaluate_every": 0, key: "praises:judge"}
    assert re.search(rf"{key} 'praises:judge'.* cannot be imported", refusal(arguments(**keys), capsys))
    assert not Path("run").exists()


@pytest.mark.parametrize("name", list(IMPORTS)[:-1])
def test_rewards_that_end_the_process(workplace, capsys, name):  # noqa: F811
    Path("praises.py").write_text(f"def judge(completions, **columns):\n{CALLS[name]}\n")
    assert "reward function 'judge' raised" in refusal(arguments(reward="praises:judge"), capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize("key", ["dataset", "eval_dataset"])
def test_data_of_a_configuration_are_told_with_its_file(workplace, capsys, key):  # noqa: F811
    keys = {"model": "model", "dataset": "data.jsonl", "reward": "exact", "output_dir": "run"} | {key: "away.jsonl"}
    Path("own.yaml").write_text(json.dumps(keys))
    said = f"{key} away.jsonl: no such file"
    assert refusal(["train", "--config", "own.yaml"], capsys) == f"equipoise: config own.yaml: {said}"
    assert refusal(["train", "--config", "own.yaml", f"--{key}", "away.jsonl"], capsys) == f"equipoise: {said}"


def test_data_of_a_run_are_told_with_its_folder(workplace, capsys):  # noqa: F811
    assert main(arguments(max_steps=2)) == 0
    Path("held_out.jsonl").unlink()
    for words in (["train", "--resume", "run"], ["evaluate", "run"]):
        assert refusal(words, capsys).startswith("equipoise: run/config.yaml: eval_dataset held_out.jsonl: no such")
    Path("data.jsonl").unlink()
    for words in (["train", "--resume", "run"], ["probe", "run", "--output", "new"]):
        assert refusal(words, capsys).startswith("equipoise: run/config.yaml: dataset data.jsonl: no such file")


@pytest.mark.parametrize(("words", "named"), [
    (["doctor", "model", "--learning_rate", "0.1"], "--learning_rate"),
    (["report", "run", "--port", "1234"], "--port"),
    (["report", "run", "--refresh", "5"], "--refresh"),
    (["report", "run", "--live", "--force"], "--force"),
    (["evaluate", "model", "--task", "ladder", "--reward", "exact"], "--reward"),
    (["evaluate", "model", "--task", "aime_2024", "--reward", "judges:digits"], "--reward"),
])  # fmt: skip
def test_options_that_would_have_no_effect_are_refused(workplace, capsys, words, named):  # noqa: F811
    assert named in refusal(words, capsys)


def test_words_to_a_chat_template_that_is_not_used_are_told(workplace, caplog):  # noqa: F811
    assert main([*EVALUATE, "--chat_template_kwargs", "{enable_thinking: false}"]) == 0
    assert "chat_template_kwargs has no effect" in caplog.text


LONG = "x" * 5000


@pytest.mark.parametrize("path", [LONG, "a\0b", "~nouser/data.jsonl", "y" * 300 + ".jsonl"])
@pytest.mark.parametrize("key", ["dataset", "task", "model", "output_dir", "config", "resume"])
def test_paths_that_are_none(workplace, capsys, key, path):  # noqa: F811
    if path.startswith("~") and key not in ("dataset", "task"):
        pytest.skip("only data sets are looked for in homes")
    words = ["train", f"--{key}", path] if key in ("config", "resume") else None
    changes = {"dataset": None, "task": f"data:{path}"} if key == "task" else {key: path}
    refusal(words or arguments(**changes), capsys)


@pytest.mark.parametrize("command", [["evaluate"], ["doctor"], ["probe"], ["report"], ["compare"], ["warm-start"]])
def test_every_command_refuses_a_path_that_is_too_long(workplace, capsys, command):  # noqa: F811
    assert "name too long" in refusal([*command, LONG], capsys)


@pytest.mark.parametrize("place", ["data.jsonl/out.json", "/proc/nope/out.json", "y" * 255 + ".json", "model"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(workplace, capsys, monkeypatch, place):  # noqa: F811
    monkeypatch.setattr(evaluate, "_evaluate", lambda *_: pytest.fail("the work had begun"))
    refusal([*EVALUATE, "--output", place], capsys)
    if place != "model":
        refusal([*EVALUATE, "--samples_output", place], capsys)


def test_an_output_in_a_folder_to_be_made(workplace):  # noqa: F811
    assert main([*EVALUATE, "--output", "new/er/out.json"]) == 0
    assert json.loads(Path("new/er/out.json").read_text()).keys() == {"model"}


def test_results_are_printed_where_the_output_cannot_be_written_after_all(workplace, capsys, monkeypatch):  # noqa: F811
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "write_at_once", full)
    assert main([*EVALUATE, "--output", "out.json"]) == 2
    captured = capsys.readouterr()
    assert re.search(r"^equipoise: --output out\.json .*No space left.*standard output", captured.err, re.MULTILINE)
    printed = json.loads(captured.out[captured.out.index("\n{\n") :])
    assert printed["model"]["held_out"]["num_prompts"] == 2


def test_a_full_disk_in_torchs_words_is_one_in_the_systems(workplace, capsys, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/3")

    write = Path.write_bytes

    def refused(path, content):
        if len(content) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr("equipoise.trl.resumable.torch.save", full)
    monkeypatch.setattr(Path, "write_bytes", refused)
    assert "could not be written: No space left on device" in refusal(arguments(), capsys)


def test_metrics_that_cannot_be_written_end_the_run_in_one_line(workplace, capsys, monkeypatch):  # noqa: F811
    append = run.MetricsRecorder.on_log

    def on_log(self, args, state, *rest, **further):
        if state.global_step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, args, state, *rest, **further)

    monkeypatch.setattr(run.MetricsRecorder, "on_log", on_log)
    assert "No space left on device; once that is mended, continue with --resume run" in refusal(arguments(), capsys)


@pytest.mark.parametrize(
    ("save_steps", "at", "words"),
    [(1, 3, "continue with --resume run"), (9, 3, "cannot be resumed"), (9, 0, "nothing is kept")],
)
def test_an_interruption_says_what_is_left(workplace, capsys, monkeypatch, save_steps, at, words):  # noqa: F811
    begin = run.Beginning.on_step_begin

    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == at:
            raise KeyboardInterrupt
        begin(self, args, state, control, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(run.Beginning, "on_step_begin", on_step_begin)
        assert main(arguments(save_steps=save_steps, evaluate_every=0)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("equipoise: interrupted; ")
    assert words in said
    assert Path("run").exists() == (at > 0)
    assert (run.latest_checkpoint(Path("run")) is not None) == ("--resume" in said)
    if "--resume" in said:
        assert main(["train", "--resume", "run"]) == 0
    elif at:
        assert "it has no checkpoint to resume from" in refusal(arguments(), capsys)
        refusal(["train", "--resume", "run"], capsys)


def test_what_a_host_raises_before_the_work_is_one_line_and_ours_is_none(workplace, capsys, monkeypatch):  # noqa: F811
    assert "cannot begin with these settings" in refusal(arguments(optim_args="nonsense"), capsys)
    assert not Path("run").exists()

    def ours(*_):
        raise ValueError("a mistake of this package")

    monkeypatch.setattr("equipoise.trl.run.MetricsRecorder.on_train_begin", compiled_in_the_package(ours))
    with pytest.raises(ValueError, match="a mistake of this package"):
        main(arguments())


def compiled_in_the_package(function):
    """The function, as if it were in a file of the package."""
    code = function.__code__.replace(co_filename=str(Path(run.__file__)))
    return lambda *_, **__: type(function)(code, function.__globals__)(*_)


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
@pytest.mark.parametrize("command", [["warm-start", "w"], EVALUATE, ["probe", "model"], ["quickstart"]])
def test_seeds_out_of_range(workplace, capsys, command, seed):  # noqa: F811
    assert "seed must be >= 0" in refusal([*command, "--seed", seed], capsys)
