"""The option that lets the code of a run folder from somebody else be run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from equipoise.diagnostics.run_folder import is_run_folder
from equipoise.diagnostics.trust import is_named
from equipoise.errors import InputError
from equipoise.trl.run import run_settings


@dataclass(frozen=True)
class TrustOptions:
    """Run folders from somebody else."""

    trust: Annotated[tuple[Path, ...] | None, arg(metavar="RUN …")] = field(
        default=None,
        metadata={
            "help": "Run the code (reward, environment, model) that this run folder names, though not begun here."
        },
    )

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders whose code may be run."""
        return self.trust or ()

    def check(self, given: Iterable[str | Path]) -> None:
        """Refuses a folder that the command is not about.

        Raises:
            InputError: naming it.
        """
        runs = [Path(name) for name in given if is_run_folder(name)]
        for folder in self.folders:
            if not is_named(folder, runs):
                raise InputError(f"--trust {folder} is none of the run folders that were given")

    def model_code(self, name: str) -> bool:
        """Whether the code of a run's model is run: its own key says so, and the user has named the folder."""
        if not is_run_folder(name) or not is_named(Path(name), self.folders):
            return False
        return bool(run_settings(Path(name)).get("trust_remote_code"))
