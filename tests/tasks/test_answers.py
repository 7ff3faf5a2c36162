"""The self-test before training: every expected answer must be one that the reward accepts."""

import re
import sys
import types

import pytest
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks import check_answers
from equipoise.tasks.verification import Verdict, VerifierPool


def data(*answers, **columns):
    return Dataset.from_dict({"prompt": [str(i) for i in range(len(answers))], "answer": list(answers)} | columns)


def test_answers_of_all_kinds_verify_themselves():
    answers = [
        "42", "-3", "1,000", "1/2", r"\frac{3}{4}", "0.75", "50\\%", r"2\sqrt{2}", r"\pi", "x^2+1", "(1, 2)",
        r"\{1, 2\}", r"[0, \infty)", r"(-\infty, 2) \cup (3, 5]", r"\text{Monday}", "B", r"$\frac{1}{2}$", "x = 5",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "10^{100}", r"90^\circ", "5 apples", "3:2",
    ]  # fmt: skip
    check_answers("math", data(*answers), "d")
    check_answers("math", data(["1", "2"], ["3"]), "d")


UNREADABLE = r"\frac{1}{"


def test_every_row_that_cannot_be_read_is_listed():
    with pytest.raises(InputError, match=r"^d, row 2, column 'answer': .* read, got .*; so are those of the rows 4 \("):
        check_answers("math", data("1", UNREADABLE, "2", "(1,2"), "d")
    with pytest.raises(InputError, match="^d, row 1, column 'answer'"):
        check_answers("math + 0.1*format", data(["1", UNREADABLE]), "d")


def test_a_few_rows_that_cannot_be_verified_are_left_out_and_listed(caplog):
    rows = data(*["7"] * 149, UNREADABLE, "", *["x"] * 149)
    kept = check_answers("math", rows, "d")
    assert kept["answer"][:] == ["7"] * 149 + ["x"] * 149
    (message,) = caplog.messages
    assert message.startswith("d: 2 of 300 rows are left out")
    assert "row 150" in message
    assert "row 151" in message
    with pytest.raises(InputError, match="^d, row 150, .* so are those of the rows 151$"):
        check_answers("math", rows, "d", unverifiable_golds="refuse")
    with pytest.raises(InputError, match=r"\(2 of 152 rows, at most 1% may be left out\)"):
        check_answers("math", rows.select(range(152)), "d")
    with pytest.raises(InputError, match="unverifiable_golds must be one of drop, refuse, got 'keep'"):
        check_answers("math", rows, "d", unverifiable_golds="keep")


def test_no_more_rows_are_looked_at_than_are_needed(monkeypatch, caplog):
    tried = []
    verdicts = VerifierPool.verdicts

    def counted(self, texts, expected, **settings):
        tried.extend(gold for golds in expected for gold in golds)
        return verdicts(self, texts, expected, **settings)

    monkeypatch.setattr(VerifierPool, "verdicts", counted)
    rows = data("1", UNREADABLE, *map(str, range(3, 1001)))
    kept = check_answers("math", rows, "d", still_needed=lambda good: 40 - len(good))
    assert kept["answer"][:40] == check_answers("math", rows, "d")["answer"][:40]
    assert "row 2" in caplog.text
    tried.clear()
    check_answers("math", rows, "d", still_needed=lambda good: 40 - len(good))
    assert set(tried) == {"1", UNREADABLE, *map(str, range(3, 40 + 64 + 1))}, "40 rows, and 64 for the one that is bad"
    with pytest.raises(InputError, match="row 2"):
        check_answers("math", rows.select(range(90)), "d", still_needed=lambda good: 40 - len(good))


def test_a_gold_that_loses_a_part_when_it_is_read_is_refused(monkeypatch):
    """As if a reader took the last number of everything: the gold is equal to itself, and to others as well."""
    original = VerifierPool.verdicts

    def last_number(self, texts, golds, **settings):
        def bare(text):
            return (re.findall(r"\d+", text) or [""])[-1]

        return original(
            self, [rf"\boxed{{{bare(t)}}}" for t in texts], [[bare(g) for g in gold] for gold in golds], **settings
        )

    check_answers("math", data(r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "(3, 4)", "5"), "d")
    monkeypatch.setattr(VerifierPool, "verdicts", last_number)
    with pytest.raises(InputError, match=r"^d, row 1, .* it cannot be told from .*-\(5\)"):
        check_answers("math", data("5"), "d")


def test_empty_answers_are_for_math_alone():
    with pytest.raises(InputError, match="^d, row 2, column 'answer': the answer must not be empty"):
        check_answers("exact", data("a", " "), "d")


def test_an_answer_that_does_not_verify_itself_is_refused(monkeypatch):
    original = VerifierPool.verdicts

    def strict(self, texts, golds, **settings):
        verdicts = original(self, texts, golds, **settings)
        return [Verdict("timeout", "slow") if gold == ["7"] else v for gold, v in zip(golds, verdicts, strict=True)]

    monkeypatch.setattr(VerifierPool, "verdicts", strict)
    message = r"d, row 3, .* not accepted as an answer to itself: slow, got '7'"
    with pytest.raises(InputError, match=message):
        check_answers("math", data("5", "6", "7", "8"), "d")


def module(monkeypatch, function):
    made = types.ModuleType("rewards_of_answers")
    made.reward = function
    monkeypatch.setitem(sys.modules, "rewards_of_answers", made)
    return "rewards_of_answers:reward"


def test_a_function_of_the_user_is_tried_once_on_the_answers(monkeypatch, caplog):
    seen = []

    def reward(completions, answer, level, prompts, **columns):
        seen.append((completions, answer, level, prompts))
        return [0.5] * len(completions)

    check_answers(module(monkeypatch, reward), data("a", "b", level=[1, 2]), "d")
    assert seen == [(["a", "b"], ["a", "b"], [1, 2], ["0", "1"])]
    check_answers("exact", data("a"), "d")
    assert not caplog.messages


def test_a_function_that_accepts_no_answer_is_said(monkeypatch, caplog):
    def nothing(completions, **columns):
        return [0.0] * len(completions)

    check_answers(module(monkeypatch, nothing), data("a", "b"), "d")
    assert "scores none of 2 of the data set's own answers above 0" in caplog.text

    def broken(completions, **columns):
        raise KeyError("x")

    check_answers(module(monkeypatch, broken), data("a"), "d")
    assert "d: on the data set's own answers, reward function 'broken' raised KeyError" in caplog.messages[1]
