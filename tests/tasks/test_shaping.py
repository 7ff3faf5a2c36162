r"""Format, length and overlong terms, and sums of rewards."""

import pytest

from equipoise.errors import InputError
from equipoise.tasks import reward_function, verifier_function
from equipoise.tasks.rewards import MathReward
from equipoise.tasks.shaping import format_term, length_term, overlong_term


@pytest.mark.parametrize(
    ("style", "text", "right"),
    [
        ("boxed", r"so \boxed{2}", True),
        ("boxed", r"so \boxed {\frac{1}{2}} end", True),
        ("boxed", r"\boxed{1} \boxed{2}", False),
        ("boxed", r"\boxed{1", False),
        ("boxed", r"\boxed{\frac{1}{2}", False),
        ("boxed", r"\boxed{ }", False),
        ("boxed", "2", False),
        ("think", " <think>a\nb</think> 2 ", True),
        ("think", "<think></think>2", True),
        ("think", "<think>a</think> ", False),
        ("think", "x<think>a</think>2", False),
        ("think", "<think>a</think><think>b</think>2", False),
        ("think", "<think>2", False),
        ("think", "</think><think> 2", False),
        ("answer_tags", "so <answer> 2\n3 </answer>\n", True),
        ("answer_tags", "<answer>2</answer>.", False),
        ("answer_tags", "<answer> </answer>", False),
        ("answer_tags", "<answer>1</answer> <answer>2</answer>", False),
    ],
)
def test_form(style, text, right):
    reward = format_term(style)
    assert reward(completions=[text, [{"role": "assistant", "content": text}]], prompts=[]) == [right, right]


def ids(*lengths):
    return [[0] * length for length in lengths]


def test_overlong_punishment_by_hand():
    # DAPO's own numbers: 16,384 expected and 4,096 of buffer
    reward = overlong_term(max=20_480, buffer=4_096)
    values = reward(completion_ids=ids(1, 16_384, 16_385, 18_432, 20_480, 30_000), completions=[""] * 6)
    assert values == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0]


def test_length_by_hand():
    assert length_term(max=10)(completion_ids=ids(0, 5, 10, 20)) == [0.0, -0.5, -1.0, -1.0]


def test_sums_with_weights_are_logged_by_term():
    reward = reward_function("2*exact + 0.1*format?style=answer_tags + -1*overlong?max=4&buffer=2")
    logged = {}
    completions = ["<answer>2</answer>", "2", "3"]
    values = reward(
        prompts=[""] * 3, completions=completions, completion_ids=ids(2, 3, 4), answer=["2"] * 3,
        log_metric=logged.__setitem__,
    )  # fmt: skip
    assert values == pytest.approx([2 + 0.1, 2 + 0.5, 1.0])
    assert logged == pytest.approx({"reward/exact": 2 / 3, "reward/format": 1 / 3, "reward/overlong": -0.5})
    verifier = verifier_function("2*exact + 0.1*format")
    assert verifier(prompts=[""] * 3, completions=completions, answer=["2"] * 3) == [1.0, 1.0, 0.0]


def test_an_unscored_term_leaves_the_sum_unscored():
    reward = reward_function("math + format")
    logged = {}
    columns = {"prompts": ["", ""], "completions": [r"\boxed{1}", r"\boxed{1}"], "answer": [r"\frac{1}{", "1"]}
    assert reward(**columns, log_metric=logged.__setitem__) == [None, 2.0]
    assert logged["reward/math"] == 1.0
    assert logged["verification/bad_gold_fraction"] == 0.5


def test_what_could_not_be_judged_is_counted_and_said(caplog):
    reward = MathReward()
    logged = {}
    texts = ["no idea"] * 18 + [r"\boxed{" + "(" * 100 + ")" * 100 + "}", r"\boxed{7}"]
    rewards = reward(prompts=[], completions=texts, answer=["7"] * 20, log_metric=logged.__setitem__)
    assert rewards == [0.0] * 19 + [1.0]
    assert logged == {
        "verification/unparsable_fraction": 0.9,
        "verification/timeout_fraction": 0.0,
        "verification/memory_fraction": 0.0,
        "verification/refused_fraction": 0.0,
        "verification/error_fraction": 0.05,
        "verification/bad_gold_fraction": 0.0,
    }
    reward(prompts=[], completions=texts, answer=["7"] * 20)
    assert len(caplog.messages) == 1  # once
    assert "hardly any of 20 completions has an answer that can be verified (18 unparsable, 1 error)" in caplog.text


def test_a_time_limit_of_ones_own():
    own = reward_function("math?seconds=0.5")
    assert own.pool.seconds == 0.5
    assert own(prompts=[], completions=["9**9**9**9", "1"], answer=["1", ["2", "1"]]) == [0.0, 1.0]
    own.pool.close()
    assert reward_function("math") is reward_function("math")


def test_exact_takes_any_of_several():
    exact = reward_function("exact")
    assert exact(prompts=[], completions=["a ", "b", "c"], answer=[["a", "b"], ["a", "b "], ["a", "b"]]) == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format", "the first term of the reward must say what is correct"),
        ("0.1*format + math", "the first term of the reward must say what is correct"),
        ("0*math + format", "the weight of math, which says what is correct, must be > 0"),
        ("-1*math", "the weight of math, which says what is correct, must be > 0"),
        ("math?second=1", "reward math has no parameter 'second'; did you mean seconds"),
        ("math?seconds=-1", "reward math: seconds must be > 0, got -1"),
        ("exact?x=1", "reward exact has no parameter 'x'"),
        ("math + format?style=box", "reward format: style must be one of boxed, think, answer_tags, got 'box'"),
        ("math + overlong", "reward overlong needs the parameter max"),
        ("math + overlong?max=10&buffer=20", "reward overlong: buffer and max must satisfy 1 <= buffer <= max"),
        ("math + length?max=0", "reward length: max must be at least 1 token, got 0"),
        ("math + formatt", "must be one of exact, math, format, length, overlong.*did you mean format"),
        ("math + ", "reward must be terms"),
    ],
)
def test_rewards_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        reward_function(text)
