"""Folders under the names that TRL's tests load from the hub: random models of some thousand weights, sentences."""

import json
from pathlib import Path

import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

HUB = "trl-internal-testing"

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
}

CAUSAL = {
    "tiny-Qwen2ForCausalLM-2.5": "qwen2",
    "tiny-Qwen3ForCausalLM": "qwen3",
    "tiny-Qwen3MoeForCausalLM": "qwen3_moe",
    "tiny-LlamaForCausalLM-3.2": "llama",
    "tiny-MistralForCausalLM-0.2": "mistral",
    "tiny-Cohere2ForCausalLM": "cohere2",
    "tiny-Glm4MoeForCausalLM": "glm4_moe",
    "tiny-GptOssForCausalLM": "gpt_oss",
    "tiny-Gemma2ForCausalLM": "gemma2",
}

REWARD = {
    "tiny-Qwen2ForSequenceClassification-2.5": "qwen2",
    "tiny-Qwen3ForSequenceClassification": "qwen3",
    "tiny-LlamaForSequenceClassification-3.2": "llama",
}

SENTENCES = (
    "A model learns from what", "Rewards that vary teach", "The entropy of a policy", "When all samples agree,",
    "An old rollout is", "A clipped ratio gives", "Short answers are", "Tokens that are rare", "A seed makes runs",
    "The loss is a mean of", "Gradients that vanish", "A group of completions", "Better data is better than",
    "A test that cannot fail", "What is measured can be", "Numbers without a command", "Slow is smooth and",
    "One reads code more often", "A name that tells",
)  # fmt: skip
TEST_ROWS = 2

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>",
)  # fmt: skip


def make_all(folder: Path) -> None:
    """Everything, below `folder`: a working directory in which the names of the hub are paths."""
    hub = folder / HUB
    for name, kind in CAUSAL.items():
        _save(AutoModelForCausalLM, kind, hub / name)
    for name, kind in REWARD.items():
        _save(AutoModelForSequenceClassification, kind, hub / name, num_labels=1)
    _save_data(hub / "zen")


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    bytes_and_pairs = Tokenizer(models.BPE())
    bytes_and_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_and_pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bytes_and_pairs.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_and_pairs, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / f"{template}.jinja").read_text()
    return tokenizer


def _save(kind: type, model_type: str, folder: Path, **settings) -> None:
    tokenizer = _tokenizer("qwen3" if model_type.startswith("qwen3") else "qwen2_5")
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **SMALL, **tokens, **settings)
    torch.manual_seed(0)
    model = kind.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_data(folder: Path) -> None:
    def standard(text: str) -> dict:
        return {"prompt": text}

    def conversational(text: str) -> dict:
        return {"prompt": [{"role": "user", "content": text}]}

    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for name, row in (("standard_prompt_only", standard), ("conversational_prompt_only", conversational)):
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, texts in (("train", SENTENCES[:-TEST_ROWS]), ("test", SENTENCES[-TEST_ROWS:])):
            lines += [f"  - split: {split}", f"    path: {name}_{split}.jsonl"]
            text = "".join(json.dumps(row(sentence)) + "\n" for sentence in texts)
            (folder / f"{name}_{split}.jsonl").write_text(text)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
