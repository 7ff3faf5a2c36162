"""The probe on a small model: the exact first order is exact, the weights stay, mistakes are named."""

import csv
import hashlib
import json

import pytest
import torch

from equipoise.cli import main
from equipoise.commands.probe import ProbeOptions, ProbeSampling, StepOptions, _probe_batch
from equipoise.commands.probe_passes import Rollout
from equipoise.commands.probe_time import ProbeBar, ProbeTime
from equipoise.models.loading import load_model, load_tokenizer
from equipoise.models.prompts import encoded_prompts
from equipoise.models.sampling import Sampler
from equipoise.models.statistics_head import add_statistics_head
from equipoise.models.warm_starts import warm_start_ladder
from equipoise.tasks import ladder_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return warm_start_ladder(tmp_path_factory.mktemp("probe") / "model", steps=250, batch_size=128, progress=False)


def run(model, output, *flags):
    few = ["--prompts", "8", "--generations", "8", "--batches", "2", "--batch_size", "16"]
    code = main(["probe", str(model), "--task", "ladder", "--output", str(output), *few, *flags])
    return code, json.loads((output / "probe.json").read_text()) if code == 0 else None


def probed(model, learning_rate=0.01, optimizer="sgd", batch_size=8):
    """One batch on four prompts, two completions each, in float64 as far as transformers lets it be."""
    tokenizer, policy = load_tokenizer(str(model)), load_model(str(model), on_cpu=True).eval().double()
    add_statistics_head(policy, temperature=1.0)
    prompts = encoded_prompts(tokenizer, ladder_task().train["prompt"][:4])
    torch.manual_seed(0)
    completions = Sampler(policy, tokenizer, 13, 64).completions([p for p in prompts for _ in range(2)], 1.0, print)
    rollout = Rollout([p for p in prompts for _ in range(2)], completions, torch.tensor([1.0, -1] * 4), [1.0, 0] * 4)
    step = StepOptions(optimizer=optimizer, learning_rate=learning_rate)
    sampling = ProbeSampling(batch_size=batch_size, generations=2)
    bar = ProbeBar(8, ProbeTime(1.0, 1.0))
    return _probe_batch(policy, rollout, ProbeOptions(model=str(model), step=step, sampling=sampling), 0, bar)


@pytest.mark.parametrize(("optimizer", "step"), [("sgd", 1e-5), ("adamw", 1e-7)])
def test_first_order_is_exact_for_a_small_step(model, optimizer, step):
    _, batch = probed(model, step, optimizer)
    assert batch["realised"] == pytest.approx(batch["first_order"], rel=0.01)
    _, larger = probed(model, 2 * step, optimizer)
    assert larger["first_order"] == pytest.approx(2 * batch["first_order"], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_small_step_moves_the_entropy(model, tmp_path, optimizer):
    rate = {"sgd": "1e-4", "adamw": "1e-6"}[optimizer]
    _, report = run(model, tmp_path / "probe", "--optimizer", optimizer, "--learning_rate", rate, "--seed", "3")
    assert all(batch["realised"] != 0 for batch in report["batches"])


def test_a_large_step_is_said_to_be_meaningless(model, tmp_path, caplog):
    _, report = run(model, tmp_path / "probe", "--optimizer", "adamw", "--learning_rate", "0.1")
    assert report["remainder"] > 0.5
    assert "too large for first order" in caplog.text
    assert "Lower --learning_rate (now 0.1)" in caplog.text


def test_everything_is_written_and_the_model_is_as_before(model, tmp_path):
    before = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    _, report = run(model, tmp_path / "probe")
    assert hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest() == before
    assert {p.name for p in (tmp_path / "probe").iterdir()} == {"probe.json", "tokens.csv", "probe.png"}
    with (tmp_path / "probe" / "tokens.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(batch["tokens"] for batch in report["batches"])
    assert {row["batch"] for row in rows} == {"0", "1"}
    assert {row["prompt"] for row in rows} == {str(n) for n in range(16)}
    expanding = [float(row["polarity"]) > 0 for row in rows if float(row["advantage"]) > 0]
    below = [
        float(row["threshold"]) > 2.718281828 ** float(row["logprob"]) for row in rows if float(row["advantage"]) > 0
    ]
    assert sum(a == b for a, b in zip(expanding, below, strict=True)) / len(below) > 0.99
    # Both batches start from the same weights.
    assert report["batches"][0]["entropy"] == pytest.approx(report["batches"][1]["entropy"], rel=0.3)


def test_the_same_seed_gives_the_same_numbers(model, tmp_path):
    reports = [run(model, tmp_path / name, "--seed", "5")[1] for name in ("a", "b")]
    assert reports[0] == reports[1]


def test_a_batch_gives_the_same_numbers_in_any_portions(model):
    found = [probed(model, batch_size=size) for size in (8, 3, 1)]
    for tokens, summary in found[1:]:
        assert summary == pytest.approx(found[0][1], rel=1e-9)
        assert tokens.realised == pytest.approx(found[0][0].realised, rel=1e-6, abs=1e-12)
        assert (tokens.prompt == found[0][0].prompt).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompts", "0"], "--prompts must be >= 1 and <= 1048576, got --prompts=0"),
        (["--generations", "1"], "--generations must be >= 2 and <= 1048576, got --generations=1"),
        (["--learning_rate", "0"], "--learning_rate must be > 0 and <= 1e6, got --learning_rate=0.0"),
        (["--temperature", "-1"], "--temperature must be >= 1e-6 and <= 1e6, got --temperature=-1.0"),
        (["--prompts", "5000"], "need 10000 prompts, the data has 1659"),
        (["--max_new_tokens", "1"], "got equal rewards"),
    ],
)
def test_mistakes_are_named_and_nothing_is_left(model, tmp_path, capsys, flags, message):
    assert run(model, tmp_path / "probe", *flags)[0] == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_and_a_model_without_data_are_refused(model, tmp_path, capsys):
    assert main(["probe", str(model), "--task", "ladder", "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path} exists" in capsys.readouterr().err
    assert main(["probe", str(model), "--output", str(tmp_path / "new")]) == 2
    assert "names no data: give --task, or --dataset and --reward" in capsys.readouterr().err


def test_an_adapter_is_probed_by_a_step_of_its_own(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_model(str(model), on_cpu=True), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    adapted.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(model)).save_pretrained(tmp_path / "adapter")
    code, report = run(tmp_path / "adapter", tmp_path / "probe", "--optimizer", "sgd", "--learning_rate", "1e-3")
    assert code == 0
    assert report["remainder"] < 0.1
