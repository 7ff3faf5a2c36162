"""Questions with many right answers: "Name a fruit." is answered by any fruit.

A policy that is trained on them shows how much of its variety it keeps: answers are told apart by the member of the
category that they name, so that "Apples.", "An apple!" and "apple" are one.
"""

import functools
import json
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

from datasets import Dataset

from equipoise.inputs.yaml_text import yaml_value
from equipoise.tasks.task import Task, completion_text

MEMBERS_FILE = "categories.yaml"
MAX_WORDS = 12
"""Of a right answer, all its words counted: "Sure! An example of a fruit is an apple, which" has ten."""
MAX_COMPLETION_LENGTH = 12  # tokens, so that hardly any completion has more words than MAX_WORDS
HELD_OUT_FRACTION = 0.25

TRAINING_WORDINGS = (
    "Name {a_kind}.",
    "Give me an example of {a_kind}.",
    "Tell me {a_kind}, nothing else.",
    "Can you name {a_kind}?",
    "Please name {a_kind} in a few words.",
    "Think of {a_kind}. Which one is it?",
    "I need the name of {a_kind}.",
    "Write down {a_kind}.",
    "What is an example of {a_kind}?",
)
"""{a_kind} is the category with its article."""
HELD_OUT_WORDINGS = (
    "Mention {a_kind}, just one.",
    "Could you give me the name of {a_kind}?",
    "Say {a_kind} that comes to your mind.",
)

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s\b")
_SIGNED = {"c++": "cplusplus", "c#": "csharp", "f#": "fsharp"}  # the only members with signs that are no words
_SIGNED_NAME = re.compile(r"(?<![^\W_])(c\+\+|[cf]#)")
_IRREGULAR = {
    "mouse": "mice", "louse": "lice", "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen",
    "person": "people", "cactus": "cacti", "narcissus": "narcissi", "gladiolus": "gladioli", "knife": "knives",
    "wolf": "wolves", "calf": "calves", "shelf": "shelves", "scarf": "scarves", "leaf": "leaves",
}  # fmt: skip


def categories_task(seed: int = 0) -> Task:
    """Categories such as "fruit" or "chemical element", three quarters of them to train on in nine wordings.

    Held out are the other quarter in three other wordings, and every training category in one of these.

    Args:
        seed: of the split and of the order; the same seed gives the same task.

    Returns:
        A task with the columns "prompt" (text), "answer" (the name of the category) and "unseen": what of a prompt was
        not trained on, "category" (and wording), "wording", or "nothing" in the training rows.
    """
    generator = random.Random(seed)
    names = sorted(members())
    generator.shuffle(names)
    num_held_out = round(len(names) * HELD_OUT_FRACTION)
    new, known = names[:num_held_out], names[num_held_out:]
    train = [(wording, name, "nothing") for name in known for wording in TRAINING_WORDINGS]
    held_out = [(wording, name, "category") for name in new for wording in HELD_OUT_WORDINGS]
    held_out += [
        (HELD_OUT_WORDINGS[number % len(HELD_OUT_WORDINGS)], name, "wording") for number, name in enumerate(known)
    ]
    generator.shuffle(train)
    generator.shuffle(held_out)
    return Task(
        name="categories",
        train=_rows(train),
        held_out=_rows(held_out),
        reward=categories_reward,
        max_completion_length=MAX_COMPLETION_LENGTH,
        right_completions=some_members,
    )


class CategoriesReward:
    """1.0 for a completion that names one member of the category of its prompt, once and briefly, else 0.0.

    Right is a completion of at most 12 words in which the forms of the category's members (every spelling in the lists,
    singular and plural) occur once in all: two members hedge, and the same one twice is not brief. Words are compared
    without case, accents and punctuation, and whole ("figure" names no fig); of forms that overlap the longest counts
    ("polar bear" is no bear). What else is said is not read: "not an apple" names the apple. A completion that is cut
    off counts like any other. Members that stand in the prompt, as examples of a template, are echoes and do not count.
    """

    __name__ = "categories_reward"

    def __call__(self, *, prompts: list, completions: list, answer: list[str], **columns: Any) -> list[float]:
        """One reward per completion; the number of different right answers in a group is logged.

        Args:
            prompts: text or lists of chat messages. Equal ones of a call are a group.
            completions: text or lists of chat messages, of which the last counts.
            answer: names of categories.
            columns: ignored, but `log_metric`, which is told the mean over groups as categories/distinct_correct.

        Raises:
            ValueError: no such category.
        """
        given = self.given_answers(prompts=prompts, completions=completions, answer=answer)
        if "log_metric" in columns and given:
            groups = defaultdict(set)
            for prompt, name in zip(prompts, given, strict=True):
                groups[json.dumps(prompt)].add(name)
            counts = [len(names - {None}) for names in groups.values()]
            columns["log_metric"]("categories/distinct_correct", sum(counts) / len(counts))
        return [float(name is not None) for name in given]

    def given_answers(self, *, prompts: list, completions: list, answer: list[str], **columns: Any) -> list[str | None]:
        """The member that each right completion names, spelt as first in the lists; None for a wrong completion.

        Args:
            prompts: as in a call.
            completions: as in a call.
            answer: as in a call.
            columns: ignored.

        Raises:
            ValueError: no such category.
        """
        return [
            named_member(completion_text(completion), category, prompt=_prompt_text(prompt))
            for prompt, completion, category in zip(prompts, completions, answer, strict=True)
        ]


categories_reward = CategoriesReward()
"""The reward of the task."""


def named_member(text: str, category: str, *, prompt: str = "") -> str | None:
    """The one member of a category that a text names, once and in at most 12 words; else None.

    Args:
        text: an answer.
        category: its name in the lists.
        prompt: members that stand in it do not count.

    Raises:
        ValueError: no such category.
    """
    if category not in members():
        raise ValueError(f"there is no category {category!r}; categories are {', '.join(members())}")
    answer = words(text)
    if len(answer) > MAX_WORDS:
        return None
    echoes = set(_mentions(words(prompt), category))
    named = [member for member in _mentions(answer, category) if member not in echoes]
    return named[0] if len(named) == 1 else None


def some_members(rows: Dataset) -> list[str]:
    """A right completion of each row: members in turn, so that rows of one category have different ones.

    Args:
        rows: column "answer", names of categories.
    """
    return [list(members()[category])[row % len(members()[category])] for row, category in enumerate(rows["answer"])]


def words(text: str) -> list[str]:
    """The words of a text in lower case, without accents, punctuation and the 's of a genitive."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if unicodedata.category(sign) != "Mn")
    plain = _SIGNED_NAME.sub(lambda match: _SIGNED[match[0]], plain.casefold())
    return _WORD.findall(re.sub("['’]", "", _POSSESSIVE.sub("", plain)))


@functools.cache
def members() -> dict[str, dict[str, list[str]]]:
    """Category -> member -> its spellings, the first of which is the member's name."""
    text = (files("equipoise.tasks") / MEMBERS_FILE).read_text(encoding="utf-8")
    spelt = {category: [_spellings(entry) for entry in line.split(",")] for category, line in yaml_value(text).items()}
    return {category: {spellings[0]: spellings for spellings in entries} for category, entries in spelt.items()}


def plural(word: str) -> str:
    """The plural of an English noun, as the usual rules and a few exceptions make it."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if word.endswith("man") and word not in ("human", "ottoman"):
        return word[:-2] + "en"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def with_article(name: str) -> str:
    """The name of a category with "a" or "an" before it."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _spellings(entry: str) -> list[str]:
    return [" ".join(spelling.split()) for spelling in entry.split("=")]


def _rows(chosen: list[tuple[str, str, str]]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [wording.format(a_kind=with_article(name)) for wording, name, _ in chosen],
            "answer": [name for _, name, _ in chosen],
            "unseen": [unseen for *_, unseen in chosen],
        }
    )


def _prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else " ".join(completion_text([message]) for message in prompt)


@functools.cache
def _forms(category: str) -> tuple[dict[tuple[str, ...], str], int]:
    """Words of a form -> the member: every spelling, and its last word in the plural, also with "es" after an o.

    Beside it the number of words of the longest form.
    """
    inflections: tuple[Callable[[str], str], ...] = (
        str,
        plural,
        lambda word: word + ("es" if word[-1] == "o" else "s"),
    )
    forms = {}
    for member, spellings in members()[category].items():
        for *first, last in map(words, spellings):
            forms |= {(*first, inflect(last)): member for inflect in inflections}
    return forms, max(map(len, forms))


def _mentions(text: list[str], category: str) -> Iterator[str]:
    """The members that the words name, from left to right; of forms that begin at the same word the longest."""
    forms, longest = _forms(category)
    begin = 0
    while begin < len(text):
        for length in range(longest, 0, -1):
            if (member := forms.get(tuple(text[begin : begin + length]))) is not None:
                yield member
                begin += length - 1
                break
        begin += 1
