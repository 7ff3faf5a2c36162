r"""Balanced pieces of LaTeX: groups, arguments of commands, and what stands outside of all brackets."""

import re
from collections.abc import Iterator

_OPENING, _CLOSING = "([{", ")]}"
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{[A-Za-z]+\*?\}")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)


def depth(text: str) -> int:
    """The deepest nesting of brackets."""
    level = deepest = 0
    for character in text:
        if character in _OPENING:
            level += 1
            deepest = max(deepest, level)
        elif character in _CLOSING:
            level = max(0, level - 1)
    return deepest


def group_end(text: str, start: int) -> int:
    """The index after the brace that closes the one at `start`; -1 where none does."""
    level, index = 0, start
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        level += (text[index] == "{") - (text[index] == "}")
        index += 1
        if level == 0:
            return index
    return -1


def argument(text: str, start: int) -> tuple[str, int] | None:
    r"""The argument of a command that begins at or after `start`, without its braces, and the index after it.

    As TeX reads it: a group, one command, or one character. None where there is none.
    """
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return None
    if text[start] == "{":
        end = group_end(text, start)
        return None if end < 0 else (text[start + 1 : end - 1], end)
    if text[start] == "\\":
        match = _COMMAND.match(text, start)
        return None if match is None else (match[0], match.end())
    return text[start], start + 1


def replaced_commands(text: str, names: str, count: int, form) -> str:
    r"""The text in which `\name` and its `count` arguments are replaced by form(name, *arguments), innermost last.

    Args:
        text: LaTeX.
        names: a regular expression for the names, without backslash.
        count: of arguments.
        form: what stands there instead.
    """
    pattern = re.compile(rf"\\({names})(?![A-Za-z])")
    done = 0
    while match := pattern.search(text, done):
        arguments, end = [], match.end()
        while len(arguments) < count:
            found = argument(text, end)
            if found is None:
                return text
            arguments.append(found[0])
            end = found[1]
        made = form(match[1], *arguments)
        text = text[: match.start()] + made + text[end:]
        # What was made is not searched for itself, but its arguments are.
        done = match.start() + (1 if made.startswith("\\") else 0)
    return text


def tokens(text: str) -> Iterator[tuple[str, int, int]]:
    r"""(token, index, level) for every character or command; the level is that outside of the token's own bracket.

    Brackets of any kind open and close, so that half-open intervals balance; so do environments and \{ \}.
    """
    index = level = 0
    while index < len(text):
        environment = _ENVIRONMENT.match(text, index)
        if environment:
            level -= environment[1] == "end"
            yield environment[0], index, level
            level += environment[1] == "begin"
            index = environment.end()
            continue
        match = _COMMAND.match(text, index) if text[index] == "\\" else None
        token = match[0] if match else text[index]
        closes = token in _CLOSING or token in (r"\}", r"\rangle", r"\rfloor", r"\rceil")
        opens = token in _OPENING or token in (r"\{", r"\langle", r"\lfloor", r"\lceil")
        level -= closes
        yield token, index, level
        level += opens
        index += len(token)


def balanced(text: str) -> bool:
    """Whether every bracket is closed, and none closes that was not opened."""
    levels = [0] + [level for _, _, level in tokens(text)]
    if min(levels) < 0:
        return False
    opened = sum(text.count(c) for c in _OPENING) - sum(text.count(c) for c in _CLOSING)
    return opened == 0


def split(text: str, separators: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    """The pieces between separators outside of all brackets, each as (separator before it, piece)."""
    pieces, before, start = [], "", 0
    for token, index, level in tokens(text):
        if level == 0 and token in separators:
            pieces.append((before, text[start:index].strip()))
            before, start = token, index + len(token)
    return [*pieces, (before, text[start:].strip())]


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) where one pair of brackets encloses the whole text, else None."""
    found = list(tokens(text))
    if len(found) < 2 or found[0][0] not in ("(", "[", "{", r"\{", r"\langle"):
        return None
    if found[-1][0] not in (")", "]", "}", r"\}", r"\rangle") or found[-1][2] != 0:
        return None
    if any(level <= 0 for _, _, level in found[1:-1]):
        return None
    return found[0][0], text[len(found[0][0]) : found[-1][1]].strip(), found[-1][0]
