"""Prompts: templates around them, and whether two data sets share one (by content, not by name)."""

import hashlib
import logging
import unicodedata
from typing import Any

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks.datasets import shortened, with_column

logger = logging.getLogger("equipoise")

PLACEHOLDER = "{prompt}"

PROMPT_TEMPLATES = {
    "boxed": "{prompt}\n\nReason step by step, and put your final answer within \\boxed{}.",
    "answer_tags": "{prompt}\n\nReason step by step, then write the final answer alone within <answer> and </answer>.",
}
"""Templates by name, for `prompt_template`; any text with {prompt} in it is one as well."""


def prompt_template(text: str) -> str:
    """The template of that name, or the text itself when {prompt} stands in it exactly once.

    Other braces are left alone, so that LaTeX needs no escaping.

    Raises:
        InputError: neither a name nor a text with one {prompt}.
    """
    template = PROMPT_TEMPLATES.get(text, text)
    if template.count(PLACEHOLDER) != 1:
        raise InputError(
            f"prompt_template must contain {PLACEHOLDER} once, or be one of {', '.join(PROMPT_TEMPLATES)},"
            f" got {shortened(text)}"
        )
    return template


def asked_forms(template: str) -> frozenset[str]:
    """The forms of an answer, of "boxed" and "answer_tags", that a template asks for; any of them will do."""
    marks = {"boxed": "boxed", "<answer>": "answer_tags"}
    return frozenset(form for mark, form in marks.items() if mark in template)


def with_template(dataset: Dataset, template: str) -> Dataset:
    """The data set with the template around every prompt: text, or the last message of the user in a chat.

    Args:
        dataset: column "prompt".
        template: contains {prompt} once.

    Raises:
        InputError: naming the row of a chat without a message of the user.
    """
    prompts = [_templated(prompt, template, row) for row, prompt in enumerate(dataset["prompt"], start=1)]
    return with_column(dataset, "prompt", prompts)


def _templated(prompt: str | list, template: str, row: int) -> str | list:
    if isinstance(prompt, str):
        return template.replace(PLACEHOLDER, prompt)
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if last is None:
        raise InputError(f"row {row}: prompt_template needs a message of the user, got {shortened(prompt)}")
    message = {**prompt[last], "content": template.replace(PLACEHOLDER, prompt[last]["content"])}
    return [*prompt[:last], message, *prompt[last + 1 :]]


def content_key(prompt: str | list[dict[str, Any]]) -> str:
    """A digest of what a prompt asks: its text, or what the user says in a chat.

    Case, the spelling of characters (Unicode NFKC) and white space do not count; system messages do not either. Another
    instruction around the same question makes another key.
    """
    text = prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt if m["role"] == "user")
    normal = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()


def without_held_out(train: Dataset, held_out: Dataset, name: str) -> Dataset:
    """The training prompts that are not held out, compared by `content_key`; what is removed is said in one line.

    Args:
        train: column "prompt".
        held_out: column "prompt".
        name: of the training data, for messages.

    Raises:
        InputError: when every training prompt is also held out: the two are the same data.
    """
    keys = {content_key(prompt) for prompt in held_out["prompt"]}
    kept = [row for row, prompt in enumerate(train["prompt"]) if content_key(prompt) not in keys]
    if not kept:
        raise InputError(
            f"{name}: all {len(train)} training prompts are also in the held-out data; give two different sets"
        )
    if len(kept) == len(train):
        return train
    logger.warning(
        "%s: %d of %d training prompts are also in the held-out data (same text): removed from training.",
        name, len(train) - len(kept), len(train),
    )  # fmt: skip
    return train.select(kept)
