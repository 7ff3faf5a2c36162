"""Whose run folder this is, and the code that its configuration names.

A configuration may name code: a reward "module:function", an environment, the code of a model. It is run where the
user has given it, or has begun the run. The owner of the files does not tell that: an unpacked archive belongs to
whoever unpacked it. So a run is signed when it begins, with a key that only this user of this machine has: an HMAC
over its config.yaml as it is written, whatever the folder is called. A folder that is moved stays the user's; one whose
configuration was changed does not, and a run that was begun before runs were signed is nobody's.

A signature speaks for config.yaml alone. Code that lies in the folder itself, such as that of a model, is run only
where the user names the folder (`--trust`).
"""

import hashlib
import hmac
import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from equipoise.diagnostics.run_folder import CONFIG_FILE, SIGNATURE_FILE
from equipoise.errors import InputError, shortened
from equipoise.files import write_at_once
from equipoise.inputs.regular_files import file_bytes
from equipoise.inputs.yaml_text import MOST_BYTES
from equipoise.paths import same_place

logger = logging.getLogger("equipoise")

KEY_BYTES = 32
MOST_SIGNATURE_BYTES = 1024
_MEANING = b"equipoise: configuration of a run\0"


class UntrustedError(InputError):
    """A run folder names code, and nobody has said that it may be run."""


def named_code(keys: Mapping[str, Any]) -> list[str]:
    """What would be run of the code that the keys of a run name, as messages show it; none where they name none."""
    found = [f"reward {shortened(name)}" for name in _own_rewards(keys.get("reward"))]
    if keys.get("environment"):
        found.append(f"environment {shortened(keys['environment'])}")
    found += [f"game files in {shortened(folder)}" for folder in _game_folders(keys)]
    return found + [f"model code ({what})" for what in _model_code(keys)]


def _own_rewards(reward: Any) -> list[str]:
    from equipoise.tasks.rewards import BUILT_IN
    from equipoise.tasks.terms import parsed_terms

    if not isinstance(reward, str):
        return []
    names = [term.name for term in parsed_terms(reward, "reward")]
    return [name for name in names if name not in BUILT_IN and ":" in name]


def _game_folders(keys: Mapping[str, Any]) -> list[str]:
    from equipoise.tasks.terms import parsed_terms

    tasks = [keys[key] for key in ("task", "eval_task") if isinstance(keys.get(key), str)]
    terms = [term for task in tasks for term in parsed_terms(task, "task")]
    return [str(t.parameters["folder"]) for t in terms if t.name == "textworld" and t.parameters.get("folder")]


FROM_HUB = ("attn_implementation", "experts_implementation")
"""What may be a kernel "owner/name" of the hub; for each part of a model too, in a mapping."""

IMPORTING = ("trust_remote_code", "use_kernels", "allow_all_kernels", "custom_generate")
"""What imports code where it is set at all."""


def _model_code(value: Any, name: str = "") -> list[str]:
    """Settings of transformers that let it import what a model folder or a repository of the hub holds."""
    if isinstance(value, str) and name.endswith("_kwargs"):  # a mapping as text
        return (
            [name] if any(word in value for word in ("trust_remote_code", "attn_impl", "kernel", "custom_gen")) else []
        )
    if name in IMPORTING:
        return [f"{name}: {shortened(value)}"] if value else []
    if name in FROM_HUB:
        return [f"{name}: {shortened(value)}"] if "/" in str(value) else []
    return [found for key, item in _items(value, name) for found in _model_code(item, key)]


def kernels_of_hub(value: Any, name: str = "") -> list[str]:
    """What of a model's own configuration names kernels of the hub, as messages show it."""
    if name.removeprefix("_") in FROM_HUB:
        return [f"{name}: {shortened(value)}"] if "/" in str(value) else []
    return [found for key, item in _items(value, name) for found in kernels_of_hub(item, key)]


def _items(value: Any, name: str) -> list[tuple[str, Any]]:
    """What is in a mapping by its key, in a list by the name of the list."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    return [(name, item) for item in value] if isinstance(value, list) else []


def require_trust(
    folder: Path, code: Sequence[str], *, given: Sequence[str] = (), trusted: Sequence[Path] = ()
) -> None:
    """Refuses to run what a run folder names, where the user has not given it and it is not the user's own run.

    Args:
        folder: of the run.
        code: as `named_code` tells it.
        given: that of it which the user has named.
        trusted: folders whose code the user has allowed to run.

    Raises:
        UntrustedError: what would be run, and how to allow it.
    """
    foreign = [what for what in code if what not in given]
    if foreign and not is_named(folder, trusted) and not is_own(folder):
        raise UntrustedError(
            f"{folder} was not begun by you on this machine, or its {CONFIG_FILE} was changed since, and it names code "
            f"that would be run: {', '.join(foreign)}; once you have looked at that, allow it with --trust {folder}"
        )


def is_named(folder: Path, trusted: Sequence[Path]) -> bool:
    """Whether it is one of these folders, by whatever path."""
    return any(same_place(other, folder) for other in trusted)


def is_own(folder: Path) -> bool:
    """Whether this user began the run on this machine, and its configuration is still the one it began with."""
    try:
        signature = file_bytes(folder / SIGNATURE_FILE, "", MOST_SIGNATURE_BYTES).strip()
        key, configuration = _key(), file_bytes(folder / CONFIG_FILE, "", MOST_BYTES)
    except InputError:
        return False
    return key is not None and hmac.compare_digest(signature, _signature(key, configuration).encode())


def sign(folder: Path, configuration: str) -> None:
    """Say that this user began the run with this text of config.yaml; where there can be no key, nothing is said.

    Raises:
        OSError: the run folder cannot be written.
    """
    try:
        key = _key() or _new_key()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logger.info("%s is not signed: %s", folder, error)
        return
    write_at_once(folder / SIGNATURE_FILE, _signature(key, configuration.encode("utf-8")) + "\n")


def _signature(key: bytes, configuration: bytes) -> str:
    # What only the writing of a system changes in it, the ends of its lines, changes no value.
    return hmac.new(key, _MEANING + configuration.replace(b"\r\n", b"\n"), hashlib.sha256).hexdigest()


def _key_file() -> Path:
    """Of this user, in the folder for what programs keep."""
    if os.name == "nt":
        place = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif Path(os.environ.get("XDG_STATE_HOME", "")).is_absolute():
        place = os.environ["XDG_STATE_HOME"]
    else:
        place = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
    return Path(place) / "equipoise" / "run-key"


def _key() -> bytes | None:
    """The key of this user; None where there is none that is whole."""
    with suppress(OSError, RuntimeError):
        key = _key_file().read_bytes()
        return key if len(key) == KEY_BYTES else None
    return None


def _new_key() -> bytes:
    """A key that is on disk; that of another process, where one was faster.

    Raises:
        OSError: it cannot be written.
        RuntimeError: there is no home.
    """
    path = _key_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        _put_first(part, path)
    finally:
        part.unlink(missing_ok=True)
    key = _key()
    if key is None:
        raise OSError(f"{path} cannot be read")
    return key


def _put_first(part: Path, path: Path) -> None:
    """Give the new key its name, unless there is a whole one by now."""
    if path.exists() and _key() is None:
        path.unlink()  # a damaged one
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if _key() is None:
            os.replace(part, path)
