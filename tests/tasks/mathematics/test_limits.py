"""Hostile text costs little: no pattern goes over it again and again, and no number is written out that has no end."""

import time

import pytest

from equipoise.tasks.mathematics import marked_answer, verdict, warm

SECONDS = 3.0  # of processor time, as one answer has
LONG = 20_000  # characters of a completion that count
COMPLETIONS = [
    piece * (LONG // len(piece))
    for piece in (r"\[", r"\(", "$", "$a", "$ $", "<answer>", "answer is ", "1,111", "1 ", "1", "a", "(", "*", "`", "'",
                  "_", " ", "\n", r"\boxed{", r"\boxed{}", r"\boxed{1} or ", "1/", "####", ".", "-", "\\", "√",
                  "²", "½")
]  # fmt: skip
ANSWERS = [
    piece * (3900 // len(piece))
    for piece in ("1,000", "a", "1", "{", r"\text{a}", r"\frac", r"\frac1", r"\sqrt", "^", "1 ", "*", "'", ",1", "=1",
                  "<1", r"\pm1", "1:", "a b ", r"\begin{pmatrix}", r"1\\", "x_", r"\frac{d", r"\text{ or }1", "|A",
                  "1e9", "x'")
]  # fmt: skip
NUMBERS = [
    "10^{10^{10}}", "9^{9^{9^{9}}}", "9**9**9**9", "1.1^{10000000}", "100000!!!", "1/2^{2^{40}}", r"\sqrt{2^{2^{30}}}",
    r"e^{e^{e^{e^{e}}}}", r"\binom{10^{9}}{10^{8}}", r"\prod_{k=1}^{10^7} k", r"\sum_{k=1}^{10^9} \frac{1}{k}",
    "(x+y+z)^{5000}", "x^{10^{9}}", r"\sin(10^{30000})", r"\gcd(10^{999}, 7)", "9" * 3000 + "!", r"0.1^{10^{10}}",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def warmed():
    warm()


def outcome_in_time(text, gold):
    begin = time.process_time()
    outcome, _ = verdict(text, [gold])
    assert time.process_time() - begin < SECONDS
    return outcome


@pytest.mark.parametrize("text", COMPLETIONS, ids=[repr(text[:8]) for text in COMPLETIONS])
def test_long_completions(text):
    assert outcome_in_time(text, r"\{7,8\}") != "correct"


@pytest.mark.parametrize("answer", [*ANSWERS, *NUMBERS], ids=[repr(answer[:8]) for answer in [*ANSWERS, *NUMBERS]])
def test_long_answers_and_large_numbers(answer):
    assert outcome_in_time(rf"\boxed{{{answer}}}", "5") != "correct"


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<answer> ", r"\boxed{1} or ", r"\boxed{", "boxed "])
def test_marks_are_found_in_one_pass(piece):
    """The trainer itself looks for them, in all of a completion."""
    begin = time.process_time()
    marked_answer(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begin < SECONDS


def test_a_large_number_is_equal_to_itself_as_it_is_written():
    assert verdict(r"\boxed{9^{9^{9}}}", ["9^{9^{9}}"])[0] == "correct"
    assert verdict(r"\boxed{9^{9^{8}}}", ["9^{9^{9}}"])[0] == "error"
    assert verdict(r"\boxed{10^{100}+1}", ["10^{100}"])[0] == "wrong"
