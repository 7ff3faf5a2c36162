"""Model folders that are broken or hostile: one line, before anything is allocated after what they say."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import arguments, refusal
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trainer_setup import character_tokenizer, tiny_model

from equipoise.errors import InputError
from equipoise.models import loading
from equipoise.models.loading import load_model, load_tokenizer

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "max_position_embeddings")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    tiny_model().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


def configured(model, **changes):
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))


def sharded(model):
    """In two files, with an index."""
    tensors = sorted(load_file(model / "model.safetensors").items())
    names = {}
    for number, part in enumerate((tensors[:5], tensors[5:])):
        save_file(dict(part), model / f"part-{number}.safetensors", metadata={"format": "pt"})
        names |= {name: f"part-{number}.safetensors" for name, _ in part}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def without(model, beginning):
    tensors = {k: v for k, v in load_file(model / "model.safetensors").items() if not k.startswith(beginning)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def reshaped(model):
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.zeros(3, 5)}, model / "model.safetensors", metadata={"format": "pt"})


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [-1, 0, 10**12, "16", 1.5, True, [16]])
def test_sizes_that_are_none_are_named(model, size, value):
    configured(model, **{size: value})
    with pytest.raises(InputError, match=rf"^model file [^\n]*config\.json: {size} must be [^\n]*got "):
        load_model(str(model), on_cpu=True)


@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize("value", [10**6, 2**31 - 1, 7])
def test_sizes_that_are_not_those_of_the_weights_are_refused(model, size, value):
    configured(model, **{size: value})
    with pytest.raises(InputError, match=r"^model [^\n]*$"):
        load_model(str(model), on_cpu=True)


BROKEN = {
    "no configuration": lambda m: (m / "config.json").unlink(),
    "configuration cut off": lambda m: cut(m / "config.json"),
    "a list": lambda m: (m / "config.json").write_text("[]"),
    "no weights": lambda m: (m / "model.safetensors").unlink(),
    "GGUF": lambda m: (m / "model.safetensors").rename(m / "model.gguf"),
    "weights cut off": lambda m: cut(m / "model.safetensors"),
    "header cut off": lambda m: cut(m / "model.safetensors", 0.01),
    "empty weights": lambda m: cut(m / "model.safetensors", 0),
    "noise": lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 1000),
    "another shape": reshaped,
    "a tensor less": lambda m: without(m, "lm_head"),
    "a layer less": lambda m: without(m, "model.layers"),
    "a shard less": lambda m: (sharded(m), (m / "part-1.safetensors").unlink()),
    "a shard cut off": lambda m: (sharded(m), cut(m / "part-0.safetensors")),
    "an index that is none": lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
    "an unknown type": lambda m: configured(m, model_type="nonsense", architectures=["Nonsense"]),
    "heads that do not divide": lambda m: configured(m, num_attention_heads=3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(model, name):
    BROKEN[name](model)
    with pytest.raises(InputError, match=r"^model [^\n]*$"):
        load_model(str(model), on_cpu=True)


def test_shards_and_tied_heads_load(model, tmp_path):
    expected = load_model(str(model), on_cpu=True).state_dict()
    sharded(model)
    assert all(
        torch.equal(value, expected[name]) for name, value in load_model(str(model), on_cpu=True).state_dict().items()
    )
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    load_model(str(tmp_path / "tied"), on_cpu=True)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_tokenizer_that_is_cut_off_is_one_line(model, share):
    cut(model / "tokenizer.json", share)
    with pytest.raises(InputError, match=r"^model [^\n]*$"):
        load_tokenizer(str(model))


def test_a_saved_adapter_is_not_trained_by_itself(workplace, capsys):
    adapted = get_peft_model(load_model("model", on_cpu=True), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained("adapter")
    load_tokenizer("model").save_pretrained("adapter")
    assert "model adapter has no parameter to train" in refusal(arguments(model="adapter"), capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_gguf_without_a_configuration_is_told_what_to_do(tmp_path, as_file):
    file = tmp_path / "small-q8.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"GGUF.*gguf_file='small-q8\.gguf'"):
        load_tokenizer(str(file if as_file else tmp_path))


NAMES_KERNELS = [
    {"attn_implementation": "owner/kernel"}, {"_attn_implementation": "owner/kernel@v1:entry"},
    {"attn_implementation": {"text_config": "owner/kernel"}}, {"text_config": {"attn_implementation": "owner/kernel"}},
    {"experts_implementation": "owner/kernel"}, {"sub": [{"_experts_implementation": "owner/kernel"}]},
]  # fmt: skip


@pytest.mark.parametrize("keys", NAMES_KERNELS)
def test_kernels_of_the_hub_that_a_folder_names_need_a_word(model, monkeypatch, keys):
    configured(model, **keys)
    monkeypatch.setattr(loading, "_loaded", lambda *_, **__: pytest.fail("transformers has read the folder"))
    with pytest.raises(InputError, match=r"config\.json names code .*owner/kernel"):
        load_model(str(model), on_cpu=True)
    with pytest.raises(pytest.fail.Exception, match="has read"):
        load_model(str(model), on_cpu=True, trust_remote_code=True)


def adapter_of(model, folder, **changes):
    adapted = get_peft_model(load_model(str(model), on_cpu=True), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_imports_nothing_that_it_names(model, tmp_path):
    adapter = adapter_of(model, tmp_path / "adapter", megatron_core="megatron.core", megatron_config={"a": 1})
    with pytest.raises(InputError, match=r"adapter_config\.json: megatron_config .*'megatron\.core'"):
        load_model(str(adapter), on_cpu=True)
    load_model(str(adapter_of(model, tmp_path / "usual", megatron_core="megatron.core")), on_cpu=True)


@pytest.mark.parametrize(("change", "rule"), [
    ({"hidden_size": 10**12}, "hidden_size"), ({"num_hidden_layers": 4000}, "does not describe"),
    ({"attn_implementation": "owner/kernel"}, "names code"),
])  # fmt: skip
def test_the_base_model_of_an_adapter_is_examined_as_well(model, tmp_path, change, rule):
    adapter = adapter_of(model, tmp_path / "adapter")
    configured(model, **change)
    with pytest.raises(InputError, match=rf"config\.json.*{rule}"):
        load_model(str(adapter), on_cpu=True)


@pytest.mark.parametrize("text", ["[]", "{", "", '{"a": 1, "a": 2}'])
def test_an_adapter_configuration_that_is_none_is_one_line(model, tmp_path, text):
    adapter = adapter_of(model, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"^model file [^\n]*adapter_config\.json [^\n]*$"):
        load_model(str(adapter), on_cpu=True)
