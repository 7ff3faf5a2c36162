r"""Verdicts on answers that were labelled by hand: every kind of spelling, and what only looks like it."""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from equipoise.tasks.mathematics import verdict

LABELLED = Path(
    os.environ.get(
        "EQUIPOISE_LABELLED_ANSWERS", Path(__file__).resolve().parents[4] / "shared" / "data" / "verdicts.jsonl"
    )
)
WHOLE_COMPLETIONS = {"boxes", "prose"}


def labelled():
    """(kind, whether it is right) -> pairs of an expected answer and a completion."""
    cases, section = defaultdict(list), None
    for line in Path(__file__).with_name("labelled.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            kind, _, label = line.removeprefix("== ").partition(": ")
            section = (kind, label == "same")
        elif line and not line.startswith("# "):
            gold, _, answer = line.partition(" ¦")
            answer = answer.removeprefix(" ")
            whole = section[0] in WHOLE_COMPLETIONS
            cases[section].append((gold, answer if whole else rf"So it is $\boxed{{{answer}}}$."))
    return cases


CASES = labelled()


@pytest.mark.slow
@pytest.mark.parametrize("section", CASES, ids=[f"{kind}-{right}" for kind, right in CASES])
def test_labelled_answers(section):
    judged = [(gold, text, verdict(text, [gold])[0]) for gold, text in CASES[section]]
    assert not [case for case in judged if case[2] == "bad_gold"]
    assert not [case for case in judged if (case[2] == "correct") != section[1]]


def test_every_kind_has_both_labels_and_enough_of_them():
    kinds = {kind for kind, _ in CASES}
    assert all(CASES.get((kind, right)) for kind in kinds for right in (True, False))
    assert sum(map(len, CASES.values())) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("section", [s for s in CASES if s[1] and s[0] not in WHOLE_COMPLETIONS], ids=lambda s: s[0])
def test_an_answer_is_equal_to_itself_and_in_the_other_direction(section):
    """Where two spellings say the same, either may be the expected one."""
    for gold, text in CASES[section]:
        answer = text.removeprefix(r"So it is $\boxed{").removesuffix("}$.")
        assert verdict(rf"\boxed{{{gold}}}", [gold])[0] == "correct", gold
        assert verdict(rf"\boxed{{{gold}}}", [answer])[0] == "correct", (answer, gold)


def test_a_ratio_may_look_like_a_time_but_a_time_is_no_ratio():
    assert verdict(r"\boxed{4:10}", ["2:5"])[0] == "correct"
    assert verdict(r"\boxed{1:3}", ["10:30"])[0] == "wrong"


@pytest.mark.skipif(not LABELLED.is_file(), reason=f"{LABELLED} is not there (EQUIPOISE_LABELLED_ANSWERS names it)")
def test_answers_that_others_labelled():
    """No false positive, and at most 2% false negatives, of those that nobody would argue about."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines() if line.strip()]
    firm = [row for row in rows if not row["disputable"] and row["kind"] != "hostile"]
    judged = [(row, verdict(row["answer"], [row["gold"]])[0] == "correct") for row in firm]
    assert not [row for row, accepted in judged if accepted and not row["right"]]
    missed = [row for row, accepted in judged if row["right"] and not accepted]
    assert len(missed) <= 0.02 * sum(row["right"] for row in firm), missed
