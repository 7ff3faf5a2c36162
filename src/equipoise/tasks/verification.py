"""Mathematical answers judged by math-verify in workers, so that no expression can stop a run.

math-verify limits its time with signals, which exist in the main thread only and do not interrupt one long operation of
the interpreter. Here every answer comes back with an outcome: nothing becomes a 0 without a cause that is counted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from equipoise.tasks.workers.pool import MEMORY_BYTES, Answer, WorkerPool

Outcome = Literal["correct", "wrong", "unparsable", "timeout", "memory", "refused", "error", "bad_gold"]

SECONDS = 3.0  # of CPU time, for one answer
MAX_TAIL = 20_000  # characters of a completion: an answer stands at the end


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        outcome: "correct", "wrong" (both parsed, not equal), "unparsable" (no expression in the text), "timeout"
            and "memory" (beyond the limits of a worker), "refused" (it tried what a worker may not), "error"
            (math-verify or its worker failed), or "bad_gold" (the expected answer cannot be parsed).
        reason: what happened, where the outcome does not say it; the answer that cannot be parsed for "bad_gold".
    """

    outcome: Outcome
    reason: str = ""


class VerifierPool:
    """Worker processes that run math-verify; they start when there is work for them.

    Attributes:
        counts: outcome -> number of verdicts given so far.
        workers: the processes.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        seconds: float = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        wall_seconds: float | None = None,
    ) -> None:
        """No process is started yet.

        Args:
            num_workers: as `WorkerPool` takes it.
            seconds: of CPU time, for one answer, > 0.
            memory_bytes: as `WorkerPool` takes it.
            wall_seconds: as `WorkerPool` takes it.

        Raises:
            ValueError: a number out of range.
        """
        if not seconds > 0:
            raise ValueError(f"seconds must be > 0, got {seconds}")
        self.workers = WorkerPool("math", num_workers, memory_bytes=memory_bytes, wall_seconds=wall_seconds)
        self.seconds = seconds
        self.counts: Counter[str] = Counter()
        self._job = self.workers.add_job(None)

    def verdicts(
        self,
        texts: Sequence[str],
        golds: Sequence[Sequence[str]],
        *,
        done: Callable[[], object] = lambda: None,
    ) -> list[Verdict]:
        """One verdict per text, in order.

        Args:
            texts: completions, of which the last 20,000 characters count.
            golds: for each text the expected answers, any of which is right; LaTeX with or without delimiters.
            done: called once for every verdict: for progress bars.
        """

        def count(answer: Answer) -> None:
            self.counts[_verdict(answer).outcome] += 1
            done()

        payloads = [(text[-MAX_TAIL:], list(answers)) for text, answers in zip(texts, golds, strict=True)]
        return [_verdict(a) for a in self.workers.answers(self._job, payloads, seconds=self.seconds, done=count)]

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        self.workers.close()


def _verdict(answer: Answer) -> Verdict:
    return Verdict(*answer.value) if answer.outcome == "done" else Verdict(answer.outcome, answer.reason)


_shared: VerifierPool | None = None


def shared_pool() -> VerifierPool:
    """The pool that the reward "math" uses, made at the first call."""
    global _shared
    if _shared is None:
        _shared = VerifierPool()
    return _shared
