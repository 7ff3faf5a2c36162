"""What came of the inputs: counts by kind, and what does not hold, by its cause."""

import contextlib
import json
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.workers import WORDS_FILE, Result


@dataclass
class Counts:
    """Of one kind of input."""

    inputs: int = 0
    accepted: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """One more."""
        self.inputs += 1
        self.accepted += result.begun or result.code in (0, 1)
        self.failed += bool(result.problems)
        self.seconds += result.seconds


@dataclass
class Summary:
    """Of all inputs so far.

    Attributes:
        seed: of the inputs.
        kept: folder for what failed; the first of every cause is kept.
        counts: by kind.
        failures: by cause.
    """

    seed: int
    kept: Path
    counts: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    failures: dict[str, list[Result]] = field(default_factory=lambda: defaultdict(list))

    def add(self, result: Result, boxes: list[Path]) -> None:
        """One more input.

        Args:
            result: of it.
            boxes: folders of the workers, in one of which the input still lies.
        """
        self.counts[result.kind].add(result)
        if any(problem not in self.failures for problem in result.problems):
            self._keep(result, boxes)
        for problem in result.problems:
            self.failures[problem].append(result)

    def _keep(self, result: Result, boxes: list[Path]) -> None:
        place = self.kept / f"{result.kind}-{self.seed}-{result.number}"
        place.mkdir(parents=True, exist_ok=True)
        told = "\n".join([shlex.join(result.words), *result.problems, "", result.told])
        (place / "told.txt").write_text(told, encoding="utf-8", errors="backslashreplace")
        for box in boxes:
            with contextlib.suppress(OSError, ValueError):  # no longer there, or hardly to be copied
                if json.loads((box / WORDS_FILE).read_text()) == [result.kind, result.number, result.words]:
                    shutil.copytree(box / "work", place / "work", symlinks=True, ignore=_pipes, dirs_exist_ok=True)

    def lines(self) -> Iterator[str]:
        """The causes with one input of each, the commonest first; then the counts."""
        for problem, found in sorted(self.failures.items(), key=lambda item: -len(item[1])):
            first = min(found, key=lambda result: len(shlex.join(result.words)))
            yield f"{len(found):5} x {problem}  [{', '.join(sorted({result.kind for result in found}))}]"
            yield f"        --kind {first.kind} --seed {self.seed} --number {first.number}: {_one_line(first.words)}"
            told = [line for line in first.told.splitlines() if line.strip()] or ["nothing was printed"]
            yield f"        {told[-1][:200]}"
        yield ""
        yield f"{'kind':<15}{'inputs':>8}{'accepted':>10}{'failed':>8}{'seconds':>9}"
        for kind, count in self.counts.items():
            yield f"{kind:<15}{count.inputs:>8}{count.accepted:>10}{count.failed:>8}{count.seconds:>9.1f}"
        whole = self.counts.values()
        inputs, accepted, failed = (sum(getattr(c, x) for c in whole) for x in ("inputs", "accepted", "failed"))
        yield f"{'all':<15}{inputs:>8}{accepted:>10}{failed:>8}{sum(c.seconds for c in whole):>9.1f}"
        if self.failures:
            yield f"kept in {self.kept}"


def _one_line(words: list[str]) -> str:
    return f"equipoise {shlex.join(words)}".encode("ascii", "backslashreplace").decode()[:160].replace("\n", "\\n")


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]
