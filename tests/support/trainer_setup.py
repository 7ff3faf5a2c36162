"""Tiny models, a tokenizer of single characters and trainers for tests of the TRL adapter."""

import math
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from equipoise.balance import BoundsSelection
from equipoise.trl import EquipoiseConfig, EquipoiseTrainer

ALPHABET = "0123456789+-*= "


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def tiny_model(seed: int = 0, **config) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(ALPHABET) + 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.3,  # far from uniform, so that entropies and polarities differ between tokens
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | config))).float()


def in_float64(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model in float64 throughout: transformers forms rotary positions in float32 whatever the weights are in."""
    rotary: Any = model.double().model.rotary_emb
    exponents = torch.arange(0, 1, 1 / len(rotary.inv_freq), dtype=torch.float64)
    frequencies = model.config.rope_parameters["rope_theta"] ** -exponents

    def forward(x, position_ids):
        angles = (position_ids[..., None] * frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    rotary.forward = forward
    return model


def prompts(count: int = 16) -> Dataset:
    return Dataset.from_dict({"prompt": [f"{i}+{i + 3}=" for i in range(count)]})


def digit_reward(completions, **columns) -> list[float]:
    """Share of digits: varies within nearly every group."""
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


def config(folder, **settings) -> EquipoiseConfig:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 7,
        # The paper's range: a wide one, on which searches end in many places.
        "bapo_low": [0.6, 0.9],
        "bapo_target_share": 0.4,
    }
    return EquipoiseConfig(**(defaults | settings))


def trainer(
    folder,
    *,
    model=None,
    trainer_class=EquipoiseTrainer,
    args=None,
    dataset=None,
    eval_dataset=None,
    peft_config=None,
    **settings,
):
    return trainer_class(
        model=tiny_model() if model is None else model,
        reward_funcs=digit_reward,
        args=config(folder, **settings) if args is None else args,
        train_dataset=prompts() if dataset is None else dataset,
        eval_dataset=eval_dataset,
        processing_class=character_tokenizer(),
        peft_config=peft_config,
    )


def start_of(bounds):
    """A selection of fixed bounds, as the trainer makes it without a search."""
    return BoundsSelection(bounds, math.nan, math.nan, steps=0, exhausted=False, inactive=False)
