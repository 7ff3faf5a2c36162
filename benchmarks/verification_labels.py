"""Verdicts on answers that people labelled, beside math-verify alone: counted by `benchmarks/verification.py`.

A file has one JSON object per line: {"kind", "gold", "answer", "right", "disputable"}; answers of the kind "hostile"
are to cost whoever judges them time or memory. Labels that people may argue about are counted apart.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.tasks.verification import VerifierPool

ALONE_SECONDS = 20.0  # for one answer of math-verify alone, whose own limits (5 s) do not interrupt long operations


@dataclass(frozen=True)
class Counts:
    """How many verdicts are right, and how the others are wrong.

    Attributes:
        judge: who judged.
        firm, right, false_positives, false_negatives: of the labels that nobody would argue about, hostile ones aside.
        disputable, agreeing: of the others.
        hostile, accepted: hostile answers, and those of them that were called correct.
        longest_seconds: for one hostile answer.
    """

    judge: str
    firm: int
    right: int
    false_positives: int
    false_negatives: int
    disputable: int
    agreeing: int
    hostile: int
    accepted: int
    longest_seconds: float


def labelled(path: Path) -> list[dict]:
    """The rows of a file of labelled answers."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def counts(judge: str, rows: Sequence[dict], accepts: Callable[[str, str], bool]) -> Counts:
    """The verdicts of `accepts(gold, answer)` against the labels."""
    verdicts, seconds = [], []
    for row in rows:
        begin = time.perf_counter()
        verdicts.append(accepts(row["gold"], row["answer"]))
        seconds.append(time.perf_counter() - begin)
    judged = list(zip(rows, verdicts, strict=True))
    firm = [(row["right"], v) for row, v in judged if not row["disputable"] and row["kind"] != "hostile"]
    disputed = [(row["right"], v) for row, v in judged if row["disputable"] and row["kind"] != "hostile"]
    hostile = [(row, v) for row, v in judged if row["kind"] == "hostile"]
    return Counts(
        judge, len(firm), sum(right == v for right, v in firm), sum(v and not right for right, v in firm),
        sum(right and not v for right, v in firm), len(disputed), sum(right == v for right, v in disputed),
        len(hostile),
        sum(v and not row["right"] for row, v in hostile),
        round(max((s for s, row in zip(seconds, rows, strict=True) if row["kind"] == "hostile"), default=0.0), 1),
    )  # fmt: skip


def ours(pool: VerifierPool) -> Callable[[str, str], bool]:
    """The reward "math"."""
    return lambda gold, answer: pool.verdicts([answer], [[gold]])[0].outcome == "correct"


class MathVerifyAlone:
    """math-verify as its documentation shows it, in a process that is killed when one answer takes too long."""

    def __init__(self) -> None:
        self._process = self._connection = None

    def __call__(self, gold: str, answer: str) -> bool:
        """Whether it accepts the answer; one that takes too long or ends the process is not accepted."""
        if self._process is None:
            self._connection, other = multiprocessing.Pipe()
            self._process = multiprocessing.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            self._connection.recv()
        self._connection.send((gold, answer))
        try:
            if self._connection.poll(ALONE_SECONDS):
                return self._connection.recv()
        except EOFError:
            pass
        self.close()
        return False

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection) -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    connection.send(None)
    while True:
        gold, answer = connection.recv()
        try:
            connection.send(
                bool(verify(parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$"), parse(answer)))
            )
        except Exception:
            connection.send(False)
