"""Prompts as token ids, as training forms them: text as it is, chat messages through the model's chat template.

A chat template is a program of whoever made the model: it is tried in a worker with limits of time and memory before
it is run here.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from equipoise.errors import InputError
from equipoise.tasks.datasets import one_line, shortened
from equipoise.tasks.workers.pool import Answer, WorkerPool

logger = logging.getLogger("equipoise")

SECONDS = 10.0
"""Of CPU time for what the template makes of one prompt; a usual one takes less than a millisecond."""

AT_ONCE = 64
"""Prompts in one request to a worker, so that the way there and back costs little."""

MOST_CHECKED = 10_000

Result = TypeVar("Result")


def encoded_prompts(
    tokenizer: Any,
    prompts: Sequence[str | list],
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """Token ids of prompts, as training forms them.

    Args:
        tokenizer: of the model.
        prompts: each is text or chat messages.
        template_kwargs: what the template is told beside the messages, as `chat_template_kwargs` of a run.
        model: its name, for messages.
        rows: what number each prompt has in the data, for messages; None: from 1.

    Raises:
        InputError: naming the row, for chat messages without a template, a template that does not end, takes
            too much memory or writes too much, text that the tokenizer cannot encode, and a message that the template
            leaves out: its role is one that the template does not know.
    """
    told = dict(template_kwargs or {})
    try:
        numbered = list(zip(rows or range(1, len(prompts) + 1), prompts, strict=True))
        _check_templates(tokenizer, numbered, told)
        return [_ids(tokenizer, prompt, row, told) for row, prompt in numbered]
    except InputError as error:
        raise (error if model is None else InputError(f"model {model}, {error}")) from error


def check_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: str, template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Refuse, before training, prompts that `encoded_prompts` refuses for the model (the first 10,000 are tried)."""
    prompts = dataset.select(range(min(len(dataset), MOST_CHECKED)))["prompt"][:]
    tell_untold(prompts, template_kwargs)
    encoded_prompts(tokenizer, prompts, template_kwargs, model=model)


def tell_untold(prompts: Sequence[str | list], template_kwargs: Mapping[str, Any] | None) -> None:
    """Warn of words to the chat template that it never hears, as no prompt goes through it."""
    if template_kwargs and all(isinstance(prompt, str) for prompt in prompts):
        logger.warning("chat_template_kwargs has no effect: the prompts are text, no chat messages (chat, --chat).")


def _ids(tokenizer: Any, prompt: str | list, row: int, told: Mapping[str, Any]) -> list[int]:
    def encode() -> list[int]:
        if isinstance(prompt, str):
            return list(tokenizer(prompt)["input_ids"])
        encoded = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **told
        )
        return list(encoded["input_ids"])

    try:
        return encode()
    except Exception as error:  # tokenizers and templates raise plain exceptions
        raise InputError(_cannot_be_encoded(prompt, row, one_line(error))) from error


def _cannot_be_encoded(prompt: str | list, row: int, cause: str) -> str:
    return f"row {row}: the prompt {shortened(prompt)} cannot be encoded ({cause})"


def _check_templates(tokenizer: Any, numbered: list[tuple[int, Any]], told: Mapping[str, Any]) -> None:
    """Refuses what the template, within limits, makes of the prompts that are messages."""
    chats = [(row, prompt) for row, prompt in numbered if not isinstance(prompt, str)]
    if not chats:
        return
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"row {chats[0][0]}: the prompt is a list of chat messages, but the tokenizer has no chat template"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none is the default
        raise InputError(f"row {chats[0][0]}: the chat template cannot be chosen ({one_line(error)})") from error
    chats = [(row, _plain(prompt)) for row, prompt in chats]
    told = _plain({**tokenizer.special_tokens_map, **told})
    tried = {row: _digest(template, told, prompt) for row, prompt in chats}
    chats = [(row, prompt) for row, prompt in chats if tried[row] not in _FOUND_GOOD]
    if not chats:
        return
    pool = WorkerPool("chat_template", seconds=SECONDS)
    try:
        _judge(chats, functools.partial(pool.answers, pool.add_job((template, told))))
    finally:
        pool.close()
    _FOUND_GOOD.update(tried.values())


_FOUND_GOOD: set[bytes] = set()
"""Digests of what was tried: the evaluations of a run take the same prompts again and again."""


def _plain(value: Any) -> Any:
    """As a template sees it: transformers puts such a placeholder where a value is no JSON, as a date."""
    return json.loads(json.dumps(value, default=lambda other: f"<{type(other).__name__}>"))


def _digest(template: str, told: Mapping[str, Any], prompt: list) -> bytes:
    return hashlib.sha256(json.dumps([template, told, prompt]).encode("utf-8", "surrogatepass")).digest()


Ask = Callable[[list[list[list[dict]]]], list[Answer]]


def _judge(chats: list[tuple[int, Any]], ask: Ask) -> None:
    parts = [chats[begin : begin + AT_ONCE] for begin in range(0, len(chats), AT_ONCE)]
    for part, answer in zip(parts, ask([[prompt for _, prompt in part] for part in parts]), strict=True):
        if answer.outcome != "done":  # of which of them, only each alone tells
            _judge_alone(part, ask)
            continue
        for (row, prompt), found in zip(part, answer.value, strict=True):
            if found is not None:
                raise InputError(_refusal(prompt, row, *found))


def _judge_alone(part: list[tuple[int, Any]], ask: Ask) -> None:
    for row, prompt in part:
        (answer,) = ask([[prompt]])
        if answer.outcome == "timeout":
            raise InputError(f"row {row}: the chat template did not end within {SECONDS:g} s")
        if answer.outcome == "memory":
            raise InputError(f"row {row}: the chat template needs more memory than it may have")
        if answer.outcome == "refused":
            raise InputError(f"row {row}: the chat template tried what it may not do ({answer.reason})")
        if answer.outcome == "error":
            raise InputError(_cannot_be_encoded(prompt, row, answer.reason))
        if answer.value[0] is not None:
            raise InputError(_refusal(prompt, row, *answer.value[0]))


def _refusal(prompt: list[dict], row: int, what: str, number: int) -> str:
    if what == "size":
        return f"row {row}: the chat template makes {number:,} characters of the prompt {shortened(prompt)}"
    message = prompt[number]
    return (
        f"row {row}: the chat template leaves out the message of the role {message.get('role')!r}, got"
        f" {shortened(message.get('content'))}; use a role that it knows, such as 'user'"
    )
