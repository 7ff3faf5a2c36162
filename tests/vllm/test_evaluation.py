"""`equipoise evaluate --backend vllm` with vLLM itself: the answers of transformers, and as many right ones."""

import json
import sys
from types import ModuleType

import pytest
import torch
import vllm_setup

from equipoise.cli import main

TEMPERATURE, SAMPLES = 1.3, 8


def low_digits(prompts, completions, **columns):
    """Completions that begin with a digit below 6."""
    return [float(text[:1] in set("012345")) for text in completions]


@pytest.fixture(scope="module", autouse=True)
def reward():
    """A module of a user's."""
    with pytest.MonkeyPatch.context() as patch:
        module = ModuleType("vllm_rewards")
        module.low_digits = low_digits
        patch.setitem(sys.modules, "vllm_rewards", module)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The samples that `equipoise evaluate` writes with each backend, and its table, for seeds 0 to 2."""
    root = tmp_path_factory.mktemp("evaluation")
    model = vllm_setup.model_folder(root / "model")
    data = root / "held_out.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+{i % 7}=", "answer": "1"}) + "\n" for i in range(100)))
    found = {}
    for backend in ("transformers", "vllm"):
        for seed in range(3):
            folder = root / f"{backend}-{seed}"
            flags = {
                "--task": f"data:{data}", "--reward": "vllm_rewards:low_digits", "--backend": backend, "--seed": seed,
                "--samples": SAMPLES, "--k": 1, "--temperature": TEMPERATURE, "--max_new_tokens": 8,
                "--samples_output": folder, "--output": folder / "table.json",
            }  # fmt: skip
            assert main(["evaluate", str(model), *(str(part) for pair in flags.items() for part in pair)]) == 0
            (lines,) = folder.glob("*.jsonl")
            (table,) = json.loads((folder / "table.json").read_text())[str(model)].values()
            found[backend, seed] = [json.loads(line) for line in lines.read_text().splitlines()], table
    return found


def test_greedy_answers_are_equal(evaluated):
    ours, theirs = (
        [record["greedy"]["text"] for record in evaluated[backend, 0][0]] for backend in ("transformers", "vllm")
    )
    assert len(set(ours)) > 10, "a model that says one thing to all says nothing"
    assert ours == theirs


def test_sampled_answers_are_right_as_often(evaluated):
    """Within three standard errors of the difference for each seed, and within two of all seeds together."""
    differences, variances = [], []
    for seed in range(3):
        means, errors = [], []
        for backend in ("transformers", "vllm"):
            right = torch.tensor(
                [
                    [sample["verdict"] == "correct" for sample in record["completions"]]
                    for record in evaluated[backend, seed][0]
                ]
            ).double()  # [prompts, samples]; prompts are the same, so the error is that within them
            means.append(right.mean().item())
            errors.append((right.var(1) / SAMPLES).mean().item() / len(right))
            assert evaluated[backend, seed][1]["average"]["mean"] == pytest.approx(means[-1])
        assert 0.2 < means[0] < 0.8
        differences.append(means[1] - means[0])
        variances.append(sum(errors))
        assert abs(differences[-1]) < 3 * variances[-1] ** 0.5
    assert abs(sum(differences)) < 2 * sum(variances) ** 0.5
    assert sum(variances) ** 0.5 / 3 < 0.02, "or the test sees nothing"


def test_seeds_repeat_and_differ(evaluated):
    texts = [[[s["text"] for s in record["completions"]] for record in evaluated["vllm", seed][0]] for seed in range(3)]
    assert texts[0] != texts[1] != texts[2]
    assert sum(len(set(of_prompt)) for of_prompt in texts[0]) > 0.9 * SAMPLES * len(texts[0]), "samples are no copies"


def test_a_model_that_vllm_does_not_take_is_one_line(tmp_path, capsys):
    model = vllm_setup.model_folder(tmp_path / "model", hidden_size=24)  # heads of 12
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    assert main(["evaluate", str(model), "--task", f"data:{data}", "--backend", "vllm"]) == 2
    assert "head_dim=12" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_prompt_longer_than_the_context_is_one_line(tmp_path, capsys):
    model = vllm_setup.model_folder(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "' + 70 * "1" + '=", "answer": "2"}\n')
    assert (
        main(["evaluate", str(model), "--task", f"data:{data}", "--backend", "vllm", "--samples", "1", "--k", "1"]) == 2
    )
    assert "vLLM cannot sample" in capsys.readouterr().err.strip().splitlines()[-1]
