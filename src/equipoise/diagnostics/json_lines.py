"""Files of JSON objects that a run adds to while it goes: one line per update or evaluation."""

import json
import math
from pathlib import Path
from typing import Any

from equipoise.files import file_at_once, writing
from equipoise.inputs.json_text import JsonError, json_value


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
        """Forget lines of later updates, and what was cut off at the end: a resumed run writes them again.

        A line in between that cannot be read stays as it is: whoever reads the file says so.
        """
        if not self.path.exists():
            return
        with writing(self.path, self.advice):
            lines = self.path.read_bytes().split(b"\n")
            updates = [_update_of(line) for line in lines]
            known = [number for number, of in enumerate(updates) if of is not None and of <= update]
            end = known[-1] + 1 if known else 0
            kept = [line for line, of in zip(lines[:end], updates, strict=False) if of is None or of <= update]
            with file_at_once(self.path) as part:
                part.write_bytes(b"".join(line + b"\n" for line in kept))


def _update_of(line: bytes) -> float | None:
    try:
        update = json_value(line)["update"]
    except (JsonError, LookupError, TypeError):
        return None
    return update if isinstance(update, int | float) else None
