"""What others wrote, read with bounds: regular files, YAML and JSON.

Whatever a file holds, reading it takes bounded time and memory, runs nothing, and ends with plain values or in one line
that names the file, the line, the rule and the value.
"""
