"""The statistics head scores what the model's own forward says, for every way a model family shapes its logits."""

from types import SimpleNamespace

import peft
import pytest
import torch
from trainer_setup import tiny_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from equipoise import token_statistics
from equipoise.models.statistics_head import _logit_factor, add_statistics_head
from equipoise.statistics import walk

SIZES = {
    "vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip


def model_of(family):
    torch.manual_seed(1)
    made = {
        "llama": lambda: tiny_model(1, vocab_size=19),
        "llama, head with bias": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "gemma2, softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0)),
        "cohere, factor": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
        "granite, divisor": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    }
    model = made[family.removesuffix(", head with bias") if "cohere" in family else family]().float()
    if "bias" in family:
        head = model.lm_head
        model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
        torch.nn.init.normal_(model.lm_head.bias)
    return model


FAMILIES = [
    "llama", "llama, head with bias", "gemma2, softcap", "cohere, factor", "cohere, factor, head with bias",
    "granite, divisor",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_head_equals_dense_statistics_of_the_models_own_logits(family):
    model = model_of(family)
    ids = torch.randint(1, 19, (3, 9))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[2] = -100
    expected = token_statistics(model(input_ids=ids).logits[:, :-1], ids[:, 1:], temperature=0.7)
    add_statistics_head(model, temperature=0.7)
    output = model(input_ids=ids, labels=labels, fused_lm_head=True)
    scored = labels[:, 1:] != -100
    for name, value in zip(("log_probs", "entropy", "tendency", "correction"), expected, strict=True):
        torch.testing.assert_close(output[name][scored], value[scored], rtol=2e-5, atol=2e-6)
        assert not output[name][~scored].any()


@pytest.mark.parametrize(
    ("written", "factor"),
    [
        ({}, 1),
        ({"logit_scale": 0.25}, 0.25),
        ({"output_multiplier": 0.5}, 0.5),
        ({"lm_head_multiplier": 2.0}, 2),
        ({"logits_scaling": 4.0}, 0.25),
        ({"logits_scaling": 4.0, "model_type": "hyperclovax"}, 4),
    ],
)
def test_factor_on_the_logits_as_each_family_writes_it(written, factor):
    assert _logit_factor(SimpleNamespace(**({"model_type": "any"} | written))) == factor


def test_other_calls_of_the_model_are_unchanged():
    model, ids = tiny_model(), torch.randint(2, 17, (2, 5))
    before = model(input_ids=ids, labels=ids)
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    add_statistics_head(model, temperature=0.7)
    after = model(input_ids=ids, labels=ids)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=4, do_sample=False))


def test_without_a_scored_label_every_parameter_still_has_a_gradient_of_zero():
    model, ids = tiny_model(), torch.randint(2, 17, (2, 5))
    add_statistics_head(model, temperature=1.0)
    output = model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True)
    output.log_probs.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_logits_under_autocast_stay_in_float32():
    model, ids = tiny_model(), torch.randint(2, 17, (2, 9))
    add_statistics_head(model, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids=ids, labels=ids, fused_lm_head=True)
        hidden = model.base_model(input_ids=ids).last_hidden_state
    logits = hidden.float() @ model.lm_head.weight.T
    expected = token_statistics(logits[:, :-1], ids[:, 1:])
    torch.testing.assert_close(output.log_probs, expected.logprob, rtol=1e-5, atol=1e-5)
    output.log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_half_precision_under_autocast_on_a_gpu(dtype, monkeypatch):
    monkeypatch.setattr(walk, "CUDA_TILES", (64, 64))
    model, ids = tiny_model(1, vocab_size=301).to("cuda", dtype), torch.randint(2, 300, (2, 9)).cuda()
    add_statistics_head(model, temperature=0.8)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(input_ids=ids, labels=ids, fused_lm_head=True)
        hidden = model.base_model(input_ids=ids).last_hidden_state.bfloat16()
    logits = hidden.double() @ model.lm_head.weight.bfloat16().double().T
    for name, value in zip(
        ("log_probs", "entropy", "tendency", "correction"),
        token_statistics(logits[:, :-1], ids[:, 1:], temperature=0.8),
        strict=True,
    ):
        torch.testing.assert_close(output[name].double(), value, rtol=1e-4, atol=1e-5)
    (output.log_probs.sum() + output.entropy.sum()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_load_balancing_loss_is_that_of_trl():
    config = MixtralConfig(
        **{k: v for k, v in SIZES.items() if k != "head_dim"}, num_local_experts=4, num_experts_per_tok=2
    )
    config.output_router_logits = True
    torch.manual_seed(2)
    model, ids = MixtralForCausalLM(config).float(), torch.randint(1, 19, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids,
        "fused_lm_head": True,
        "output_router_logits": True,
    }
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    theirs = model(**inputs)
    add_statistics_head(model, temperature=1.0)
    ours = model(**inputs)
    torch.testing.assert_close(ours.aux_loss, theirs.aux_loss)
    # asked for by the configuration alone, as the model's own forward has it
    by_configuration = model(**{k: v for k, v in inputs.items() if k != "output_router_logits"})
    torch.testing.assert_close(by_configuration.aux_loss, theirs.aux_loss)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs)
    torch.testing.assert_close(ours.entropy, theirs.entropy)


def test_a_head_that_is_not_gathered_is_refused():
    model = tiny_model()
    model.lm_head.weight.data = torch.empty(0)  # as DeepSpeed leaves it to those who do not call the module
    add_statistics_head(model, temperature=1.0)
    ids = torch.randint(2, 17, (1, 5))
    with pytest.raises(ValueError, match="not gathered where the head is called"):
        model(input_ids=ids, labels=ids, fused_lm_head=True)


def test_an_adapter_on_the_head_is_refused_and_a_trained_copy_of_it_is_used():
    ids = torch.randint(2, 17, (1, 5))
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="an adapter on the LM head .* lora_target_modules"):
        add_statistics_head(adapted.get_base_model(), temperature=1.0)
    copied = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        copied.get_base_model().lm_head.weight.mul_(3)
    add_statistics_head(copied.get_base_model(), temperature=1.0)
    log_probs = copied(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    expected = copied(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(log_probs, expected)


class Packed(torch.nn.Module):
    """A head as a quantisation leaves it."""

    def __init__(self, weight):
        super().__init__()
        if weight is not None:
            self.weight = torch.nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize("weight", [None, torch.zeros(17, 16, dtype=torch.int8)], ids=["none", "int8"])
def test_a_packed_head_is_refused(weight):
    model = tiny_model()
    model.lm_head = Packed(weight)
    with pytest.raises(ValueError, match="weight of the LM head.*got a Packed"):
        add_statistics_head(model, temperature=1.0)


def test_an_offloaded_head_is_refused():
    model = tiny_model()
    add_statistics_head(model, temperature=1.0)
    model.lm_head = torch.nn.Linear(16, 17, device="meta")
    ids = torch.randint(2, 17, (1, 5))
    with pytest.raises(ValueError, match="the LM head is offloaded"):
        model(input_ids=ids, labels=ids, fused_lm_head=True)
