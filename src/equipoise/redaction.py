"""Keys, tokens and passwords taken out of what is written: run folders, reports, logs and messages.

A secret is told by its name (`hub_token`, `OPENAI_API_KEY`, `clientSecret`), by its form (hf_…, ghp_…, a JWT, a private
key), or by its place (user:password@ and ?token= in an address). Names of the field that only look like one are known:
`eos_token`, `max_tokens`, `metric_key`.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

REDACTED = "[redacted]"
"""What stands in the place of a secret."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ALWAYS = frozenset(
    ["secret", "password", "passwd", "passphrase", "passcode", "pwd", "credential", "apikey", "authorization", "bearer"]
)
"""Words that make any name that of a secret."""
_NOT_A_TOKEN = frozenset(
    [
        "eos", "bos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "special", "additional", "stop",
        "start", "end", "new", "old", "per", "first", "last", "next", "prev", "previous", "begin", "beginning", "think",
        "thinking", "tool", "vocab", "vocabulary", "prompt", "completion", "response", "generated", "max", "min", "num",
        "total", "input", "output", "reasoning", "assistant", "action", "record", "rollout", "of",
        "by", "boi", "eoi",
    ]
)  # fmt: skip
"""Before "token": one of a vocabulary. A name that ends in "token" after another word, or is it, is of a secret."""
_NOT_A_KEY = frozenset(
    [
        "metric", "sort", "label", "answer", "prompt", "group", "primary", "foreign", "cache", "column", "public",
        "dict", "text", "image", "video", "audio", "target", "reward", "data", "index", "dataset", "question",
        "content", "message", "role", "sample", "state", "num", "kv", "query", "registry", "host", "input", "output",
        "run",
    ]
)  # fmt: skip
"""Before "key": one of a mapping or a table. The word alone is no secret."""
_COMMIT = frozenset(["revision", "commit", "sha", "hash", "digest", "fingerprint", "checksum", "branch"])
"""Names whose 40 hexadecimal digits are a version."""
_PARAMETERS = re.compile("sig|signature|key|auth|access|code")
"""In the query of an address: secrets as well."""

_FORMS = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|(?<![\w-])sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}"  # AWS, Google
    r"|\bwandb_v1_[A-Za-z0-9_]{20,}|\bpypi-[A-Za-z0-9_-]{32,}|\bnpm_[A-Za-z0-9]{30,}|\br8_[A-Za-z0-9]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{6,}\.eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*"  # JWT
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_HEADER = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{12,}", re.IGNORECASE)
_USER_INFORMATION = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s@]+)@")
_QUERY = re.compile(r"([?&;#]([A-Za-z0-9_.%-]+)=)([^&#;\s\"'\]})>]+)")
_ASSIGNED = re.compile(
    r"""((?P<quote>["']?)\b(?P<name>[A-Za-z_][\w.-]*)(?P=quote)\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;&"'{}\[\]]+)"""
)
_QUOTED = re.compile(
    r"""((?P<quote>["'])(?P<name>[A-Za-z_][\w.-]*)(?P=quote)\s*:\s*)("[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\s,;&"'{}\[\]]+)"""
)
"""A key and its value in a mapping, as Python or JSON writes it: so they stand in messages."""
_HEXADECIMAL = re.compile(r"[0-9a-f]{40}")
_LEAST = 6
"""Characters of a text that is looked for in others: a shorter one would be found everywhere."""


def is_secret_name(name: str) -> bool:
    """Whether a value of that name is a key, a token or a password."""
    words = [word.lower() for word in _WORDS.findall(name)]
    single = [word.removesuffix("s") for word in words]  # credentials, api_keys
    if not words:
        return False
    if words == ["pass"] or not _ALWAYS.isdisjoint([*words, *single]):
        return True
    before = words[-2] if len(words) > 1 else ""
    if single[-1] == "token":
        return before not in _NOT_A_TOKEN and not (words[-1] != single[-1] and not before)
    return single[-1] == "key" and bool(before) and before not in _NOT_A_KEY


def redacted(value: Any, name: str = "") -> Any:
    """The value with `REDACTED` in the place of every secret in it; a copy where it has any parts.

    Args:
        value: plain data: texts, numbers, lists, mappings.
        name: under which it stands, such as the key of a setting.
    """
    if isinstance(value, Mapping):
        of_secret = is_secret_name(name)
        return {key: redacted(item, name if of_secret else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(redacted(item, name) for item in value)
    if _is_secret(value, name):
        return REDACTED
    if not isinstance(value, str):
        return value
    if (value.strip()[:1], value.strip()[-1:]) == ("{", "}") or name.endswith(
        ("args", "config", "env")
    ):  # a mapping, as text
        value = _ASSIGNED.sub(_without_assigned, value)
    return _without_forms(value)


def _is_secret(value: Any, name: str) -> bool:
    """Whether a value that has no parts is a secret by its name, or as a whole by its form."""
    if value is None or isinstance(value, bool) or value == "":
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    if _HEXADECIMAL.fullmatch(str(value)) and name and _COMMIT.isdisjoint(words):  # a key of wandb
        return True
    is_number = not isinstance(value, str) or _is_number(value)
    return is_secret_name(name) and not (is_number and _ALWAYS.isdisjoint(words))


def is_redacted(value: Any) -> bool:
    """Whether a secret was taken out of the value, or of a part of it."""
    if isinstance(value, Mapping):
        return any(map(is_redacted, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_redacted, value))
    return isinstance(value, str) and REDACTED in value


def redacted_words(words: list[str]) -> list[str]:
    """The words of a command line without the secrets: `--hub_token X`, `--hub_token=X`, `{token: X}` and all else."""
    name, shown = "", []
    for word in words:
        if word.startswith("--") and word[2:3].isalpha():
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-")
            shown.append(flag + equals + _redacted_word(value, name) if equals else word)
        else:
            shown.append(_redacted_word(word, name))
    return shown


def without_secrets(text: str, words: list[str] | None = None) -> str:
    """A text for people, a message or a line of a log, without what looks like a secret or is known to be one.

    Known are the values of the variables of the environment, and of the flags, whose names say so.

    Args:
        text: of any length.
        words: of the command line; None: those of this process.
    """
    for secret in sorted(_known(sys.argv[1:] if words is None else words), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _without_forms(_QUOTED.sub(_without_assigned, text))


class WithoutSecrets(logging.Formatter):
    """Lines of the log, as they may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """The line without secrets."""
        return without_secrets(super().format(record))


def log_to_stderr() -> None:
    """Warnings go to standard error, without secrets, unless logging was set up by somebody else."""
    handler = logging.StreamHandler()
    handler.setFormatter(WithoutSecrets("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _known(words: list[str]) -> set[str]:
    # PWD is the current directory.
    named = [value for name, value in os.environ.items() if is_secret_name(name) and name not in ("PWD", "OLDPWD")]
    named += [word for word, shown in zip(words, redacted_words(words), strict=True) if shown == REDACTED]
    named += [word.partition("=")[2] for word in words if redacted_words([word])[0].endswith(f"={REDACTED}")]
    return {value for value in named if len(value) >= _LEAST and not _is_number(value)}


def _redacted_word(word: str, name: str) -> str:
    value = redacted(word, name)
    return value if value == REDACTED else _ASSIGNED.sub(_without_assigned, value)


def _without_assigned(match: re.Match) -> str:
    secret = is_secret_name(match["name"]) and not _is_number(match[4])
    return match[1] + REDACTED if secret else match[0]


def _without_forms(text: str) -> str:
    text = _FORMS.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    if "://" in text:
        text = _USER_INFORMATION.sub(_without_password, text)
        text = _QUERY.sub(_without_parameter, text)
    elif "?" in text:  # of a task, a reward, a name on a hub
        text = _QUERY.sub(_without_named_parameter, text)
    return text


def _without_password(match: re.Match) -> str:
    _, colon, password = match[2].partition(":")
    if colon:
        return f"{match[1]}{REDACTED}@" if password else match[0]
    return f"{match[1]}{REDACTED}@" if match[1].lower().startswith("http") else match[0]


def _without_parameter(match: re.Match) -> str:
    words = [word.lower() for word in _WORDS.findall(unquote(match[2]))]
    secret = is_secret_name(unquote(match[2])) or any(map(_PARAMETERS.fullmatch, words[-1:]))
    return match[1] + REDACTED if secret else match[0]


def _without_named_parameter(match: re.Match) -> str:
    secret = is_secret_name(unquote(match[2])) and not _is_number(match[3])
    return match[1] + REDACTED if secret else match[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("true", "false", "null", "none")
    return True
