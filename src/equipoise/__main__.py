"""`python -m equipoise`: the command line."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    del sys.path[0]  # what -m puts there: as for the program `equipoise`, no file in it is to be taken for a package

from equipoise.cli import main

sys.exit(main())
