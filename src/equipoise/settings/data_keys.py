"""Data in a run's settings: `dataset: FILE` is another spelling of `task: data:FILE`, `eval_dataset` of `eval_task`.

What else there is to say of the data, it says itself: `data:mine.jsonl?answer_column=solution&split=train`.
"""

import os

DATA_SPELLINGS = {"dataset": "task", "dataset_name": "task", "eval_dataset": "eval_task"}
"""Key of data alone -> key of the task that it is."""


def spelling(key: str, text: str) -> str:
    """The key as a user writes it: that of data alone where the task is one data set."""
    of_data = {written: data for data, written in reversed(DATA_SPELLINGS.items())}
    from equipoise.tasks.registry import is_own_data

    return of_data[key] if is_own_data(text) else key


GONE = {"prompt_column": "prompt_column", "answer_column": "answer_column", "dataset_split": "split"}
"""Keys that there were -> the parameter of `data:` that says the same."""


def now_written(key: str, value: object) -> str:
    """What to write in the place of a key that is gone."""
    from equipoise.tasks.terms import Term, written

    _, _, parameters = written(Term(1.0, "data:", {GONE[key]: value})).partition("?")
    return f"{key} is a parameter of the data now: dataset: FILE?{parameters}, or task: data:FILE?{parameters}"


def data_term(source: str) -> str:
    """The term that a data set is: "data:", its file or hub id, and its parameters.

    The name of a file that exists is taken as it is, whatever signs of the language of terms it contains; where there
    is none of the whole text, a question mark begins the parameters.

    Args:
        source: "FILE_OR_HUB_ID" or "FILE_OR_HUB_ID?parameter=value&…".
    """
    from equipoise.tasks.terms import Term, written

    ends = [len(source), *(place for place in reversed(range(len(source))) if source[place] == "?")]
    existing = next((end for end in ends if os.path.isfile(os.path.expanduser(source[:end]))), None)
    if existing is None and source[:1] in ("'", '"'):
        return f"data:{source}"
    end = ends[-1] if existing is None else existing
    return written(Term(1.0, f"data:{source[:end]}", {})) + source[end:]
