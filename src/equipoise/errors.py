"""The one exception that the command line turns into a single line and exit code 2."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the file, row, key or flag, the rule and the value.

    A `ValueError`, so that Python callers need to know nothing of this class.
    """
