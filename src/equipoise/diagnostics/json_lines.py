"""Files of JSON objects that a run adds to while it goes: one line per update or evaluation."""

import json
import math
from pathlib import Path
from typing import Any

from equipoise.files import write_at_once, writing


class JsonLines:
    """A file of JSON objects with an "update": a line is added whole, and a resumed run drops those it writes again.

    A line is handed to the operating system when `append` returns, not forced onto the disk: a loss of power may cost
    the last ones. What an interruption cut off is dropped with the lines that come after the checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path
        self.advice = f"; once that is mended, continue with --resume {path.parent}"

    def append(self, record: dict[str, Any]) -> None:
        """Write one line; NaN and infinities, which JSON does not have, become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with writing(self.path, self.advice), self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")

    def drop_after(self, update: int) -> None:
        """Forget lines of later updates, and one that was cut off: a resumed run writes them again."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _update_of(line) <= update]
        with writing(self.path, self.advice):
            write_at_once(self.path, "".join(line + "\n" for line in kept))


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except json.JSONDecodeError:
        return math.inf
