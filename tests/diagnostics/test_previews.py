"""Questions and answers without what chat templates write around them."""

import pytest
from trainer_setup import character_tokenizer
from transformers import PreTrainedTokenizerFast

from equipoise.diagnostics.previews import answer_of, beginning, ending, question_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "smollm": SMOLLM, "llama": LLAMA, "phi": PHI, "gemma": GEMMA, "mistral": MISTRAL}


def formed(template: str, *messages: tuple[str, str]) -> str:
    tokenizer: PreTrainedTokenizerFast = character_tokenizer()
    chat = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)


QUESTIONS = ["Name a bird.", "Is x < 3 | y > 2?\nSay yes or no.", "user\nis a word here", "a <b>bold</b> question"]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_question_is_what_the_user_said_last(template, question):
    alone = formed(template, ("user", question))
    # A line that is a role's name is one only where the template's own comes right before it.
    expected = " ".join(question.split())
    assert question_of(alone) in (expected, expected.removeprefix("user "))
    before = formed(template, ("user", "Hello"), ("assistant", "Hi."), ("user", question))
    assert question_of(before) == question_of(alone)


@pytest.mark.parametrize("template", [CHATML, LLAMA, PHI])
def test_a_system_message_is_no_question(template):
    assert question_of(formed(template, ("system", "Be short."), ("user", "Why?"))) == "Why?"


@pytest.mark.parametrize("text", ["12 20 =", "user\nwrote this", "Assistant: no\nuser: yes", "3 < 4 | 5 > 2", ""])
def test_plain_text_is_left_as_it_is(text):
    assert question_of(text) == " ".join(text.split())


def test_a_prompt_that_is_cut_or_odd_still_has_a_preview():
    assert question_of("<|im_start|>user\nWhy is the") == "Why is the"
    assert question_of("is the sky blue?<|im_end|>\n<|im_start|>assistant\n") == "is the sky blue?"
    assert question_of("<|im_start|>system\nBe short.<|im_end|>") == "Be short."
    assert question_of("<|im_start|><|im_end|>") == ""


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["A", " rob", "in", ".", "<|im_end|>"], "A robin."),
        (["+7", "19", "<eos>"], "+7 19"),
        (["Yes", "<|eot_id|>", "<|endoftext|>"], "Yes"),
        (["\n", "\n", "x", " <", " 3"], "x < 3"),
        (["<|im_end|>"], ""),
        ([], ""),
    ],
)
def test_an_answer_has_no_special_tokens(texts, answer):
    assert answer_of(texts) == answer


def test_what_is_too_long_is_cut():
    assert ending("abcdef", 4) == "…def"
    assert beginning("abcdef", 4) == "abc…"
    assert ending("abcd", 4) == beginning("abcd", 4) == "abcd"
