"""A prompt and a completion as one reads them at a glance: the question and the answer, without the chat template.

What a template writes around the messages differs from model to model, but it is special tokens and names of roles:
<|im_start|>user (ChatML, Qwen, SmolLM2), <|start_header_id|>user<|end_header_id|> (Llama 3), <|user|> (Phi, Zephyr),
<start_of_turn>user (Gemma), [INST] (Mistral). Text without any of them is left as it is.
"""

import re
from collections.abc import Iterable

ROLES = {"system", "developer", "user", "human", "assistant", "model", "gpt", "tool", "ipython", "observation"}
ASKED_BY = {"user", "human"}

_MARKER = re.compile(
    r"<[|｜][^<>\n]{1,64}?[|｜]>|</?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|endoftext)>|\[/?INST\]"
)
_ROLE_LINE = re.compile(rf"\s*({'|'.join(sorted(ROLES))})[ \t]*(?:\r?\n|$)")


def question_of(prompt: str) -> str:
    """The last message of the user in what a chat template made, else its last message of all; plain text as it is.

    Args:
        prompt: as the model was given it, special tokens included.
    """
    turns = _turns(prompt)
    asked = [text for role, text in turns if role in ASKED_BY]
    others = [text for role, text in turns if role not in ("system", "developer")]
    return " ".join((asked or others or [text for _, text in turns] or [""])[-1].split())


def answer_of(texts: Iterable[str]) -> str:
    """A completion without its special tokens, on one line.

    Args:
        texts: of its tokens, in order; those of a vocabulary of words, none of which holds a space, are set apart.
    """
    kept = [text for text in texts if not _MARKER.fullmatch(text.strip())]
    apart = len(kept) > 1 and not any(char.isspace() for text in kept for char in text)
    return " ".join(_MARKER.sub(" ", (" " if apart else "").join(kept)).split())


def ending(text: str, most: int) -> str:
    """Its last characters, where it has more than so many: what is asked stands at the end."""
    return text if len(text) <= most else "…" + text[1 - most :]


def beginning(text: str, most: int) -> str:
    """Its first characters, where it has more than so many."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _turns(prompt: str) -> list[tuple[str | None, str]]:
    """Role and text of every message that is not empty; None where nothing says whose it is."""
    turns: list[tuple[str | None, str]] = []
    role, begin = None, 0
    places = [(match.start(), match.end(), match.group()) for match in _MARKER.finditer(prompt)]
    for start, end, marker in [*places, (len(prompt), len(prompt), "")]:
        text = prompt[begin:start]
        if places and (line := _ROLE_LINE.match(text)):
            role, text = line.group(1), text[line.end() :]
        if text.strip():
            turns.append((role, text.strip()))
        begin, role = end, _role_after(marker, role)
    return turns


def _role_after(marker: str, role: str | None) -> str | None:
    """Whose text a marker begins: one that is itself a role says so, and others leave it to the line after them."""
    name = marker.strip("<|｜>[]").lower()
    if name == "inst":
        return "user"
    if name in ROLES:
        return name
    return role if "header" in name else None
