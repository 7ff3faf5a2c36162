"""What a run writes while it goes: which updates have a line, and what a line may hold."""

import json
import math
from types import SimpleNamespace

import pytest

from equipoise.diagnostics.json_lines import JsonLines
from equipoise.trl.callbacks import HeldOutEvaluation, MetricsRecorder


def lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def at(update, *, main=True, last=8):
    return SimpleNamespace(global_step=update, max_steps=last, is_world_process_zero=main)


def test_what_is_not_finite_is_null(tmp_path):
    JsonLines(tmp_path / "a.jsonl").append({"update": 1, "a": math.nan, "b": math.inf, "c": 0.5, "d": None})
    assert lines(tmp_path / "a.jsonl") == [{"update": 1, "a": None, "b": None, "c": 0.5, "d": None}]


def test_later_lines_and_a_cut_one_are_forgotten(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"update": 1}\n{"update": 2}\n{"update": 3}\n{"upd')
    JsonLines(file).drop_after(2)
    assert [line["update"] for line in lines(file)] == [1, 2]
    JsonLines(tmp_path / "none.jsonl").drop_after(2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_only_updates_have_a_line_and_only_the_main_process_writes(tmp_path):
    recorder = MetricsRecorder(tmp_path)
    recorder.on_log(None, at(1), None, logs={"loss": 0.5})
    recorder.on_log(None, at(1, main=False), None, logs={"loss": 0.5})
    recorder.on_log(None, at(1), None, logs={"train_runtime": 3.0})
    recorder.on_log(None, at(1), None, logs=None)
    assert lines(tmp_path / "metrics.jsonl") == [{"update": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    ("every", "start", "expected"),
    [(3, 0, [0, 3, 6, 8]), (0, 0, [8]), (4, 0, [0, 4, 8]), (3, 3, [0, 3, 6, 8]), (3, 4, [0, 3, 6, 8])],
)
def test_evaluations_before_in_between_and_after_also_of_a_resumed_run(tmp_path, every, start, expected):
    """On every process, as they share the work; one writes."""
    evaluated = {True: [], False: []}
    if start:  # what an interrupted run left, with an evaluation that the resumed one makes again
        (tmp_path / "evaluation.jsonl").write_text('{"update": 0}\n{"update": 3}\n{"update": 6}\n')
    for main in (False, True):

        def evaluate(main=main):
            evaluated[main].append(len(evaluated[main]))
            return {"number": evaluated[main][-1], "by_main": main}

        evaluation = HeldOutEvaluation(tmp_path, evaluate, every)
        evaluation.on_train_begin(None, at(start, main=main), None)
        for update in range(start + 1, 9):
            evaluation.on_step_end(None, at(update, main=main), None)
    written = lines(tmp_path / "evaluation.jsonl")
    assert [line["update"] for line in written] == expected
    made = [line for line in written if line["update"] > start or not start]
    assert [line["number"] for line in made] == evaluated[True] == evaluated[False]
    assert all(line["by_main"] for line in made)
