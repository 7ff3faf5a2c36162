import contextlib
import logging
import math
import sys
import threading
import time

import numpy as np
import pytest
import torch
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks import check_answers, checked, reward_function, rewards
from equipoise.tasks.rewards import forms_read
from equipoise.tasks.task import MAX_REWARD


def score(name, completions, answers):
    return reward_function(name)(
        prompts=["p"] * len(completions),
        completions=completions,
        answer=answers,
        completion_ids=None,
        trainer_state=None,
    )


def chat(text):
    return [{"role": "user", "content": "ignored"}, {"role": "assistant", "content": text}]


def test_exact_compares_stripped_texts():
    completions = ["42", " 42\n", "43", "the answer is 42", "Ab", chat("42 "), chat("4")]
    answers = ["42", "42 ", "42", "42", "ab", "42", "42"]
    assert score("exact", completions, answers) == [1, 1, 0, 0, 0, 1, 0]


MATH_CASES = [
    (r"so the answer is \boxed{\frac{1}{2}}", "1/2", 1),
    (r"so the answer is \boxed{\frac{1}{2}}", r"\frac{1}{2}", 1),
    (r"so the answer is $\frac12$.", "0.5", 1),
    ("The answer is 0.5", r"$\frac{1}{2}$", 1),
    (r"\boxed{\frac{1}{3}}", "1/2", 0),
    ("42", "42", 1),
    ("I think it is 42.", r"\boxed{42}", 1),
    (r"The final answer is $41$. I hope it is correct. \boxed{42}", "42", 1),
    (r"First 41, then \boxed{42}, as $x = 41$ is wrong", "42", 1),  # the box counts, not what comes last
    (
        r"\boxed{41}. That was the sum without its last term, which makes it greater by one: so it is \boxed{42}",
        "42",
        1,
    ),
    (
        r"\boxed{42}. That was the sum without its last term, which makes it greater by one: so it is \boxed{41}",
        "42",
        0,
    ),
    (r"\boxed{41} or \boxed{42}", "42", 0),  # two answers close together are one set
    (r"\boxed{1} and \boxed{2}", r"\{1, 2\}", 1),
    ("41 or 42", "41", 0),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
    (r"\boxed{6.28}", r"2\pi", 0),
    (r"\boxed{2}", r"2\pi", 0),  # a bare answer is read whole
    (r"\boxed{2\pi}", r"2\pi", 1),
    (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", 1),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1),
    (r"\boxed{1,000}", "1000", 1),
    (r"\boxed{-3}", "3", 0),
    (r"\boxed{5}", "x = 5", 1),
    (r"\boxed{B}", "B", 1),
    (r"\boxed{C}", "B", 0),
    (r"\boxed{50\%}", "0.5", 1),
    ("no number at all", "42", 0),
    ("", "42", 0),
    (r"\boxed{}", "42", 0),
    (r"\boxed{\frac{1}{}", "42", 0),
]


@pytest.mark.parametrize(("completion", "answer", "expected"), MATH_CASES)
def test_math_reward(completion, answer, expected):
    assert score("math", [completion, chat(completion)], [answer, answer]) == [expected, expected]


def test_math_reward_outside_the_main_thread():
    completions, answers, expected = zip(*MATH_CASES[:6], strict=True)
    results = []
    thread = threading.Thread(target=lambda: results.append(score("math", list(completions), list(answers))))
    thread.start()
    thread.join()
    assert results == [list(expected)]


def test_math_reward_leaves_unparsable_answers_unscored():
    assert score("math", ["1", "1"], [r"\frac{1}{", "1"]) == [None, 1]


def test_answers_are_checked_before_training():
    usable = Dataset.from_dict(
        {"answer": ["1", r"\sqrt{2}", "x+1", r"\boxed{3}", "5 apples", r"\text{Monday}", "(1, 2)"]}
    )
    check_answers("math", usable, "train.jsonl")
    dataset = Dataset.from_dict({"answer": ["1", "\\frac{1}{\n" + "x" * 100]})
    check_answers("exact", dataset, "train.jsonl")
    with pytest.raises(InputError) as caught:
        check_answers("math", dataset, "train.jsonl")
    message = str(caught.value)
    assert message.startswith(
        "train.jsonl, row 2, column 'answer': must be an answer that the reward \"math\" can verify"
    )
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize("reward", ["math", "exact"])
def test_what_a_template_asks_for_is_read(reward):
    texts = [
        "<answer>7</answer>",
        "3 plus 4 is 12. <answer> 7 </answer>",
        r"so \boxed{7}",
        "<think>\\boxed{7}</think> 8",
    ]
    assert score(reward, texts, ["7"] * 4) == [1, 1, 1, 0]
    assert score(reward, texts[:2], ["12"] * 2) == [0, 0]
    assert forms_read(reward_function(f"{reward} + 0.1*format")) == {"boxed", "answer_tags"}


def test_built_in_names_are_those_of_trl_metrics():
    assert reward_function("exact").__name__ == "exact_reward"
    assert reward_function("math").__name__ == "math_reward"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current directory under a name of its own; sys.path and sys.modules are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("rewards_of_test"):
            del sys.modules[name]


def test_own_function_from_the_current_directory(module):
    module(
        "rewards_of_test_a",
        "def length(completions, level, **columns):\n    return [len(c) + l for c, l in zip(completions, level)]\n",
    )
    reward = reward_function("rewards_of_test_a:length")
    assert reward.__name__ == "length"
    assert reward(prompts=["a", "b"], completions=["xy", ""], level=[1, 2]) == [3.0, 2.0]


def test_a_local_file_hides_no_installed_package(module, tmp_path, monkeypatch):
    text = "def which(completions, **columns):\n    return [{}] * len(completions)\n"
    module("rewards_of_test_b", text.format(1))
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "rewards_of_test_b.py").write_text(text.format(2))
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert reward_function("rewards_of_test_b:which")(prompts=["a"], completions=["x"]) == [2.0]


@pytest.mark.parametrize("name", ["rewards_of_test_c:one", "rewards_of_test_c:missing", "rewards_of_test_none:one"])
def test_where_python_looks_for_modules_stays_as_it_was(module, name):
    module("rewards_of_test_c", "def one(completions, **columns):\n    return [1] * len(completions)\n")
    before = list(sys.path)
    with contextlib.suppress(InputError):
        reward_function(name)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "must be one of exact, math, format, length, overlong or \"module:name\", got 'nonsense'"),
        ("maths", "or \"module:name\", got 'maths'; did you mean math"),
        ("", 'reward must be terms "name?parameter=value&…", each with an optional weight'),
        ("module:", "or \"module:name\", got 'module:'"),
        (":function", "or \"module:name\", got ':function'"),
        (
            "rewards_of_test_none:f",
            "reward 'rewards_of_test_none:f': module 'rewards_of_test_none' cannot be imported"
            " (ModuleNotFoundError: No module named 'rewards_of_test_none')",
        ),
        (
            "rewards_of_test_broken:f",
            "reward 'rewards_of_test_broken:f': module 'rewards_of_test_broken' cannot be imported"
            " (ZeroDivisionError: division by zero)",
        ),
        ("math:no_such", "has no 'no_such'"),
        ("math:pi", f"reward 'math:pi': must be a function, got {math.pi}"),
        ("rewards_of_test_async:f", "reward function 'f' must not be asynchronous (async def)"),
    ],
)
def test_unusable_names_are_refused(module, name, message):
    module("rewards_of_test_broken", "1 / 0\n")
    module("rewards_of_test_async", "async def f(**columns):\n    return []\n")
    with pytest.raises(InputError) as caught:
        reward_function(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def returning(value):
    def user_reward(completions, **columns):
        return value

    return checked(user_reward)(prompts=["p"] * 3, completions=["a", "b", "c"])


@pytest.mark.parametrize(
    "value",
    [
        [1, 0.5, None],
        (1.0, 0.5, None),
        [np.float32(1), np.float64(0.5), None],
        [torch.tensor(1.0), torch.tensor(0.5), None],
        [True, np.array(0.5), None],
    ],
)
def test_numbers_of_all_kinds_are_accepted(value):
    result = returning(value)
    assert result == [1.0, 0.5, None]
    assert [type(number) for number in result] == [float, float, type(None)]


@pytest.mark.parametrize("value", [np.array([1, 0, 2]), torch.tensor([1.0, 0.0, 2.0]), [np.bool_(True), False, 2]])
def test_arrays_are_accepted(value):
    assert returning(value) == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must return a list of numbers, got None"),
        (1.0, "must return a list of numbers, got 1.0"),
        ("abc", "must return a list of numbers, got 'abc'"),
        ({"a": 1}, "must return a list of numbers, got {'a': 1}"),
        (np.float64(1.0), "must return a list of numbers, got np.float64(1.0)"),
        ([1.0], "must return one reward per completion, 3, got 1"),
        ([1.0] * 4, "must return one reward per completion, 3, got 4"),
        ([1.0, "1.0", 1.0], "must return finite numbers or None, got '1.0' for completion 1"),
        ([1.0, 1.0, [1.0]], "must return finite numbers or None, got [1.0] for completion 2"),
        ([1j, 1.0, 1.0], "must return finite numbers or None, got 1j for completion 0"),
        ([math.nan, 1.0, 1.0], "must return finite numbers or None, got nan for completion 0"),
        ([1.0, -math.inf, 1.0], "must return finite numbers or None, got -inf for completion 1"),
        (torch.tensor([1.0, math.nan, 1.0]), "must return finite numbers or None, got nan for completion 1"),
        ([None, None, None], "returned None for all 3 completions of a batch"),
    ],
)
def test_unusable_results_are_refused(value, message):
    with pytest.raises(InputError) as caught:
        returning(value)
    assert str(caught.value) == f"reward function 'user_reward' {message}"


@pytest.mark.parametrize("value", [1e20, -1e20, 1e8 * 1.001, 10**400, -(10**5000), np.float32(3e38)], ids=range(6))
def test_rewards_beyond_what_float32_can_normalise_are_refused_with_the_row(value):
    with pytest.raises(InputError, match=r"within ±1e\+08, got .* for completion 1 \(prompt 'p'\)$"):
        returning([0, value, None])


def test_large_rewards_that_can_be_normalised_are_kept():
    assert returning([MAX_REWARD, -MAX_REWARD, 0]) == [1e8, -1e8, 0.0]
    squares = np.square(np.full(2**20, 2 * MAX_REWARD, np.float32)).sum(dtype=np.float32)
    assert np.isfinite(squares)


def test_a_sum_beyond_the_range_is_refused_with_its_row():
    with pytest.raises(
        InputError, match=r"the sum of the rewards must be within ±1e\+08, got 1000000000.0 for completion 1"
    ):
        score("1e9*exact + format", ["2", "1"], ["1", "1"])


@pytest.mark.parametrize("value", [[1] * 3, [0.7] * 3, [None, 1, 1]])
def test_equal_rewards_and_none_are_kept(value):
    assert returning(value) == value


@pytest.mark.parametrize("completion", ["", [], [{"role": "assistant"}], [{"role": "assistant", "content": None}]])
def test_empty_completions_are_wrong_and_not_failures(completion):
    assert score("exact", [completion], ["1"]) == [0.0]
    assert score("math + format", [completion], ["1"]) == [0.0]


def test_content_in_parts_is_its_text():
    parts = [{"type": "text", "text": r"so \boxed"}, {"type": "image"}, {"type": "text", "text": "{7}"}]
    assert score("math", [[{"role": "assistant", "content": parts}]], ["7"]) == [1.0]


def test_the_time_of_a_function_is_logged_and_a_slow_one_reported(monkeypatch, caplog):
    monkeypatch.setattr(rewards, "SLOW_SECONDS", 0.01)
    logged = {}

    def slow(completions, **columns):
        time.sleep(0.3)
        return [1.0]

    with caplog.at_level(logging.WARNING):
        assert checked(slow)(prompts=["p"], completions=["c"], log_metric=logged.__setitem__) == [1.0]
    assert list(logged) == ["reward/slow_seconds"]
    assert 0.3 <= logged["reward/slow_seconds"] < 30
    assert caplog.messages == ["reward function 'slow' has been running for 0.01 s."]


def test_an_exception_of_the_function_is_named_with_its_place():
    def user_reward(completions, **columns):
        return [float(completion) for completion in completions]

    line = user_reward.__code__.co_firstlineno + 1
    with pytest.raises(InputError, match=rf"ValueError: .*'c'.* \(test_rewards.py, line {line}\)$"):
        checked(user_reward)(prompts=["p"], completions=["c"])


def test_an_exception_of_the_function_is_named_and_chained():
    def user_reward(**columns):
        raise KeyError("no\nsuch column")

    with pytest.raises(InputError, match="reward function 'user_reward' raised KeyError: ") as caught:
        checked(user_reward)(prompts=["p"], completions=["c"])
    assert isinstance(caught.value.__cause__, KeyError)
    assert "\n" not in str(caught.value)


def test_an_input_error_of_the_function_is_passed_on():
    def user_reward(**columns):
        raise InputError("as it is")

    with pytest.raises(InputError, match="^as it is$"):
        checked(checked(user_reward))(prompts=["p"], completions=["c"])


def test_interrupts_are_not_swallowed():
    def user_reward(**columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(user_reward)(prompts=["p"], completions=["c"])


def test_objects_with_a_call_are_named_after_their_type():
    class Judge:
        def __call__(self, completions, **columns):
            return [2.0] * len(completions)

    reward = checked(Judge())
    assert reward.__name__ == "Judge"
    assert reward(prompts=["p"], completions=["c"], answer=["a"]) == [2.0]


def test_asynchronous_objects_are_refused():
    class Judge:
        async def __call__(self, completions, **columns):
            return []

    with pytest.raises(InputError, match="reward function 'Judge' must not be asynchronous"):
        checked(Judge())
