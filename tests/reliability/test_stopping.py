"""Ctrl-C and SIGTERM: the update is finished, a checkpoint written, one line said; a second time ends it at once."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import forked_commands
import pytest
import recovery
from command_line import arguments
from trainer_setup import trainer
from transformers import TrainerCallback

from equipoise.cli import main
from equipoise.diagnostics.run_folder import latest_checkpoint
from equipoise.interrupts import Interrupted, handled, raise_interrupted
from equipoise.trl import run, stopping
from equipoise.trl.stopping import Stopping
from equipoise.trl.trainer import EquipoiseTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
NO_SAVES = ["--save_strategy", "no"]


def told(place):
    """The lines that the command said on its end."""
    return [line for line in forked_commands.output(place).splitlines() if line.startswith("equipoise: ")]


def updates(place):
    metrics = place / "run" / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_a_run_that_is_told_to_end_can_be_resumed_as_if_it_had_not_been(whole, tmp_path_factory, number, code):
    place, expected, _ = whole
    stopped = recovery.copied(place, tmp_path_factory.mktemp("stopped") / "place")
    process = forked_commands.start([*recovery.RUN, *NO_SAVES], stopped)
    forked_commands.wait_for(lambda: updates(stopped) >= 1)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    reached = updates(stopped)
    assert latest_checkpoint(stopped / "run") == stopped / "run" / f"checkpoint-{reached}"
    assert len(told(stopped)) == 1
    assert "Traceback" not in forked_commands.output(stopped)
    assert not list((stopped / "run").rglob("*.part"))
    assert forked_commands.run([*recovery.RESUME, "--save_steps", "1", "--save_total_limit", "2"], stopped) == 0
    compared = {"weights", "metrics", "evaluations", "records"}
    assert {k: v for k, v in recovery.outcome(stopped).items() if k in compared} == {k: expected[k] for k in compared}


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_before_the_first_update_nothing_is_left(workplace, number, code):
    process = forked_commands.start(arguments(evaluate_every=0, max_completion_length=400), workplace)
    forked_commands.wait_for(lambda: (workplace / "run" / "config.yaml").exists())
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert len(told(workplace)) == 1
    assert not (workplace / "run").exists()


@pytest.mark.parametrize("method", ["save_model", "put"])
def test_an_interruption_of_the_final_save_leaves_no_part_of_a_model(workplace, monkeypatch, capsys, method):
    def interrupted(*_):
        (workplace / "run" / "model.part").mkdir(exist_ok=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with monkeypatch.context() as patch:
        if method == "put":
            patch.setattr(run, "put", interrupted)
        else:
            original = EquipoiseTrainer.save_model
            final = lambda self, folder=None, **_: interrupted() if "part" in str(folder) else original(self, folder)  # noqa: E731
            patch.setattr(EquipoiseTrainer, "save_model", final)
        assert main(arguments(evaluate_every=0)) == 143
    assert "continue with --resume run" in capsys.readouterr().err
    assert not list((workplace / "run").glob("model*"))
    assert main(["train", "--resume", "run"]) == 0
    assert (workplace / "run" / "model").is_dir()


def test_other_commands_end_by_sigterm_with_one_line_and_nothing_half_written(workplace):
    words = ["evaluate", "model", "--dataset", "data.jsonl", "--reward", "exact", "--samples", "512", "--k", "1",
             "--max_new_tokens", "500", "--output", "table.json", "--samples_output", "samples"]  # fmt: skip
    before = {p.name for p in workplace.iterdir()}
    process = forked_commands.start(words, workplace)
    forked_commands.wait_for(lambda: list(workplace.glob("samples/*.settings.json")))
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    (line,) = told(workplace)
    assert line.startswith("equipoise: interrupted; the same command goes on")
    assert {p.name for p in workplace.iterdir()} - before == {"output", "changes", "samples"}
    assert not list(workplace.rglob("*.part"))


class Signals(TrainerCallback):
    """Sends itself signals at the beginning of updates: update -> how many, one after another."""

    def __init__(self, when):
        self.when = when

    def on_step_begin(self, args, state, control, **kwargs):
        for _ in range(self.when.get(state.global_step + 1, 0)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)


def watched(folder, when, **settings):
    subject = trainer(folder, max_steps=4, save_strategy="no", **settings)
    watch = Stopping(subject)
    for callback in (watch, Signals(when)):
        subject.add_callback(callback)
    with pytest.raises(Interrupted) as ended, watch.watching():
        subject.train()
    assert ended.value.signal == signal.SIGTERM
    return subject


def test_the_update_in_progress_is_the_last(tmp_path):
    subject = watched(tmp_path, {3: 1})
    assert subject.state.global_step == 3
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_the_same_wish_twice_within_a_second_is_one(tmp_path):
    assert watched(tmp_path, {2: 3}).state.global_step == 2


def test_a_second_wish_ends_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "AGAIN_SECONDS", 0.0)
    assert watched(tmp_path, {2: 2}).state.global_step == 1
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("settings", [{"save_only_model": True}, {}], ids=["model only", "first update"])
def test_where_nothing_can_be_saved_to_resume_from_it_ends_at_once(tmp_path, settings):
    update = 2 if settings else 1
    assert watched(tmp_path, {update: 1}, **settings).state.global_step == update - 1
    assert latest_checkpoint(tmp_path) is None


def test_signals_that_come_while_a_checkpoint_is_written_let_it_be_finished(tmp_path):
    subject = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    watch = Stopping(subject)
    subject.add_callback(watch)
    save = subject._rollout_state

    def told_meanwhile():
        os.kill(os.getpid(), signal.SIGTERM)
        return save()

    subject._rollout_state = told_meanwhile
    with pytest.raises(Interrupted), watch.watching():
        subject.train()
    assert subject.state.global_step == 2
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_script_that_asks_for_it_saves_after_the_update_and_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    subject = trainer(tmp_path, max_steps=4, save_strategy="no", enable_jit_checkpoint=True)
    assert signal.getsignal(signal.SIGTERM) == before
    subject.add_callback(Signals({3: 1}))
    subject.train()
    assert subject.state.global_step == 3
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == ["checkpoint-3"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert signal.getsignal(signal.SIGTERM) == before


def test_handlers_are_put_back_and_none_are_set_in_a_thread():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), handled(raise_interrupted, (signal.SIGTERM,)):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    held = []

    def in_thread():
        with handled(raise_interrupted, (signal.SIGTERM,)):
            held.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert held == [before]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with handled(raise_interrupted, (signal.SIGTERM,)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_child_ends_by_the_signal_itself():
    with handled(raise_interrupted, (signal.SIGTERM,)):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_command_that_was_refused_leaves_the_handlers_as_they_were(workplace, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(arguments(max_steps=1, evaluate_every=-1)) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Traceback" not in capsys.readouterr().err
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize(("words", "place", "advice"), [
    (["quickstart", "--output", "q"], "quickstart.warm_start_ladder", "the same command goes on"),
    (["compare", "s.yaml", "--output", "o"], "compare.command.carry_out", "the same command goes on"),
    (["evaluate", "model", "--dataset", "data.jsonl"], "evaluate._evaluate", "not kept"),
    (["evaluate", "model", "--dataset", "data.jsonl", "--samples_output", "s"], "evaluate._evaluate", "goes on"),
])  # fmt: skip
@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_commands_that_take_long_say_how_they_go_on(workplace, monkeypatch, capsys, words, place, advice, number, code):
    Path("s.yaml").write_text("base: {model: model, task: ladder, use_cpu: true}\nmethods: {a: {}}\n")

    def interrupted(*_, **__):
        raise Interrupted(number) if number == signal.SIGTERM else KeyboardInterrupt

    monkeypatch.setattr(f"equipoise.commands.{place}", interrupted)
    assert main(words) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("equipoise: ")]
    assert "interrupted; " in line
    assert advice in line
