"""The plan against what is counted and measured: parameters, activations autograd keeps, KV cache, batches."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MixtralConfig, Qwen2Config, Qwen3Config

from equipoise.cli import main
from equipoise.commands.plan import PlanOptions, accelerate_sharding, plan
from equipoise.errors import InputError
from equipoise.models import memory
from equipoise.models.architectures import ParameterCount, Shape, architecture, parameter_count, recipe_folder
from equipoise.models.memory import Sharding
from equipoise.trl.keys import read_config

RECIPES = sorted((recipe_folder() / "papers").glob("*.yaml"))
ACCELERATE = sorted((recipe_folder() / "accelerate").glob("*.yaml"))
GIB = 2**30

# As their model cards and papers give them.
PUBLISHED = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "OctoThinker/OctoThinker-3B-Hybrid-Base": 3_212_749_824,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
}

SMALL = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "pad_token_id": 0}  # fmt: skip
FAMILIES = {"qwen2": Qwen2Config(**SMALL), "llama": LlamaConfig(**SMALL), "qwen3": Qwen3Config(**SMALL, head_dim=16)}


def keys(**changes):
    base = {"model": "Qwen/Qwen3-1.7B", "task": "ladder", "per_device_train_batch_size": 4, "num_generations": 4,
            "steps_per_generation": 8, "max_completion_length": 1024}  # fmt: skip
    return base | changes


GPU = PlanOptions(device="gpu")


def term(made, name):
    return next(t.num_bytes for t in made.terms if t.name == name)


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_published(model):
    assert parameter_count(architecture(model)).total == PUBLISHED[model]


def test_every_shipped_architecture_is_tested():
    files = {p.stem.replace("--", "/") for p in (recipe_folder() / "architectures").glob("*.json")}
    assert files == set(PUBLISHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_layers_and_outside(family):
    config = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config)
    count = parameter_count(config)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert (count.total, count.layer) == (sum(p.numel() for p in model.parameters()), layer)
    assert count.outside == count.total - 2 * layer
    assert count.trainable == count.total


def test_an_adapter_counts_as_trainable_alone():
    made = plan(keys(use_peft=True, lora_r=8, lora_target_modules=["q_proj"]), GPU)
    config = architecture("Qwen/Qwen3-1.7B")
    adapter = 28 * 8 * (config.hidden_size + config.num_attention_heads * config.head_dim)
    assert made.parameters.trainable == adapter
    assert made.parameters.total == PUBLISHED["Qwen/Qwen3-1.7B"] + adapter
    assert term(made, "weights") == 2 * PUBLISHED["Qwen/Qwen3-1.7B"] + 4 * adapter
    assert term(made, "optimizer") == 8 * adapter


RANK = 4


def kept_by_autograd(config, *, layers, length, dtype, autocast, checkpointing=False, adapted=()):
    """Bytes that autograd keeps of a forward pass through the decoder, parameters and their casts aside."""
    config = type(config)(**(config.to_dict() | {"num_hidden_layers": layers, "layer_types": None}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if adapted:
        decoder = model.base_model
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules=list(adapted), task_type="CAUSAL_LM"))
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.t().shape) for p in model.parameters() if p.ndim == 2
    }
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and not (autocast and tuple(tensor.shape) in shapes):
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    ids = torch.randint(1, 64, (2, length))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # as with padding: attention gets a mask
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        (decoder if adapted else model.base_model)(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_activations_of_a_layer_are_what_autograd_keeps(family, dtype, autocast):
    settings = {"length": 40, "dtype": dtype, "autocast": autocast}
    three, two = (kept_by_autograd(FAMILIES[family], layers=n, **settings) for n in (3, 2))
    residual, compute = dtype.itemsize, 2 if autocast else dtype.itemsize
    shape = Shape.of(FAMILIES[family])
    (expected,) = memory.activation_terms(
        shape,
        rows=2,
        length=40,
        layer=memory.layer_activation_bytes(shape, residual=residual, compute=compute),
        residual=residual,
        compute=compute,
        checkpointing=False,
        masked=True,
    )
    assert three - two == expected.num_bytes / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_keep_their_inputs(family):
    settings = {"length": 40, "dtype": torch.float32, "autocast": True, "checkpointing": True}
    three, two = (kept_by_autograd(FAMILIES[family], layers=n, **settings) for n in (3, 2))
    shape = Shape.of(FAMILIES[family])
    layer = memory.layer_activation_bytes(shape, residual=4, compute=2)
    inputs, again = memory.activation_terms(
        shape, rows=2, length=40, layer=layer, residual=4, compute=2, checkpointing=True, masked=False
    )
    assert three - two == inputs.num_bytes / 2
    assert again.num_bytes == 80 * layer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "adapted",
    [("q_proj", "v_proj"), ("k_proj",), ("o_proj",), ("gate_proj",), ("up_proj", "down_proj"), memory.LINEAR],
    ids=" ".join,
)
def test_activations_before_frozen_weights_are_what_autograd_keeps(family, adapted):
    settings = {"length": 40, "dtype": torch.float32, "autocast": False, "adapted": adapted}
    three, two = (kept_by_autograd(FAMILIES[family], layers=n, **settings) for n in (3, 2))
    mask = 2 * 40 * 40 * 4
    per_token = memory.adapted_layer_activation_bytes(Shape.of(FAMILIES[family]), adapted, RANK)
    assert three - two == 80 * per_token + mask


def test_the_linear_parts_with_an_adapter_are_those_of_peft():
    asked = LoraConfig(r=RANK, target_modules=["gate_proj", "o_proj"], task_type="CAUSAL_LM")
    assert parameter_count(FAMILIES["llama"], asked).adapted == ("gate_proj", "o_proj")
    assert parameter_count(FAMILIES["llama"], LoraConfig(task_type="CAUSAL_LM")).adapted == ("q_proj", "v_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_cache_is_that_of_transformers(family):
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.ones(3, 7, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 21 * memory.kv_cache_bytes(Shape.of(FAMILIES[family]), 4)


COUNT = ParameterCount(total=1000, trainable=1000, layer=100, outside=200)


@pytest.mark.parametrize(
    ("kind", "processes", "saved", "expected"),
    [
        ("none", 1, 2, {"weights": 2000, "gradients": 2000, "optimizer": 4000}),
        ("none", 8, 4, {"weights": 4000, "gradients": 8000, "optimizer": 8000}),
        ("fsdp2", 8, 2, {"weights": 500, "gathered weights": 800, "gradients": 500, "optimizer": 1000}),
        ("zero2", 8, 2, {"weights": 2000, "gradients": 250 + 2 * 10**9, "optimizer": 1500}),
        (
            "zero3",
            8,
            2,
            {"weights": 250, "gathered weights": 2000, "gradients": 250 + 10**9 + 500, "optimizer": 1500},
        ),
    ],
)
def test_states_by_sharding(kind, processes, saved, expected):
    terms = memory.model_terms(
        COUNT, Sharding(kind, processes), saved_bytes=saved, optimizer="adamw_torch_fused", mixed=True, reference=False
    )
    assert {t.name: t.num_bytes for t in terms} == expected


def test_optimizers_of_8_bits_and_the_reference_model():
    terms = memory.model_terms(
        COUNT, Sharding("fsdp2", 2), saved_bytes=2, optimizer="adamw_8bit", mixed=True, reference=True
    )
    held = {t.name: t.num_bytes for t in terms}
    assert (held["optimizer"], held["reference model"]) == (1000, 1000)


def test_batches_by_hand():
    values = keys(gradient_accumulation_steps=2, num_iterations=3, replay_fraction=0.5)
    batch = plan(values, PlanOptions(processes=4)).batch
    assert (batch.completions_per_update, batch.prompts_per_update) == (32, 8)
    assert (batch.completions_per_rollout, batch.prompts_per_rollout) == (128, 32)
    assert batch.fresh_completions_per_rollout == 64
    assert batch.updates_per_rollout == 12
    assert batch.most_tokens_per_rollout == 64 * 1024


def test_sums_are_those_of_the_phases_and_decide():
    made = plan(keys(), PlanOptions(gpu_memory=10))
    learning = sum(t.num_bytes for t in made.terms if t.phase != "sampling")
    sampling = sum(t.num_bytes for t in made.terms if t.phase != "learning")
    assert (made.learning_bytes, made.sampling_bytes) == (learning, sampling)
    assert not made.fits
    room = max(learning, sampling) / 0.9 / GIB
    assert plan(keys(), PlanOptions(gpu_memory=room * 1.001)).fits
    assert not plan(keys(), PlanOptions(gpu_memory=room * 0.999)).fits


def test_transformers_holds_the_cache_of_all_its_rows():
    made = plan(keys(), PlanOptions(device="gpu", prompt_tokens=100))
    assert term(made, "KV cache") == 32 * 1124 * memory.kv_cache_bytes(made.shape, 2)


def test_vllm_takes_its_share_in_one_phase_or_both():
    vllm = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.25}
    awake, asleep = (plan(keys(**vllm, vllm_enable_sleep_mode=sleep), GPU) for sleep in (False, True))
    assert awake.learning_bytes - asleep.learning_bytes == 20 * GIB
    assert awake.sampling_bytes == asleep.sampling_bytes
    sequence = 1536 * memory.kv_cache_bytes(awake.shape, 2)
    assert f"{(20 * GIB - 2 * awake.parameters.total) // sequence} sequences of full length" in awake.notes[0]
    server = plan(keys(use_vllm=True, vllm_mode="server"), GPU)
    assert server.sampling_bytes == server.learning_bytes - sum(
        t.num_bytes for t in server.terms if t.phase == "learning"
    )
    assert "does not fit" in plan(keys(**vllm), PlanOptions(gpu_memory=8)).notes[0]


def test_the_mask_of_sdpa_is_counted_and_flash_attention_has_none():
    masked, plain = (
        plan(keys(model_init_kwargs={"attn_implementation": kind}), GPU) for kind in ("sdpa", "flash_attention_2")
    )
    assert masked.learning_bytes - plain.learning_bytes == 4 * 1536**2 * 2


def test_training_in_16_bits_is_pointed_out():
    assert any("lost in rounding" in note for note in plan(keys(), GPU).notes)
    whole = plan(keys(model_init_kwargs={"dtype": "float32"}), GPU)
    assert not any("lost in rounding" in note for note in whole.notes)
    assert term(whole, "weights") == 4 * whole.parameters.total


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_has_a_plan_that_fits(path):
    values = read_config(path)
    said = path.read_text()
    file = next((p for p in ACCELERATE if f"accelerate launch --config_file recipes/accelerate/{p.name}" in said), None)
    made = plan(values, PlanOptions(accelerate=file, device="gpu"))
    assert made.fits, made.as_dict()
    assert (file is None) == ("on one GPU" in said)
    for number in (made.batch.completions_per_update, made.batch.completions_per_rollout):
        assert made.batch.processes == 1 or f"= {number}" in said or f"{number} per rollout" in said


def test_32b_does_not_fit_on_one_node_with_zero2():
    values = read_config(recipe_folder() / "papers/bapo_r1_distill_32b.yaml")
    assert not plan(values, PlanOptions(accelerate=recipe_folder() / "accelerate/one_node_zero2.yaml")).fits


@pytest.mark.parametrize("stage", ["zero_stage: 1", "deepspeed_config_file: zero.json"])
def test_a_stage_that_is_not_known_is_refused(tmp_path, stage):
    path = tmp_path / "accelerate.yaml"
    path.write_text(f"distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n  {stage}\n")
    with pytest.raises(InputError, match="must give zero_stage 2 or 3, got (1|None); choose with --sharding"):
        accelerate_sharding(path)


def test_32b_fits_on_four_nodes_with_zero3_and_sampling_with_transformers_gathers_it():
    values = read_config(recipe_folder() / "papers/bapo_r1_distill_32b.yaml")
    nodes = PlanOptions(accelerate=recipe_folder() / "accelerate/several_nodes_zero3.yaml")
    assert plan(values, nodes).fits
    without_vllm = {name: value for name, value in values.items() if "vllm" not in name}
    made = plan(without_vllm, nodes)
    assert term(made, "whole model") == 2 * made.parameters.total
    scattered = plan(without_vllm | {"ds3_gather_for_generation": False}, nodes)
    assert made.sampling_bytes - scattered.sampling_bytes == 2 * made.parameters.total


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda p: p.stem)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.num_processes == values["num_processes"]
    kind, processes = accelerate_sharding(path)
    assert (kind, processes) == (path.stem.split("_")[-1].replace("ddp", "none"), config.num_processes)


def test_the_command_prints_tables_or_json(capsys, tmp_path):
    recipe = str(recipe_folder() / "papers/bapo_r1_distill_7b.yaml")
    node = str(recipe_folder() / "accelerate/one_node_fsdp2.yaml")
    assert main(["plan", "--config", recipe, "--accelerate", node]) == 0
    said = capsys.readouterr().out
    assert "7,615,616,512 parameters" in said
    assert "staleness" in said
    assert main(["plan", "--config", recipe, "--accelerate", node, "--num_iterations", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["batch"]["updates_per_rollout"] == 8
    assert values["fits"] is True
    assert all(t["formula"] for t in values["terms"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--processes", "0"], "--processes must be > 0 and <= 1e9, got --processes=0"),
        (["--gpu_memory", "-1"], "--gpu_memory must be > 0"),
        (["--accelerate", "nowhere.yaml"], "accelerate configuration nowhere.yaml cannot be read"),
        (["--architecture", "nowhere.json"], "architecture nowhere.json is no config.json"),
        (["--model", "no/where"], "model no/where: its config.json cannot be read"),
        (["--num_generations", "3"], "num_generations"),
        (["--clipping", "both"], "clipping must be one of"),
        (["--sharing", "x"], "flag --sharing is not known"),
    ],
)
def test_refusals(arguments, expected, capsys):
    values = [word for key, value in keys().items() if f"--{key}" not in arguments for word in (f"--{key}", str(value))]
    assert main(["plan", *values, *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("equipoise: ")
    assert expected in line


def test_fsdp_1_and_mixtures_of_experts_are_refused(tmp_path):
    path = tmp_path / "fsdp1.yaml"
    path.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {}\n")
    with pytest.raises(InputError, match="fsdp_version must be 2"):
        accelerate_sharding(path)
    with pytest.raises(InputError, match="mixture of experts"):
        Shape.of(MixtralConfig())


def test_an_architecture_file_and_a_model_folder(tmp_path):
    config = FAMILIES["qwen3"]
    config.save_pretrained(tmp_path)
    assert Shape.of(architecture(str(tmp_path))) == Shape.of(config)
    assert Shape.of(architecture("no/where", Path(tmp_path) / "config.json")) == Shape.of(config)
