from command_line import workplace  # noqa: F401  (a fixture)
