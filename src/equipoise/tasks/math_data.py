"""Mathematics data sets by name, with the columns that their authors chose; and any data as a term of a mixture.

The columns were read in the sets' public cards and in public code that loads them (2025 to 2026); none was loaded from
the hub here. A column that has moved is an error that names the columns there are; `prompt_column`, `answer_column`,
`split` and `path` override.
"""

import ast
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks.answers import check_answers
from equipoise.tasks.datasets import load_examples, path_of, shortened, with_column
from equipoise.tasks.prompts import content_key, without_held_out
from equipoise.tasks.rewards import reward_function, verifier_function
from equipoise.tasks.task import Task
from equipoise.tasks.terms import called


@dataclass(frozen=True)
class MathData:
    """Where a data set is and what its columns are called.

    Attributes:
        source: hub id, "owner/name" or "owner/name:configuration".
        split: of the hub data set.
        prompt: column of the prompts.
        answer: column of the answers.
        list_literals: the answers are lists written as text, such as '["42"]'.
    """

    source: str
    split: str
    prompt: str
    answer: str
    list_literals: bool = False


MATH_DATA = {
    "dapo_math_17k": MathData("open-r1/DAPO-Math-17k-Processed:en", "train", "prompt", "reward_model.ground_truth"),
    "skywork_or1_math": MathData(
        "Skywork/Skywork-OR1-RL-Data", "math", "prompt", "reward_model.ground_truth", list_literals=True
    ),
    "aime_2024": MathData("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "aime_2025": MathData("math-ai/aime25", "test", "problem", "answer"),
    "amc": MathData("AI-MO/aimo-validation-amc", "train", "problem", "answer"),
    "math_500": MathData("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "minerva_math": MathData("math-ai/minervamath", "test", "question", "answer"),
    "olympiad_bench": MathData("Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", "question", "final_answer"),
}


def math_task(
    name: str, parameters: Mapping[str, Any], *, reward: str = "math", chat: bool = False, only: int | None = None
) -> Task:
    """A data set of the table, or of `data:PATH_OR_HUB_ID`, checked answer by answer before training.

    Args:
        name: a key of `MATH_DATA`, or "data:" and what `load_examples` takes.
        parameters: "path" (a local copy: JSONL, Parquet or CSV), "split", "prompt_column", "answer_column", "limit"
            (the first so many prompts), "held_out" (a number of prompts, or a fraction below 1, kept from training),
            "seed" (of that choice), "unverifiable_golds" ("drop" or "refuse", as `check_answers` takes it).
        reward: as `reward_function` takes it.
        chat: make text prompts messages of the user.
        only: so many prompts are wanted, the first, to evaluate on: no more answers are checked than that takes, which
            is all of them where a part is held out, since that depends on how many there are. None: all are wanted.

    Returns:
        A task. Of a data set of the table, prompts that occur more than once (by content) are kept once; of the user's
        data, rows that occur more than once: two episodes may begin alike.

    Raises:
        InputError: as `load_examples` and `check_answers`; wrong parameters; nothing left to train on.
    """
    of_user = name.startswith("data:")
    known = MathData(name.removeprefix("data:"), "train", "prompt", "answer") if of_user else MATH_DATA[name]

    def load(
        path: str = known.source,
        split: str = known.split,
        prompt_column: str = known.prompt,
        answer_column: str = known.answer,
        limit: int = 0,
        held_out: float = 0,
        seed: int = 0,
        unverifiable_golds: str = "drop",
    ) -> Task:
        if limit < 0 or held_out < 0:
            raise ValueError(f"limit and held_out must be >= 0, got limit={limit} and held_out={held_out}")
        if path != known.source and not path_of(path).exists():
            raise ValueError(f"path {path}: no such file")
        examples = load_examples(
            path, prompt_column=prompt_column, answer_column=answer_column, split=split, chat=chat, empty_answers=True
        )
        if known.list_literals:
            examples = _with_listed_answers(examples, path)
        most = min(limit or len(examples), len(examples) if only is None or held_out else only)
        checked = check_answers(
            reward, examples, path, unverifiable_golds=unverifiable_golds,
            still_needed=lambda good: most - len(_unique(good, whole_rows=of_user)),
        )  # fmt: skip
        examples = _unique(checked, whole_rows=of_user)
        examples = examples.select(range(min(most, len(examples))))
        train, tested = _split(examples, held_out, seed)
        if tested is not None:
            train = without_held_out(train, tested, name)
        label = Path(known.source).stem if of_user else name
        return Task(label, train, tested, reward_function(reward), None, verifier=verifier_function(reward))

    return called(f"task {name}", load, parameters)


def _with_listed_answers(examples: Dataset, source: str) -> Dataset:
    answers = []
    for row, text in enumerate(examples["answer"], start=1):
        listed = _list_literal(text)
        if listed == []:
            raise InputError(f"{source}, row {row}: the list of answers must not be empty, got {shortened(text)}")
        answers.append([text] if listed is None else listed)
    return with_column(examples, "answer", answers)


def _list_literal(text: str) -> list[str] | None:
    """The texts of a list written as text; None for a plain answer, as (3, 4), [1, 2] and 1,000 are."""
    try:
        listed = ast.literal_eval(text) if text.lstrip().startswith("[") else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return listed if isinstance(listed, list) and all(isinstance(item, str) for item in listed) else None


def _unique(examples: Dataset, *, whole_rows: bool) -> Dataset:
    rest = examples.remove_columns("prompt") if whole_rows else None
    keys = [(content_key(p), "" if rest is None else repr(rest[row])) for row, p in enumerate(examples["prompt"])]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return examples if len(first) == len(examples) else examples.select(sorted(first.values()))


def _split(examples: Dataset, held_out: float, seed: int) -> tuple[Dataset, Dataset | None]:
    count = round(held_out * len(examples)) if held_out < 1 else round(held_out)
    if count >= len(examples):
        raise ValueError(f"held_out={held_out:g} leaves nothing to train on of {len(examples)} prompts")
    if not count:
        return examples, None
    rows = random.Random(seed).sample(range(len(examples)), len(examples))
    return examples.select(sorted(rows[count:])), examples.select(sorted(rows[:count]))
