"""A model whose next token depends on the last one alone, so that what it says is known without training it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NEVER = -30.0


def bigram_model(chances: dict[int, dict[int, float]], vocab_size: int, eos: int, pad: int) -> LlamaForCausalLM:
    """A Llama with heads of 32 that passes its embeddings through.

    Args:
        chances: of the next token, after each; after any other the end comes.
        vocab_size: tokens.
        eos: ends a completion.
        pad: fills up.
    """
    width = -(-vocab_size // 32) * 32
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=128,
            pad_token_id=pad,
            eos_token_id=eos,
            bos_token_id=None,
            tie_word_embeddings=False,
            initializer_range=0.02,
        )
    ).float()
    logits = torch.full((vocab_size, vocab_size), NEVER)
    logits[eos] = 0.0
    for last, following in chances.items():
        logits[:, last] = NEVER
        for token, chance in following.items():
            logits[token, last] = torch.tensor(chance).log()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(vocab_size, width))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :vocab_size] = logits / width**0.5  # the last norm makes a unit vector this long
    return model
