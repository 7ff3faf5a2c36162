"""`equipoise compare`: a study's file, its runs, its results and figures, and the command."""
