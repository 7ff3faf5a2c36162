"""The self-test of a data set: before training, every expected answer must be one that the reward accepts."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.progress import progress_bar
from equipoise.tasks.datasets import shortened
from equipoise.tasks.mathematics import perturbed
from equipoise.tasks.rewards import golds_of, verifier_function, verifier_name
from equipoise.tasks.verification import Verdict, shared_pool

logger = logging.getLogger("equipoise")

Unverifiable = Literal["drop", "refuse"]
MAX_DROPPED_FRACTION = 0.01  # of the rows: where more answers cannot be verified, the data are not what they seem
NUM_SHOWN = 5  # rows in a message that refuses
NUM_LISTED = 50  # rows in the list of those that are dropped
NUM_TRIED = 256  # answers tried with a function of the user
LEAST_MORE = 64  # rows looked at next, where those before were not enough


def check_answers(
    reward: str,
    dataset: Dataset,
    source: str,
    *,
    unverifiable_golds: str = "drop",
    progress: bool = True,
    still_needed: Callable[[Dataset], int] | None = None,
) -> Dataset:
    r"""The rows whose answers the reward can verify; looked at before training.

    "math": every different answer is read as an expected answer and, on its own way, as \boxed{answer} of a completion,
    and the two must be equal by what they say; the same answer with another number, another sign, or without its last
    row or item must not be. A few thousand answers take seconds. "exact" accepts every answer that is not empty. A
    function of the user is called once with up to 256 answers in the place of completions: when it scores none of them
    above 0, one line says so, since it may want more than the answer alone.

    Args:
        reward: as given to `reward_function`.
        dataset: with a column "answer".
        source: what to call the data set in the message.
        unverifiable_golds: "drop" leaves rows out whose answer cannot be verified, up to `MAX_DROPPED_FRACTION` of
            them, and lists them in one line; "refuse" refuses the data.
        progress: show a bar on stderr where it takes long.
        still_needed: how many rows more are needed beside those that were found good; rows after them are neither
            looked at nor returned. None: all are.

    Returns:
        The data set, or what is left of it.

    Raises:
        InputError: naming the rows (from 1) whose answer cannot be read or does not verify itself; a wrong
            `unverifiable_golds`.
    """
    if unverifiable_golds not in get_args(Unverifiable):
        raise InputError(f"unverifiable_golds must be one of drop, refuse, got {unverifiable_golds!r}")
    name = verifier_name(reward)
    total, looked_at, found = len(dataset), 0, {}
    for part in _parts(dataset, still_needed, found):
        if name == "math":
            found |= _unverifiable(part, progress, first=looked_at + 1)
        looked_at += len(part)
    dataset = dataset if looked_at == total else dataset.select(range(looked_at))
    if name == "math":
        return _without(dataset, found, source, unverifiable_golds, total) if found else dataset
    _check_not_empty(dataset, source)
    if name != "exact":
        _try_function(reward, dataset, source)
    return dataset


def _parts(dataset: Dataset, still_needed: Callable[[Dataset], int] | None, found: dict) -> Iterator[Dataset]:
    """Rows to look at, one part after the other, until enough of them are not among those `found` to be bad."""
    begin, count = 0, len(dataset) if still_needed is None else still_needed(dataset.select([]))
    while begin < len(dataset) and count > 0:
        end = min(begin + count, len(dataset))
        yield dataset.select(range(begin, end)) if (begin, end) != (0, len(dataset)) else dataset
        begin = end
        if still_needed is not None and begin < len(dataset):
            missing = still_needed(dataset.select([row for row in range(begin) if row + 1 not in found]))
            count = max(missing, LEAST_MORE) if missing > 0 else 0


def _unverifiable(dataset: Dataset, progress: bool, first: int = 1) -> dict[int, tuple[str, str]]:
    """Row (the first has the number `first`) -> (answer, why it cannot be verified), in order."""
    rows: dict[str, list[int]] = {}
    for row, answer in enumerate(dataset["answer"], start=first):
        for gold in golds_of(answer):
            rows.setdefault(gold, []).append(row)
    golds = list(rows)
    others = [(gold, other) for gold in golds for other in perturbed(gold)]
    texts = [_completion(gold) for gold in golds] + [_completion(other) for _, other in others]
    expected = [[gold] for gold in golds] + [[gold] for gold, _ in others]
    with progress_bar("check answers", len(texts), "answer", shown=progress and len(texts) >= 5000) as bar:
        verdicts = shared_pool().verdicts(texts, expected, done=bar.update)
    reasons = {gold: reason for gold, v in zip(golds, verdicts, strict=False) if (reason := _reason(v))}
    for (gold, other), verdict in zip(others, verdicts[len(golds) :], strict=True):
        if verdict.outcome == "correct":
            reasons.setdefault(gold, f"it cannot be told from {shortened(other)}")
    found = {row: (gold, reason) for gold, reason in reasons.items() for row in rows[gold]}
    return dict(sorted(found.items()))


def _completion(gold: str) -> str:
    r"""A completion whose answer is this: data sets have answers in boxes and whole solutions as well."""
    return gold if "\\boxed" in gold or "####" in gold else f"The final answer is $\\boxed{{{gold}}}$."


def _reason(verdict: Verdict) -> str:
    """Why an answer that was given for itself was not accepted; "" if it was."""
    if verdict.outcome == "correct":
        return ""
    if verdict.outcome == "bad_gold":
        return "it cannot be read"
    return f"it is not accepted as an answer to itself: {verdict.reason or verdict.outcome}"


def _without(
    dataset: Dataset, found: dict[int, tuple[str, str]], source: str, unverifiable_golds: str, total: int
) -> Dataset:
    """The rows that are not among those found; `total` is of the whole data set, of which a part was looked at."""
    if unverifiable_golds == "refuse" or len(found) > MAX_DROPPED_FRACTION * total:
        _refuse(source, found, total, unverifiable_golds)
    listed = "; ".join(f"row {row} {shortened(gold)} ({why})" for row, (gold, why) in list(found.items())[:NUM_LISTED])
    logger.warning(
        '%s: %d of %d rows are left out, as the reward "math" cannot verify their answers: %s.',
        source, len(found), len(dataset), listed,
    )  # fmt: skip
    return dataset.select([row for row in range(len(dataset)) if row + 1 not in found])


def _refuse(source: str, found: dict[int, tuple[str, str]], total: int, unverifiable_golds: str) -> None:
    (row, (gold, why)), *rest = found.items()
    others = ", ".join(str(other) for other, _ in rest[: NUM_SHOWN - 1])
    more = f" and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
    listed = f"; so are those of the rows {others}{more}" if others else ""
    share = "" if unverifiable_golds == "refuse" else (
        f" ({len(found)} of {total} rows, at most {MAX_DROPPED_FRACTION:.0%} may be left out)"
    )  # fmt: skip
    raise InputError(
        f"{source}, row {row}, column 'answer': must be an answer that the reward \"math\" can verify, but {why},"
        f" got {shortened(gold)}{listed}{share}"
    )


def _check_not_empty(dataset: Dataset, source: str) -> None:
    for row, answer in enumerate(dataset["answer"], start=1):
        if any(not gold.strip() for gold in golds_of(answer)):
            raise InputError(
                f"{source}, row {row}, column 'answer': the answer must not be empty, got {shortened(answer)}"
            )


def _try_function(reward: str, dataset: Dataset, source: str) -> None:
    function = verifier_function(reward)
    tried = dataset.select(range(min(len(dataset), NUM_TRIED)))
    columns = {name: list(tried[name]) for name in tried.column_names if name != "prompt"}
    answers = [golds_of(answer)[0] for answer in tried["answer"]]
    chat = not isinstance(tried["prompt"][0], str)
    completions = [[{"role": "assistant", "content": answer}] if chat else answer for answer in answers]
    try:
        scores: Sequence[float | None] = function(
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
