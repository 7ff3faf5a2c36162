"""Tasks of reasoning-gym, which makes its examples itself and brings a scorer for each.

`reasoning_gym:chain_sum?min_terms=2&max_terms=3&size=2000&held_out=200&seed=0`. Training and held-out examples come
from two seeds; whatever both contain is taken out of training.
"""

import dataclasses
import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from equipoise import plain_data
from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.mathematics import tagged_answer
from equipoise.tasks.prompts import content_key, without_held_out
from equipoise.tasks.task import Task, completion_text
from equipoise.tasks.terms import check_parameters, configured, nearest
from equipoise.tasks.workers.pool import Answer, WorkerPool

logger = logging.getLogger("equipoise")

DEFAULT_SIZE, DEFAULT_HELD_OUT = 2000, 200
HELD_OUT_SEED_OFFSET = 1_000_003  # far from the seeds that people choose, so that two runs never swap their splits
NUM_SELF_TESTED = 200
SECONDS = 5.0  # of CPU time, for one score: some scorers simplify formulas
COUNTED = ("timeout", "memory", "refused", "error")
"""Outcomes that score 0, whose share is logged as verification/OUTCOME_fraction."""
_OWN = ("size", "held_out", "seed")


def reasoning_gym_task(name: str, parameters: Mapping[str, Any]) -> Task:
    """A data set of reasoning-gym with its own scorer as the reward.

    Args:
        name: of the data set, as reasoning-gym registers it.
        parameters: "size" (training examples, default 2000), "held_out" (default 200, 0 for none), "seed" (default 0),
            and those of the data set's own configuration.

    Returns:
        A task with the columns "prompt", "answer" (may be empty where reasoning-gym knows none) and "entry". Prompts
        that occur twice are kept once, so that a task can have fewer examples than asked for.

    Raises:
        InputError: the package is missing, no such data set (the nearest names), a parameter that it does not have or
            accept, or a scorer that rejects every answer of its own data.
    """
    label = f"reasoning_gym:{name}"
    size, held_out, seed = (
        _count(label, parameters, key, default, least)
        for key, default, least in (("size", DEFAULT_SIZE, 1), ("held_out", DEFAULT_HELD_OUT, 0), ("seed", 0, 0))
    )
    known = _registered()
    if name not in known:
        raise InputError(f"reasoning_gym has no data set {name!r}{nearest(name, known)}")
    own = {key: value for key, value in parameters.items() if key not in _OWN}
    dataset_class, config_class = known[name]
    fields = [field.name for field in dataclasses.fields(config_class) if field.name not in _OWN]
    check_parameters(label, own, [*_OWN, *fields])
    entries: dict[str, dict] = {}
    splits, keywords = {}, {}
    for split, count, split_seed in (("train", size, seed), ("held_out", held_out, seed + HELD_OUT_SEED_OFFSET)):
        if count:
            keywords = own | {"size": count, "seed": split_seed}
            config = configured(label, config_class, keywords)
            splits[split] = _examples(label, dataset_class, config, split, entries)
    reward = ProceduralReward(label, (name, keywords), entries)
    train, tested = splits["train"], splits.get("held_out")
    if tested is not None:
        train = without_held_out(train, tested, label)
    _self_test(reward)
    return Task(label, train, tested, reward, max_completion_length=None)


class ProceduralReward:
    """The score of reasoning-gym for what stands in the last <answer> tags of a completion, or else for all of it.

    Most scorers give 1.0 for a right answer and something between 0 and 1 where they see a part of it. Several evaluate
    the answer as Python, so that all of them run in workers (`equipoise.tasks.workers`).

    Attributes:
        label: the task.
        entries: the examples, by key.
        counts: outcome -> number of scores so far.
    """

    reads = frozenset(("answer_tags",))

    def __init__(
        self,
        label: str,
        scorer: tuple[str, dict[str, Any]],
        entries: dict[str, dict],
        *,
        pool: WorkerPool | None = None,
    ) -> None:
        """No process is started yet.

        Args:
            label: the task.
            scorer: the registered name of the data set and the keywords of its configuration.
            entries: the examples, by key.
            pool: of the kind "reasoning_gym"; None: the one that all share.
        """
        self.__name__ = re.sub(r"\W", "_", label)
        self.label, self.entries = label, entries
        self.counts: Counter[str] = Counter()
        self._pool = shared_scorers() if pool is None else pool
        known = [(str(entry["answer"]), entry) for entry in entries.values() if entry["answer"] is not None]
        self._job = self._pool.add_job((*scorer, known[0] if known else None))

    def __call__(self, *, prompts: list, completions: list, entry: list[str], **columns: Any) -> list[float]:
        """One score per completion; `entry` names the examples.

        Where the scorer fails, or goes beyond the limits of a worker, the score is 0, and the share of each cause is
        logged.

        Raises:
            InputError: when workers cannot be started.
        """
        answers = [_final_answer(completion_text(completion)) for completion in completions]
        judged = self.judged(answers, entry)
        counts = Counter(answer.outcome for answer in judged)
        self.counts += counts
        for outcome in COUNTED:
            columns.get("log_metric", _unlogged)(
                f"verification/{outcome}_fraction", counts[outcome] / max(len(judged), 1)
            )
        return [answer.value if answer.outcome == "done" else 0.0 for answer in judged]

    def judged(self, answers: Sequence[str], keys: Sequence[str]) -> list[Answer]:
        """The scores of answers for the examples of those keys, finite, and in [0, 1] for nearly all data sets."""
        payloads = [(answer, self.entries[key]) for answer, key in zip(answers, keys, strict=True)]
        return [_finite(answer) for answer in self._pool.answers(self._job, payloads)]


@functools.cache
def shared_scorers() -> WorkerPool:
    """The workers of all tasks of reasoning-gym."""
    return WorkerPool("reasoning_gym", seconds=SECONDS)


def _finite(answer: Answer) -> Answer:
    if answer.outcome == "done" and not math.isfinite(answer.value):
        return Answer("error", f"the scorer returned {answer.value}")
    return answer


def _unlogged(name: str, value: float) -> None:
    """Where nothing logs."""


def _final_answer(text: str) -> str:
    tagged = tagged_answer(text)
    return text.strip() if tagged is None else tagged


def _registered() -> dict[str, tuple[type, type]]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise InputError(
            f"tasks of reasoning_gym need its package: pip install 'equipoise[reasoning-gym]' ({one_line(error)})"
        ) from error
    return DATASETS


def _count(label: str, parameters: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = parameters.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{label}: parameter {key} must be a whole number >= {least}, got {shortened(value)}")
    return value


def _examples(label: str, dataset_class: type, config: Any, split: str, entries: dict[str, dict]) -> Dataset:
    """The examples of one split, each content once; their entries are added to `entries`."""
    rows: dict[str, list] = {"prompt": [], "answer": [], "entry": []}
    seen = set()
    try:
        made = dataset_class(config)
        for index in range(config.size):
            example = made[index]
            if (content := content_key(example["question"])) in seen:
                continue
            seen.add(content)
            key = f"{split}/{index}"
            plain_data.written(example)  # what no worker could be told is refused now
            entries[key] = example
            rows["prompt"].append(example["question"])
            rows["answer"].append("" if example["answer"] is None else str(example["answer"]))
            rows["entry"].append(key)
    except Exception as error:  # generators fail in their own ways on parameters that do not go together
        raise InputError(f"{label} cannot make its examples ({one_line(error)})") from error
    if len(seen) < config.size:
        logger.warning("%s: %d different %s prompts instead of %d.", label, len(seen), split, config.size)
    return Dataset.from_dict(rows)


def _self_test(reward: ProceduralReward) -> None:
    """The scorer on the data's own answers; some of reasoning-gym's know no answer beforehand."""
    keys = [key for key, entry in reward.entries.items() if entry["answer"] is not None]
    tested = keys[:: max(1, len(keys) // NUM_SELF_TESTED)]
    judged = reward.judged([str(reward.entries[key]["answer"]) for key in tested], tested)
    rejected = [(key, a) for key, a in zip(tested, judged, strict=True) if a.outcome != "done" or a.value < 0.99]
    if not rejected:
        return
    key, answer = rejected[0]
    example = reward.entries[key]
    why = "" if answer.outcome == "done" else f" ({answer.outcome}: {answer.reason})"
    message = (
        f"{reward.label}: its scorer gives less than full marks to {len(rejected)} of {len(tested)} of its own answers,"
        f" such as {shortened(example['answer'])} to {shortened(example['question'])}{why}"
    )
    if len(rejected) == len(tested):
        raise InputError(message)
    logger.warning("%s.", message)
