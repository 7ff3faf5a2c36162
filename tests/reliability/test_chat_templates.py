"""Chat templates are programs of whoever made a model: one that does not end, or explodes, is one line."""

import datetime
import json
import re
import time

import pytest
from command_line import arguments, refusal, workplace  # noqa: F401  (a fixture)
from trainer_setup import character_tokenizer

from equipoise.errors import InputError
from equipoise.models import prompts
from equipoise.models.prompts import encoded_prompts

pytestmark = pytest.mark.slow

USER = [{"role": "user", "content": "4+4"}]
WHOLE = "{% for m in messages %}{{ m.content }}{% endfor %}"

ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "generators": "{% for i in messages|batch(1) %}{% for j in range(99999) %}{% for k in range(9999) %}"
    "{{ 1 if k > 99999 }}{% endfor %}{% endfor %}{% endfor %}",
    "sums": "{% set n = namespace(x=[1]) %}{% for i in range(99999) %}{% set n.x = (n.x + [i])|sort %}{% endfor %}",
}
TOO_LARGE = {
    "times": "{{ 'x' * 10**11 }}",
    "times at run time": "{{ messages[0].content * 10**11 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "padding": "{{ messages[0].content.center(10**10) }}",
    "long": "{% for i in range(100) %}{{ messages[0].content * 50000 }}{% endfor %}",
}
BROKEN = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for m in messages %}",
    "refuses": "{{ raise_exception('not here') }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "no such": "{{ messages | nothing }}",
}


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(prompts, "SECONDS", 1.0)


def with_template(template):
    made = character_tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_given_up(limit, name):
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"^model m, row 1: the chat template did not end within 1 s$"):
        encoded_prompts(with_template(ENDLESS[name]), [USER], model="m")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_template_that_explodes_is_given_up(limit, name):
    with pytest.raises(InputError, match=r"^model m, row 1: the chat template (needs|makes 15,000,000|did)"):
        encoded_prompts(with_template(TOO_LARGE[name]), [USER], model="m")


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_fails_is_named_with_its_cause(name):
    with pytest.raises(InputError, match=r"^model m, row 1: the prompt .* cannot be encoded \(.+\)$"):
        encoded_prompts(with_template(BROKEN[name]), [USER], model="m")


def test_the_row_is_named_among_good_ones(limit):
    bomb = "{% if messages[0].content == '7' %}" + ENDLESS["nested loops"] + "{% endif %}" + WHOLE
    rows = [[{"role": "user", "content": str(n)}] for n in range(200)]
    with pytest.raises(InputError, match=r"^row 8: the chat template did not end"):
        encoded_prompts(with_template(bomb), rows)


def test_what_was_tried_is_not_tried_again(monkeypatch):
    tokenizer = with_template(WHOLE)
    ids = encoded_prompts(tokenizer, [USER, USER])
    monkeypatch.setattr(prompts.WorkerPool, "answers", lambda *_: pytest.fail("tried again"))
    assert encoded_prompts(tokenizer, [USER]) == ids[:1]
    with pytest.raises(pytest.fail.Exception):
        encoded_prompts(tokenizer, [USER], {"told": 1})


def test_values_that_are_no_json_reach_the_template_as_placeholders():
    told = {"day": datetime.date(2026, 1, 1)}
    template = WHOLE + "{{ day[1:-1] | length }}"
    (ids,) = encoded_prompts(with_template(template), [USER], told)
    assert len(ids) == len("4+4") + len(str(len("date")))


@pytest.mark.parametrize(
    "command",
    [
        arguments(dataset="chats.jsonl", eval_dataset=None, evaluate_every=0),
        ["evaluate", "model", "--dataset", "chats.jsonl", "--reward", "exact"],
        ["probe", "model", "--dataset", "chats.jsonl", "--reward", "exact", "--prompts", "1", "--batches", "1"],
        ["doctor", "model", "--dataset", "chats.jsonl", "--reward", "exact"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_says_so(workplace, limit, capsys, command):  # noqa: F811
    with_template(ENDLESS["nested loops"]).save_pretrained("model")
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": str(n + 1)} for n in range(16)]
    (workplace / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert re.search(r"row \d+: the chat template did not end within 1 s", refusal(command, capsys))
    assert not (workplace / "run").exists()
