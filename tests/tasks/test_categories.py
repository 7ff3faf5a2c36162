"""The task `categories`: its lists, its split, and what of an answer counts."""

import itertools
import re
from collections import Counter
from importlib.resources import files

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.tasks import checked, named_task
from equipoise.tasks.categories import (
    HELD_OUT_WORDINGS,
    MAX_WORDS,
    TRAINING_WORDINGS,
    categories_reward,
    categories_task,
    members,
    named_member,
    plural,
    with_article,
    words,
)
from equipoise.tasks.prompts import content_key

WORDINGS = (*TRAINING_WORDINGS, *HELD_OUT_WORDINGS)
ANSWERS = (
    "{0}", "A {0}.", "an {0}", "the {0}!", "{1}", "Some {1}, of course", "**{0}**", "“{0}”", " {0}\n", "({0})", "_{0}_",
    "It is {0}, which", "{0}'s", "Sure! One is: {0}.",
)  # fmt: skip
"""{0} is a spelling of a member, {1} its plural."""
CASES = (str, str.upper, str.title)

every_category = pytest.mark.parametrize("category", members())


def prompt(wording, category):
    return wording.format(a_kind=with_article(category))


def in_plural(spelling):
    *first, last = spelling.split()
    return " ".join([*first, plural(last)])


def reward(category, *completions, prompts=None, **columns):
    count = len(completions)
    prompts = prompts or [prompt(TRAINING_WORDINGS[0], category)] * count
    return categories_reward(prompts=prompts, completions=list(completions), answer=[category] * count, **columns)


@every_category
def test_every_spelling_of_every_member_is_found_in_every_answer(category):
    missed, cases = [], itertools.cycle(CASES)
    for member, spellings in members()[category].items():
        for spelling in spellings:
            for answer in ANSWERS:
                text = next(cases)(answer.format(spelling, in_plural(spelling)))
                missed += [text] if named_member(text, category) != member else []
    assert len(ANSWERS) % len(CASES), "so that every answer comes in every case"
    assert not missed


@every_category
def test_no_question_names_a_member(category):
    first, spellings = next(iter(members()[category])), itertools.chain(*members()[category].values())
    forms = [" ".join(words(form)) for spelling in spellings for form in (spelling, in_plural(spelling))]
    for wording in WORDINGS:
        text = prompt(wording, category)
        assert [form for form in forms if f" {form} " in f" {' '.join(words(text))} "] == []
        assert named_member(text, category) is None
        assert named_member(first, category, prompt=text) == first


@every_category
def test_no_member_has_two_places_in_a_list(category):
    """No form, singular or plural, is that of two members, and none stands there twice."""
    forms = {}
    for member, spellings in members()[category].items():
        for form in {form for spelling in spellings for form in (spelling, in_plural(spelling))}:
            assert forms.setdefault(tuple(words(form)), member) == member
    text = (files("equipoise.tasks") / "categories.yaml").read_text(encoding="utf-8")
    spellings = re.split("[,=]", yaml.safe_load(text)[category])
    counts = Counter(tuple(words(spelling)) for spelling in spellings)
    assert [spelling for spelling, count in counts.items() if count > 1 or not spelling] == []
    assert all(spelling.strip() == spelling.strip().lower() for spelling in spellings)


def test_there_are_enough_categories_of_a_useful_size_and_closed_sets_are_whole():
    sizes = {category: len(entries) for category, entries in members().items()}
    closed = {"day of the week": 7, "planet": 8, "month of the year": 12, "state of the United States": 50}
    assert len(sizes) >= 44
    assert {category: sizes[category] for category in closed} == closed
    assert sizes["chemical element"] == 118
    assert min(size for category, size in sizes.items() if category not in closed) >= 25


@every_category
def test_the_article_fits_the_sound_of_the_name(category):
    article, _, name = with_article(category).partition(" ")
    assert name == category
    vowels = {"animal on a farm", "item of clothing", "insect", "emotion", "ocean or sea"}
    assert (article == "an") == (category in vowels)


@every_category
@pytest.mark.parametrize(
    "phrase",
    [
        "Sure! Here is one for you:", "Of course, I'd be happy to help you with", "Sorry, I can't help with that.",
        "As an AI language model, I don't have", "Here you go:", "Certainly! Let me think about it.", "Let's go with",
        "I'm not sure what you mean by that.", "Great question! The main one that I know well is",
        "Thank you for asking me!", "Please let me know more, and I can", "I am excited to tell you, it's basic",
        "Hello! How can I assist you today?", "That is a very good and simple question.",
    ],
)  # fmt: skip
def test_small_talk_names_nothing(category, phrase):
    assert named_member(phrase, category) is None


# The lists are taken as they are from here on: these rules hold for any member.


@every_category
def test_a_list_a_choice_and_a_repetition_score_nothing(category):
    names = [name for name in members()[category] if len(name.split()) == 1]
    spellings = set(itertools.chain(*members()[category].values()))
    for one, other in itertools.pairwise(names):
        if f"{one} {other}" in spellings:  # "english literature"
            continue
        for text in (f"{one}, {other}", f"{one} or {other}", f"{one} {other}", f"{one}/{other}", f"{one}\n{other}"):
            assert named_member(text, category) is None, text
        for text in (f"{one} {one}", f"{one}. {one.title()} is", f"{one} and {plural(one)}"):
            assert named_member(text, category) is None, text


@every_category
def test_a_member_within_another_word_is_none(category):
    spellings = set(itertools.chain(*members()[category].values()))
    forms = spellings | set(map(in_plural, spellings))
    for spelling in spellings:
        for text in (f"x{spelling}", f"{spelling}zzz", f"{spelling}1"):
            if spelling.isalpha() and text not in forms:
                assert named_member(text, category) is None


@every_category
def test_the_longest_of_overlapping_members_is_named(category):
    names = members()[category]
    for long in names:
        for short in names:
            if long != short and f" {short} " in f" {long} ":
                assert named_member(f"A {long}.", category) == long


@pytest.mark.parametrize(
    ("category", "text", "member"),
    [
        ("fruit", "Sure! An example of a fruit is an apple, which", "apple"),
        ("fruit", "figure", None),
        ("fruit", "a pineapple", "pineapple"),
        ("fruit", "Cherries are", "cherry"),
        ("fruit", "", None),
        ("fruit", "fruit", None),
        ("fruit", "a fruit is an Açaí", "acai"),
        ("fruit", "ＡＰＰＬＥ", "apple"),
        ("fruit", "mangoes", "mango"),
        ("fruit", "not an apple", "apple"),  # what is said about it is not read
        ("mammal", "polar-bear", "polar bear"),
        ("mammal", "mice", "mouse"),
        ("mammal", "a bear, a polar bear", None),
        ("color", "Grey", "gray"),
        ("city in Europe", "ZÜRICH", "zurich"),
        ("country", "The U.S.A.", "united states"),
        ("country", "Côte d’Ivoire", None),
        ("programming language", "C++, of course", "c++"),
        ("programming language", "C.", "c"),
        ("programming language", "It's C#!", "c#"),
        ("sport", "Soccer", "soccer"),
        ("sport", "Football", "football"),
    ],
)
def test_by_hand(category, text, member):
    assert named_member(text, category) == member
    assert reward(category, text) == [float(member is not None)]


@every_category
def test_more_than_twelve_words_are_not_brief(category):
    member = next(name for name in members()[category] if len(words(name)) == 1)
    texts = [" ".join(["word"] * number + [member]) for number in (MAX_WORDS - 1, MAX_WORDS)]
    assert reward(category, *texts) == [1.0, 0.0]
    assert reward(category, f"{member} " + "字 " * MAX_WORDS) == [0.0]


@every_category
def test_members_that_the_prompt_names_are_echoes(category):
    one, other = [name for name in members()[category] if len(words(name)) == 1][:2]
    asked = f"Such as {plural(one)}: name {with_article(category)}."
    chat = [{"role": "user", "content": asked}]
    for question in (asked, chat):
        given = reward(category, one, f"Such as {one}: {other}", other, prompts=[question] * 3)
        assert given == [0.0, 1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text(), st.sampled_from(list(members())))
def test_any_text_is_a_member_or_none(text, question, category):
    member = named_member(text, category, prompt=question)
    assert member is None or member in members()[category]
    assert named_member(text.upper(), category) == named_member(text.upper().lower(), category)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "an", "apple", "apples", "fig", "bear", "polar", "?", "black", "berry"]), max_size=14
    )
)
def test_what_is_named_stands_there_once_and_alone(parts):
    text = " ".join(parts)
    counts = Counter(part.rstrip("s") for part in parts if part.rstrip("s") in ("apple", "fig"))
    (only,) = counts if len(counts) == 1 and sum(counts.values()) == 1 else (None,)
    assert named_member(text, "fruit") == (only if len(words(text)) <= MAX_WORDS else None)


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="'frut'"):
        named_member("apple", "frut")


def test_completions_may_be_chat_messages():
    messages = [[{"role": "assistant", "content": "A rose."}], [], [{"role": "assistant", "content": None}]]
    assert reward("flower", *messages) == [1.0, 0.0, 0.0]
    assert categories_reward.__name__ == "categories_reward"


# Which answers are the same, and how many differ.


def test_answers_in_other_words_are_the_same_answer():
    given = categories_reward.given_answers(
        prompts=[""] * 5,
        completions=["apple", "Apples.", "An apple!", "Pears", "a pear or apple"],
        answer=["fruit"] * 5,
        trainer_state=None,
    )
    assert given == ["apple", "apple", "apple", "pear", None]


def test_distinct_right_answers_of_each_group_are_logged():
    texts = ["apple", "Apples.", "pear", "stone", "rose", "Rose", "roses", "x", "a", "b", "", "apple, pear"]
    kinds = ["fruit"] * 4 + ["flower"] * 4 + ["fruit"] * 4
    for chat in (False, True):
        prompts = [f"q{row // 4}" for row in range(12)]
        prompts = [[{"role": "user", "content": text}] for text in prompts] if chat else prompts
        logged = {}
        categories_reward(prompts=prompts, completions=texts, answer=kinds, log_metric=logged.__setitem__)
        assert logged == {"categories/distinct_correct": (2 + 1 + 0) / 3}
    assert categories_reward(prompts=[], completions=[], answer=[], log_metric=logged.__setitem__) == []


# The split.


def pairs(dataset):
    return list(zip(dataset["prompt"], dataset["answer"], dataset["unseen"], strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_held_out_are_new_categories_in_new_wordings_and_known_ones_in_one_each(seed):
    task = categories_task(seed)
    known, new = set(task.train["answer"]), {name for _, name, unseen in pairs(task.held_out) if unseen == "category"}
    assert known | new == set(members())
    assert not known & new
    assert len(new) == len(members()) // 4
    assert set(pairs(task.train)) == {(prompt(w, name), name, "nothing") for w in TRAINING_WORDINGS for name in known}
    assert len(task.train) == len(known) * len(TRAINING_WORDINGS)
    rows = pairs(task.held_out)
    assert {row for row in rows if row[2] == "category"} == {
        (prompt(w, name), name, "category") for w in HELD_OUT_WORDINGS for name in new
    }
    others = [(question, name) for question, name, unseen in rows if unseen == "wording"]
    assert sorted(name for _, name in others) == sorted(known)
    assert all(question in [prompt(w, name) for w in HELD_OUT_WORDINGS] for question, name in others)
    used = Counter(w for question, name in others for w in HELD_OUT_WORDINGS if question == prompt(w, name))
    assert max(used.values()) - min(used.values()) <= 1
    assert len(rows) == len(set(rows)) == 3 * len(new) + len(known)
    assert 60 <= len(rows) <= 100
    keys = [{content_key(question) for question in data["prompt"]} for data in (task.train, task.held_out)]
    assert not keys[0] & keys[1]


def test_the_same_seed_makes_the_same_task():
    assert pairs(categories_task(1).train) == pairs(categories_task(1).train)
    assert set(categories_task(1).train["answer"]) != set(categories_task(2).train["answer"])
    answers = categories_task().train["answer"][:]
    assert answers != sorted(answers)


def test_the_order_of_the_lists_in_the_file_does_not_matter(monkeypatch):
    expected = pairs(categories_task().held_out)
    turned = dict(reversed(members().items()))
    monkeypatch.setattr("equipoise.tasks.categories.members", lambda: turned)
    assert pairs(categories_task().held_out) == expected


def test_by_name_as_text_and_as_chat():
    task, chat = named_task("categories?seed=3"), named_task("categories?seed=3", chat=True)
    assert pairs(task.train) == pairs(categories_task(3).train)
    for data, messages in ((task.train, chat.train), (task.held_out, chat.held_out)):
        assert messages["prompt"][:] == [[{"role": "user", "content": text}] for text in data["prompt"]]
        assert messages["answer"][:] == data["answer"][:]
    assert chat.evaluation_reward is categories_reward
    with pytest.raises(InputError, match="reward of its own"):
        named_task("categories", reward="math")
    with pytest.raises(InputError, match="no parameter 'sed'"):
        named_task("categories?sed=1")


def test_the_right_completions_of_the_task_are_right_and_differ():
    task = categories_task()
    texts = task.right_completions(task.train)
    assert set(
        categories_reward(completions=texts, prompts=task.train["prompt"][:], answer=task.train["answer"][:])
    ) == {1}
    assert len(set(texts)) > len(task.train) / 2


def test_a_mixture_tells_the_answers_of_the_tasks_that_know_them():
    task = named_task("0.5*categories + 0.5*ladder")
    reading = {"prompts": ["1 2 =", "Name a fruit.", "Name a fruit."], "completions": ["+1 2", "Apples", "x"]}
    names = {"task": ["ladder", "categories", "categories"], "answer": ["2", "fruit", "fruit"]}
    for mixed in (task.reward, task.evaluation_reward):
        assert mixed.given_answers(**reading, **names) == [None, "apple", None]
        assert mixed(**reading, **names) == [1.0, 1.0, 0.0]


class Mine:
    """A user's reward that reads answers."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, completions, **columns):
        return [1.0] * len(completions)

    def given_answers(self, **columns):
        return 1 / 0 if self.answers is None else self.answers


def test_the_answers_that_a_users_reward_reads_are_checked():
    keywords = {"prompts": ["", ""], "completions": ["a", "b"]}
    assert checked(Mine(["x", None])).given_answers(**keywords) == ["x", None]
    assert not hasattr(checked(lambda **_: [1.0]), "given_answers")
    for answers, rule in (
        (None, "ZeroDivisionError"),
        (["x"], "a list of 2"),
        ("xy", "a list of 2"),
        ([1, "x"], "texts"),
    ):
        with pytest.raises(InputError, match=f"given_answers of 'Mine'.*{rule}"):
            checked(Mine(answers)).given_answers(**keywords)
