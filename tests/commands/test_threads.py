"""The number of threads is the command line's to set, and of a small model on a CPU alone."""

from types import SimpleNamespace

import pytest
import torch

from equipoise.commands import threads
from equipoise.commands.threads import SMALL_MODEL, fit_threads


def model(parameters):
    return SimpleNamespace(num_parameters=lambda: parameters)


@pytest.mark.parametrize(
    ("parameters", "on_cpu", "chosen", "expected"),
    [
        (SMALL_MODEL - 1, True, None, [1]),
        (SMALL_MODEL, True, None, []),
        (1, False, None, []),
        (1, True, "2", []),
    ],
)
def test_one_thread_for_a_small_model_where_nothing_else_is_said(monkeypatch, parameters, on_cpu, chosen, expected):
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    given = []
    monkeypatch.setattr(threads.torch, "set_num_threads", given.append)
    fit_threads(model(parameters), on_cpu=on_cpu)
    assert given == expected


def test_a_library_call_leaves_the_threads_alone(tmp_path, monkeypatch):
    """What `equipoise.trl.run` does with the loaded model is what its caller asks for, and nothing else."""
    from trainer_setup import character_tokenizer, tiny_model

    from equipoise.trl import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"threads set to {number}"))
    tiny_model().save_pretrained("model")
    character_tokenizer().save_pretrained("model")
    rows = "".join(f'{{"prompt": "{n}+{n}=", "answer": "{2 * n}"}}\n' for n in range(8))
    (tmp_path / "data.jsonl").write_text(rows)
    values = {
        "model": "model", "task": "data:data.jsonl", "reward": "exact", "output_dir": "run", "max_steps": 1,
        "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    seen = []
    run.train(values, on_model=lambda model, on_cpu: seen.append((type(model).__name__, on_cpu)))
    assert seen == [(type(tiny_model()).__name__, True)]
