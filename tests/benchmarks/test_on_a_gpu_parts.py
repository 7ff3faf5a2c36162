"""What the parts of `benchmarks/on_a_gpu.py` are made of: summary and targets, device waits, wheels, contenders."""

import types
import warnings

import pytest
import torch
from on_a_gpu_parts import head, kernel_tests, records, step_shapes, wheels
from on_a_gpu_parts.summary import summary
from on_a_gpu_parts.syncs import WORDS, SyncCounter
from on_a_gpu_parts.targets import targets

# ---- summary and targets -------------------------------------------------------------------------------------------


def spread(value):
    return {"median": value, "quartile_1": value, "quartile_3": value}


def head_row(ratio, **changes):
    row = {
        "tokens": 8, "hidden": 4, "vocabulary": 9, "dtype": "bfloat16", "mode": "trained", "contender": head.LIGER,
        "milliseconds": spread(5.0), "to_equipoise": spread(ratio), "scratch_mb": 3.0, "rounds": 4,
    }  # fmt: skip
    return row | changes


def step_row(ratio, micro_batches=4, trainer="balanced, papo, records", peak=1.0, waits=0.0):
    return {
        "trainer": trainer, "micro_batches": micro_batches, "seconds": spread(1.0), "rollout_seconds": spread(1.0),
        "to_trl": spread(ratio), "peak_mb": 100.0, "peak_to_trl": peak, "syncs_per_update": {"micro-batch": waits},
        "own_syncs_in_micro_batch": waits, "sync_places": ["micro-batch: 1 × trl x.py:1"], "updates": 4,
    }  # fmt: skip


def part(rows, notes=(), **more):
    setting = {"device": "a GPU", "commit": "abc", "sources": "1", "small": False, "dirty": True, "python": "3.11",
               "driver": "580", "cuda": "13", "versions": {"torch": "2"}}  # fmt: skip
    figures = {"rows": rows, "notes": list(notes)}
    return {"state": "done", "seconds": 3.0, "setting": setting, "figures": figures} | more


@pytest.mark.parametrize(("ratio", "met"), [(1.01, True), (1.0, False), (0.99, False)])
def test_equipoise_must_be_strictly_ahead_of_liger(ratio, met):
    (target,) = targets({"head": part([head_row(ratio), head_row(9.0, mode="frozen"), head_row(9.0, contender="x")])})
    assert target.met is met


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (step_row(1.15), [True, True, True]),
        (step_row(1.16, waits=2.0), [False, True, False]),
        (step_row(1.03, trainer="balanced, papo, records, lagged"), [False, True, True]),
        (step_row(1.02, micro_batches=1, peak=1.02), [True, False, True]),
        (step_row(1.03, micro_batches=1), [False, True, True]),
        (step_row(2.0, trainer="everything off"), []),
    ],
)
def test_targets_of_the_step(row, met):
    assert [target.met for target in targets({"step-1.5b": part([row])})] == met


def test_the_summary_says_what_is_there_and_what_is_not():
    text = summary({
        "head": part([head_row(1.2)], ["verl is not installed"]),
        "step-0.5b": part([step_row(1.5)], state="failed", reason="signal 9:\nout | of memory"),
    })  # fmt: skip
    assert "verl is not installed" in text
    assert "| step-0.5b | failed | 3.0 | signal 9: out / of memory |" in text
    assert "| sampling | not run |" in text
    assert "not met" in text
    assert "driver 580" in text
    assert "with changes" in text
    assert "x.py:1" in text
    assert summary({})


def test_figures_are_whole_at_any_moment(tmp_path):
    figures = records.Figures(tmp_path / "head.json")
    figures.add(a=1)
    with pytest.raises(TypeError):
        figures.add(a=object())
    assert records.read_json(tmp_path / "head.json")["rows"] == [{"a": 1}]
    (tmp_path / "head.json").write_text('{"rows": [')
    assert records.read_json(tmp_path / "head.json") == {}


# ---- device waits --------------------------------------------------------------------------------------------------


def waits_in(package):
    """A function of a package that makes torch say that it waits."""
    module = types.ModuleType(package)
    code = f"import warnings\ndef wait():\n    warnings.warn('called a {WORDS}')\n"
    exec(compile(code, f"/somewhere/{package.replace('.', '/')}.py", "exec"), module.__dict__)
    return module.wait


def test_waits_are_put_down_to_phase_and_package():
    counter, ours, trl, other = SyncCounter(), waits_in("equipoise.x"), waits_in("trl.y"), waits_in("torch.z")
    with counter.on():
        counter.updates = 2
        for _ in range(3):
            ours()
        with counter.during("micro-batch"):
            trl()
            with counter.during("rollout"):
                other()
            ours()
    assert counter.per_update() == {"between": 1.5, "micro-batch": 1.0, "rollout": 0.5}
    assert counter.own_in_micro_batch() == 0.5
    assert counter.places()[0].startswith("between: 1.5 × equipoise x.py:")


def test_other_warnings_are_not_waits_and_nothing_is_counted_when_off():
    counter = SyncCounter()
    with pytest.warns(UserWarning, match="of another kind"), counter.on():
        warnings.warn("of another kind", stacklevel=1)
    with pytest.warns(UserWarning, match=WORDS):
        waits_in("trl")()
    assert not counter.found


# ---- wheels --------------------------------------------------------------------------------------------------------


def chosen(monkeypatch, tmp_path, names, present):
    monkeypatch.setattr(wheels, "installed", present.get)
    found, said = wheels.choose([tmp_path / name for name in names])
    return [path.name for path in found], "\n".join(said)


def test_only_what_is_missing_or_out_of_range_is_installed(monkeypatch, tmp_path):
    names = ["trl-1.16.0-py3-none-any.whl", "verl-0.9.1-py3-none-any.whl", "tqdm-4.70.1-py3-none-any.whl",
             "torch-2.13.0-py3-none-any.whl", "transformers-5.23.0-py3-none-any.whl"]  # fmt: skip
    present = {"tqdm": "4.67.0", "trl": "0.9.0", "transformers": "5.17.0"}
    found, said = chosen(monkeypatch, tmp_path, names, present)
    assert found == ["trl-1.16.0-py3-none-any.whl", "verl-0.9.1-py3-none-any.whl"]
    assert "beside 0.9.0" in said


def test_a_wheel_for_another_python_and_a_second_one_are_left_out_and_said(monkeypatch, tmp_path):
    names = ["xxhash-4.1.0-cp27-cp27m-win32.whl", "dill-0.4.0-py3-none-any.whl", "dill-0.4.1-py3-none-any.whl"]
    found, said = chosen(monkeypatch, tmp_path, names, {})
    assert found == ["dill-0.4.0-py3-none-any.whl"]
    assert "xxhash-4.1.0" in said
    assert "dill-0.4.1" in said


# ---- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", head.MODES)
@pytest.mark.parametrize("name", [head.OURS, head.TRL_WHOLE, head.TRL_CHUNKED, head.VERL_WHOLE])
def test_contenders_do_the_same_work_in_every_mode(name, mode):
    task = head.Task((6, 8, 40), "cpu", torch.float32).in_mode(mode)
    out = head.call(name, task)()
    exact = (task.hidden @ task.weight.t()).log_softmax(-1).gather(1, task.targets[:, None])[:, 0]
    torch.testing.assert_close(task.logprob.float(), exact.detach(), rtol=1e-4, atol=1e-4)
    inputs = [x for x in (task.hidden, task.weight) if x.requires_grad]
    assert len(inputs) == {"trained": 2, "frozen": 1, "forward": 0}[mode]
    gradients = torch.autograd.grad(exact, inputs, task.advantage) if inputs else ()
    for found, expected in zip(out, gradients, strict=False):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_rollouts_are_the_same_for_every_trainer_and_fit_the_shape():
    shape = step_shapes.SMALL
    made = step_shapes.completions(shape, 8, 3)
    assert made == step_shapes.completions(shape, 8, 3) != step_shapes.completions(shape, 8, 4)
    assert {len(ids) for ids in made} > {shape.completion}
    assert all(0 < len(ids) <= shape.completion and min(ids[:-1]) > 1 for ids in made)
    rewards = step_shapes.reward(None, made)
    assert rewards == step_shapes.reward(None, made)
    assert len(set(rewards)) == 8
    text = step_shapes.prompts(shape, 1)[0]["prompt"]
    assert len(step_shapes.tokenizer(shape)(text)["input_ids"]) == shape.prompt


def test_counts_of_a_run_of_tests_and_of_one_that_could_not_begin(tmp_path):
    report = tmp_path / "report.xml"
    assert kernel_tests.counts(report)["errors"] == 1
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>')
    assert kernel_tests.counts(report) == {"passed": 3, "failed": 1, "errors": 2, "skipped": 3}
