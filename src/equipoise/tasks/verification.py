"""Mathematical answers judged by math-verify in workers, so that no expression can stop a run.

math-verify limits its time with signals, which exist in the main thread only and do not interrupt one long operation of
the interpreter. Here every answer comes back with an outcome: nothing becomes a 0 without a cause that is counted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.tasks.workers.pool import Answer, WorkerPool

Outcome = Literal["correct", "wrong", "unparsable", "timeout", "memory", "refused", "error", "bad_gold"]

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


class VerifierPool(WorkerPool):
    """Worker processes that run math-verify; they start when there is work for them.

    Attributes:
        counts: outcome -> number of verdicts given so far.
    """

    def __init__(self, num_workers: int | None = None, **limits: Any) -> None:
        """No process is started yet.

        Args:
            num_workers: as `WorkerPool` takes it.
            limits: "seconds", "memory_bytes" and "wall_seconds", as `WorkerPool` takes them.

        Raises:
            ValueError: a number out of range.
        """
        super().__init__("math", num_workers, **limits)
        self.counts: Counter[str] = Counter()
        self._job = self.add_job(None)

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
        return [_verdict(answer) for answer in self.answers(self._job, payloads, done=count)]


def _verdict(answer: Answer) -> Verdict:
    return Verdict(*answer.value) if answer.outcome == "done" else Verdict(answer.outcome, answer.reason)


_shared: VerifierPool | None = None


def shared_pool() -> VerifierPool:
    """The pool that the reward "math" uses, made at the first call."""
    global _shared
    if _shared is None:
        _shared = VerifierPool()
    return _shared
