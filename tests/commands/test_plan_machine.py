"""What `equipoise plan` plans for: the device that a run would compute on, its memory, and the types used there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from equipoise.cli import main
from equipoise.commands import plan_machine
from equipoise.commands.plan import PlanOptions, plan
from equipoise.errors import InputError
from equipoise.models import memory
from equipoise.models.architectures import recipe_folder
from equipoise.trl.keys import read_config

GIB = 2**30
WIDTHS = {"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4}
REAL_MODEL = os.environ.get("EQUIPOISE_REAL_MODEL")


@pytest.fixture
def model(tmp_path):
    LlamaConfig(vocab_size=640, **WIDTHS, num_key_value_heads=2, dtype="bfloat16").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def keys(model, **changes):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 24}
    return {"model": model, "task": "ladder"} | sizes | changes


def held(made):
    return {term.name: term.num_bytes for term in made.terms}


@pytest.fixture
def without_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("options", "changes", "device"),
    [
        ({}, {"use_cpu": True}, "cpu"),
        ({"sharding": "fsdp2", "processes": 2}, {"use_cpu": True}, "cpu"),
        ({}, {}, "cpu"),
        ({"device": "cpu"}, {}, "cpu"),
        ({"device": "gpu"}, {}, "gpu"),
        ({"gpu_memory": 80}, {}, "gpu"),
        ({"processes": 8}, {}, "gpu"),
        ({"sharding": "none"}, {}, "gpu"),
        ({"accelerate": recipe_folder() / "accelerate/one_node_ddp.yaml"}, {}, "gpu"),
    ],
)
def test_the_device_is_that_of_the_run_unless_gpus_are_described(model, without_accelerator, options, changes, device):
    made = plan(keys(model, **changes), PlanOptions(**options))
    assert made.device == device
    guessed = options == {} and changes == {}
    assert any("--device gpu" in note for note in made.notes) == guessed


def test_with_an_accelerator_a_run_is_planned_for_it_unless_it_uses_the_cpu(model, monkeypatch):
    accelerator = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(
        plan_machine, "torch", SimpleNamespace(accelerator=accelerator)
    )  # the trainer looks for a real one
    assert plan(keys(model), PlanOptions()).device == "gpu"
    assert plan(keys(model, use_cpu=True), PlanOptions()).device == "cpu"


def test_accelerate_has_a_cpu_of_its_own(model, tmp_path):
    path = tmp_path / "accelerate.yaml"
    path.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    made = plan(keys(model), PlanOptions(accelerate=path))
    assert (made.device, made.batch.processes) == ("cpu", 2)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"device": "gpu"}, "--device must be cpu, since use_cpu is true"),
        ({"gpu_memory": 40}, "--gpu_memory 40 is of a GPU"),
    ],
)
def test_what_contradicts_use_cpu_is_refused(model, options, rule):
    with pytest.raises(InputError, match=rule):
        plan(keys(model, use_cpu=True), PlanOptions(**options))
    with pytest.raises(InputError, match="--cpu_memory 4 is of a CPU"):
        plan(keys(model), PlanOptions(device="gpu", cpu_memory=4))


def test_a_cpu_holds_float32_without_checkpointing_unless_asked(model):
    made = plan(keys(model), PlanOptions(device="cpu", prompt_tokens=40))
    count = made.parameters.total
    on_cpu = held(made)
    assert on_cpu["libraries"] == memory.LIBRARIES.num_bytes
    assert (on_cpu["weights"], on_cpu["gradients"], on_cpu["optimizer"]) == (4 * count, 4 * count, 8 * count)
    layer = memory.layer_activation_bytes(made.shape, residual=4, compute=4)
    (activations,) = memory.activation_terms(
        made.shape, rows=4, length=64, layer=layer, residual=4, compute=4, checkpointing=False, masked=True
    )
    assert on_cpu["activations"] == activations.num_bytes
    assert on_cpu["KV cache"] == 4 * 64 * memory.kv_cache_bytes(made.shape, 4)
    asked = held(plan(keys(model, gradient_checkpointing=True), PlanOptions(device="cpu")))
    assert "layer inputs" in asked
    assert "activations" not in asked
    half = held(plan(keys(model, model_init_kwargs={"dtype": "bfloat16"}), PlanOptions(device="cpu")))
    assert half["weights"] == 2 * count


def test_an_adapter_in_float32_spares_the_inputs_of_frozen_weights(model):
    whole, adapter = (
        held(plan(keys(model, **lora), PlanOptions(device="cpu", prompt_tokens=40)))
        for lora in ({}, {"use_peft": True, "lora_target_modules": ["v_proj"]})
    )
    made = plan(keys(model), PlanOptions(device="cpu"))
    layer = memory.adapted_layer_activation_bytes(made.shape, {"v_proj"}, 16)
    assert adapter["activations"] == 2 * (4 * 64 * layer + 4 * 64 * 64 * 4)
    assert adapter["activations"] < whole["activations"]
    dropout = {"use_peft": True, "lora_target_modules": ["v_proj"], "lora_dropout": 0.1}
    assert (
        held(plan(keys(model, **dropout), PlanOptions(device="cpu", prompt_tokens=40)))["activations"]
        == (whole["activations"])
    )


def test_a_tied_embedding_has_a_gradient_beside_the_heads(tmp_path):
    config = LlamaConfig(vocab_size=640, **WIDTHS, num_key_value_heads=2, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    tied = {device: held(plan(keys(str(tmp_path)), PlanOptions(device=device))) for device in ("cpu", "gpu")}
    assert tied["cpu"]["embedding's gradient"] == 4 * 640 * 48
    assert "embedding's gradient" not in tied["gpu"]
    adapter = plan(keys(str(tmp_path), use_peft=True), PlanOptions(device="cpu"))
    assert "embedding's gradient" not in held(adapter)


def test_a_gpu_holds_what_it_did(model):
    on_gpu = held(plan(keys(model), PlanOptions(device="gpu")))
    assert not {"libraries", "embedding's gradient"} & set(on_gpu)
    assert "layer inputs" in on_gpu


def test_processes_on_a_cpu_share_its_memory(model):
    one = plan(keys(model), PlanOptions(device="cpu"))
    room = max(one.learning_bytes, one.sampling_bytes) / 0.9 / GIB
    assert plan(keys(model), PlanOptions(device="cpu", cpu_memory=room * 1.01)).fits
    assert not plan(keys(model), PlanOptions(device="cpu", cpu_memory=room * 0.99)).fits
    two = PlanOptions(device="cpu", processes=2, cpu_memory=room * 1.9)
    assert not plan(keys(model), two).fits


@pytest.mark.parametrize(("limit", "smaller"), [("1048576\n", True), ("max\n", False), (None, False)])
def test_the_memory_of_a_cpu_is_the_machines_or_the_containers(model, tmp_path, monkeypatch, limit, smaller):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(plan_machine, "CGROUP_LIMIT", file)
    made = plan(keys(model), PlanOptions(device="cpu"))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert made.device_bytes == (1048576 if smaller else whole)


def test_the_quick_starts_recipe_is_planned_for_the_cpu_it_trains_on(model, capsys):
    recipe = recipe_folder() / "ladder_stale_equipoise.yaml"
    assert read_config(recipe)["use_cpu"] is True
    assert main(["plan", "--config", str(recipe), "--model", model]) == 0
    said = capsys.readouterr().out
    assert "batches on the CPU, 1 process" in said
    assert "GPU" not in said
    assert main(["plan", "--config", str(recipe), "--model", model, "--processes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.skipif(REAL_MODEL is None, reason="EQUIPOISE_REAL_MODEL names no model folder")
def test_the_peak_of_a_real_model_is_within_15_percent():
    script = Path(__file__).parents[2] / "benchmarks/plan_on_a_cpu.py"
    command = [sys.executable, str(script), str(REAL_MODEL), "--only", "0", "10"]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[2:]
    assert len(rows) == 2
    for row in rows:
        assert 0.85 <= float(row.split("|")[3]) <= 1.15, row
