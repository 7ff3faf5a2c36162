from command_line import workplace  # noqa: F401  (fixtures)
from hostile import trace  # noqa: F401
