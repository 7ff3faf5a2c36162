"""Where the modules of the user are found, and when: only where one is imported on the user's word.

The current directory may be anybody's: a run folder from somebody else, for example. So it is not on the path of Python
while commands only read, and a file in it is not taken for an optional package that is not installed.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_kept: list[str] | None = None
"""What was added to the path for good; None where nothing is, as in a library call."""


def import_of_the_user(name: str) -> ModuleType:
    """The module of that name, which may lie in the current directory too.

    That comes last, so that a local file never hides an installed package. What the module imports later, when it is
    called, is found where the caller of this package lets Python look; a command lets it look here (`kept`).

    Raises:
        Exception: whatever the module raises while it is imported.
    """
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        if added and _kept is not None:
            _kept.append(here)
        elif added and here in sys.path:
            sys.path.remove(here)


@contextmanager
def kept() -> Iterator[None]:
    """While it lasts, the current directory stays on the path once a module of the user was imported."""
    global _kept
    before, _kept = _kept, []
    try:
        yield
    finally:
        for folder in _kept:
            if folder in sys.path:
                sys.path.remove(folder)
        _kept = before
