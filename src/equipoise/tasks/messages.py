"""Prompts as rows of data hold them: text, or chat messages with whatever keys each of them has."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Json, List

MAX_LEVELS = 64
"""Of lists and mappings within each other in a message."""

KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


def checked_prompt(value: Any) -> Any:
    """The prompt, which must be a non-empty string or a non-empty list of chat messages.

    Raises:
        ValueError: the rule that it breaks.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("the prompt must not be empty")
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("the prompt must be a string or a non-empty list of chat messages")
    for message in value:
        _check_message(message)
    return value


def _check_message(message: Any) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError('every chat message must have "role" and "content"')
    for key in ("role", "content"):
        if not isinstance(message[key], str) or not message[key].strip():
            raise ValueError(f'"{key}" of every chat message must be a non-empty string')
    for key, value in message.items():
        if not _is_storable(value):
            raise ValueError(
                f'"{key}" of a chat message must hold finite numbers of 64 bits, {MAX_LEVELS} levels at most'
            )


def _is_storable(value: Any, levels: int = MAX_LEVELS) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_storable(item, levels - 1) for item in inner)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float) or math.isfinite(value)


class MessageKinds:
    """The kind of value that each key of the messages has, learnt as they are looked at: a template expects one."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def check(self, prompt: Any) -> None:
        """Learns from a prompt that `checked_prompt` lets pass.

        Raises:
            ValueError: naming a key that was another kind of value before; None counts as a missing key.
        """
        for message in prompt if isinstance(prompt, list) else ():
            for key, value in message.items():
                if value is None:
                    continue
                kind = KINDS.get(type(value), type(value).__name__)
                before = self._seen.setdefault(key, kind)
                if kind != before:
                    raise ValueError(f'"{key}" of a chat message is {kind} here and {before} in an earlier one')


def present(value: Any) -> Any:
    """Without the keys that are None, on every level: tables of columns cannot tell a missing key from one."""
    if isinstance(value, Mapping):
        return {key: present(item) for key, item in value.items() if item is not None}
    return [present(item) for item in value] if isinstance(value, list) else value


def prompt_features(prompts: Sequence[Any]) -> Features | None:
    """The type under which messages with different keys come back as they were given; None where every type does.

    As a table's structs, every message would get the keys of all others, with None for a value.
    """
    keys = [message.keys() for prompt in prompts if isinstance(prompt, list) for message in prompt]
    if all(found == {"role", "content"} for found in keys):
        return None
    return Features({"prompt": List(Json())})


def alike(parts: Sequence[Dataset]) -> list[Dataset]:
    """Data sets that can be joined: where one has messages of several keys, all have prompts of that type."""
    open_type = Features({"prompt": List(Json())})["prompt"]
    if not any(part.features.get("prompt") == open_type for part in parts):
        return list(parts)
    return [part if part.features["prompt"] == open_type else part.cast_column("prompt", open_type) for part in parts]
