"""The kind "chat_template": templates of models, which are programs of whoever wrote them, rendered within limits.

transformers compiles and renders them, as it does in the trainer.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MOST_CHARACTERS = 10_000_000
"""Of a prompt: several times what the longest context of a model holds."""


def warm() -> None:
    """Imports what renders templates. Errors keep the traceback they have: to rewrite it, jinja makes code objects."""
    import jinja2.debug
    from transformers.utils import chat_template_utils  # noqa: F401

    setattr(jinja2.debug, "rewrite_traceback_stack", lambda source=None: sys.exc_info()[1])  # noqa: B010


def modules_with_eval() -> list[ModuleType]:
    """None."""
    return []


def prepared(arguments: tuple[str, dict[str, Any]]) -> Callable[[list[list[dict]]], list]:
    """The renderer of a template.

    Args:
        arguments: the template, and what it is told beside the messages. It is compiled at the first prompt, within the
            limits: constants are folded then.

    Returns:
        A function of prompts, as lists of messages, to what is wrong with each: None; ["left_out", index of the first
        message whose content changes nothing], or ["size", characters].
    """
    template, told = arguments

    def render(messages: list[dict]) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        rendered = render_jinja_template([present], chat_template=template, add_generation_prompt=True, **told)
        return rendered[0][0]

    def judged(messages: list[dict]) -> Any:
        whole = render(messages)
        if len(whole) > MOST_CHARACTERS:
            return ["size", len(whole)]
        index = left_out(render, messages, whole)
        return None if index is None else ["left_out", index]

    return lambda prompts: [judged(messages) for messages in prompts]


def left_out(render: Callable[[list[dict]], str], messages: list[dict], whole: str) -> int | None:
    """The first message whose content changes nothing of what the template makes of all; None when all count.

    Templates trim and rewrite content, so that looking for it in the result would not do.
    """
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) and content.strip():
            other: Any = content + "\n#other#"
        elif isinstance(content, list) and content:
            other = [*content, {"type": "text", "text": "#other#"}]
        else:
            continue
        if render([*messages[:index], {**message, "content": other}, *messages[index + 1 :]]) == whole:
            return index
    return None
