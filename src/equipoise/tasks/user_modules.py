"""Where the modules of the user are found."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def modules_of_the_user() -> Iterator[None]:
    """While it lasts, modules in the current directory can be imported too.

    Last, so that a local file never hides an installed package. What such a module imports later, when it is called, is
    found where the caller of this package lets Python look: the command line adds the current directory for good.
    """
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
