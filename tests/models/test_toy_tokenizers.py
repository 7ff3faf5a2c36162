"""The tokenizers of the toy models: one token per word, all words of the task, a template that TRL can parse."""

import random

import numpy as np
import pytest
from trl.chat_template_utils import parse_response

from equipoise.models.warm_starts import calculator_tokenizer, ladder_tokenizer
from equipoise.models.warm_starts.calculator import UNKNOWN_TOKEN
from equipoise.tasks import random_walk_texts
from equipoise.tasks.environments.calculator import scripted_episode


def test_the_ladder_has_one_token_per_word_and_gives_the_words_back():
    tokenizer = ladder_tokenizer()
    assert len(tokenizer) == 58
    text = "12 40 = +7 19 +1 20 *2 40 -1 39 -7 32 <eos>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix(" <eos>")
    assert tokenizer.decode([tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == ""
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_ladder_tokenizer_knows_every_word_of_every_walk():
    tokenizer = ladder_tokenizer()
    for prompt, response in random_walk_texts(300, np.random.default_rng(2)):
        assert tokenizer.decode(tokenizer(f"{prompt} {response}")["input_ids"]) == f"{prompt} {response}"


@pytest.mark.parametrize("text", ["hello", "50", "12 50 =", "+2"])
def test_the_ladder_tokenizer_refuses_other_words(text):
    with pytest.raises(Exception, match="Missing .* token from the vocabulary"):
        ladder_tokenizer()(text)


def test_a_tool_call_is_found_in_the_tokens_of_the_model():
    tokenizer = calculator_tokenizer()
    messages = [
        {"role": "user", "content": "12 + 30 - 7 ="},
        {"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "12 + 30"}}}
        ]},
        {"role": "tool", "name": "calculate", "content": "42"},
        {"role": "assistant", "content": "35"},
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert " ".join(text.split()) == (
        "<user> 12 + 30 - 7 = <assistant> <call> 12 + 30 </call> <eos> <tool> 42 <assistant> 35 <eos>"
    )
    prompt = tokenizer.encode("<user> 12 + 30 - 7 = <assistant>")
    parsed = parse_response(tokenizer, tokenizer.encode("<call> 12 + 30 </call> <eos>"), prefix=prompt)
    assert parsed["tool_calls"][0]["function"] == {"name": "calculate", "arguments": {"expression": "12 + 30"}}
    assert parse_response(tokenizer, tokenizer.encode("35 <eos>"), prefix=prompt)["content"].strip() == "35"


def test_the_calculator_tokenizer_knows_every_word_of_every_episode():
    tokenizer, generator = calculator_tokenizer(), random.Random(0)
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN_TOKEN)
    for _ in range(200):
        prompt, turns = scripted_episode(generator)
        assert unknown not in tokenizer.encode(" ".join([prompt, *(word for turn in turns for word in turn)]))
