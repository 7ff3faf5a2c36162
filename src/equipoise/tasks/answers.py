"""The self-test of a data set: before training, every expected answer must be one that the reward accepts."""

import logging
from collections.abc import Sequence

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.progress import progress_bar
from equipoise.tasks.datasets import shortened
from equipoise.tasks.rewards import golds_of, verifier_function, verifier_name
from equipoise.tasks.verification import Verdict, shared_pool

logger = logging.getLogger("equipoise")

NUM_SHOWN = 5  # rows in a message
NUM_TRIED = 256  # answers tried with a function of the user


def check_answers(reward: str, dataset: Dataset, source: str, *, progress: bool = True) -> None:
    r"""Refuses, before training, answers that the reward could never verify.

    "math": every different answer is parsed and verified against itself as \boxed{answer}, about a millisecond each.
    "exact" accepts every answer. A function of the user is called once with up to 256 answers in the place of
    completions: when it scores none of them above 0, one line says so, since it may want more than the answer alone.

    Args:
        reward: as given to `reward_function`.
        dataset: with a column "answer".
        source: what to call the data set in the message.
        progress: show a bar on stderr where it takes long.

    Raises:
        InputError: naming the rows (from 1) whose answer cannot be parsed or does not verify itself.
    """
    name = verifier_name(reward)
    if name == "math":
        _check_math(dataset, source, progress)
    elif name != "exact":
        _try_function(reward, dataset, source)


def _check_math(dataset: Dataset, source: str, progress: bool) -> None:
    rows: dict[str, int] = {}
    for row, answer in enumerate(dataset["answer"], start=1):
        for gold in golds_of(answer):
            rows.setdefault(gold, row)
    golds = list(rows)
    texts = [gold if "\\boxed" in gold else f"\\boxed{{{gold}}}" for gold in golds]
    with progress_bar("check answers", len(golds), "answer", shown=progress and len(golds) >= 5000) as bar:
        verdicts = shared_pool().verdicts(texts, [[gold] for gold in golds], done=bar.update)
    unparsed = [(rows[g], g, v) for g, v in zip(golds, verdicts, strict=True) if v.outcome == "bad_gold"]
    if unparsed:
        _refuse(
            source, unparsed,
            'the reward "math" needs an answer that math-verify can parse'
            " (a bare word is none: write $abc$ for a product)",
        )  # fmt: skip
    # Text and units in a box are read in other ways than alone; as they stand, such answers must verify themselves.
    again = [index for index, verdict in enumerate(verdicts) if verdict.outcome != "correct"]
    plain = shared_pool().verdicts([f"${golds[i].strip('$')}$" for i in again], [[golds[i]] for i in again])
    rejected = [
        (rows[golds[i]], golds[i], verdicts[i])
        for i, verdict in zip(again, plain, strict=True)
        if verdict.outcome != "correct"
    ]
    if rejected:
        _refuse(source, rejected, 'the reward "math" does not accept the answer as an answer to itself')


def _refuse(source: str, found: Sequence[tuple[int, str, Verdict]], rule: str) -> None:
    found = sorted(found, key=lambda item: item[0])
    row, gold, verdict = found[0]
    others = ", ".join(str(other) for other, *_ in found[1:NUM_SHOWN])
    more = f" and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
    listed = f"; so are those of the rows {others}{more}" if others else ""
    why = f" ({verdict.outcome}: {verdict.reason})" if verdict.reason and verdict.outcome != "bad_gold" else ""
    raise InputError(f"{source}, row {row}, column 'answer': {rule}, got {shortened(gold)}{why}{listed}")


def _try_function(reward: str, dataset: Dataset, source: str) -> None:
    function = verifier_function(reward)
    tried = dataset.select(range(min(len(dataset), NUM_TRIED)))
    columns = {name: list(tried[name]) for name in tried.column_names if name != "prompt"}
    answers = [golds_of(answer)[0] for answer in tried["answer"]]
    chat = not isinstance(tried["prompt"][0], str)
    completions = [[{"role": "assistant", "content": answer}] if chat else answer for answer in answers]
    try:
        scores = function(
            prompts=list(tried["prompt"]), completions=completions, completion_ids=[[0]] * len(tried),
            trainer_state=None, log_extra=_unlogged, log_metric=_unlogged, **columns,
        )  # fmt: skip
    except InputError as error:
        logger.warning("%s: on the data set's own answers, %s.", source, error)
        return
    if not any(score is not None and score > 0 for score in scores):
        logger.warning(
            "%s: the reward %s scores none of %d of the data set's own answers above 0 (right if it wants more than "
            "the answer alone).", source, verifier_name(reward), len(answers),
        )  # fmt: skip


def _unlogged(name: str, value: object) -> None:
    """Takes what a reward function logs while it is trained with."""
