"""What a worker may not do once its imports are done: write, open connections, start processes and threads.

Two walls that know nothing of each other. The interpreter's audit hook (PEP 578) stands on every system and refuses
every audited event that computing does not need. On Linux the kernel refuses as well (`seccomp`), whatever the
interpreter was talked into. Neither can be taken down again.
"""

import contextlib
import importlib.machinery
import os
import sys
import threading
from collections.abc import Callable, Iterator

from equipoise.tasks.workers import limits, seccomp

# Events of the interpreter while it computes and imports (numpy sets variables of its own process). The list is of
# what is harmless, so that a new event is not.
_HARMLESS = frozenset(
    [
        "array.__new__", "builtins.id", "compile", "cpython._PySys_ClearAuditHooks", "exec", "import", "marshal.load",
        "marshal.loads", "object.__delattr__", "object.__getattr__", "object.__setattr__", "sys._getframe",
        "os.putenv", "os.unsetenv", "sys._getframemodulename", "sys.excepthook", "sys.unraisablehook",
    ]
)  # fmt: skip
_READING = frozenset(["open", "os.listdir", "os.scandir"])
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CODE = tuple(importlib.machinery.all_suffixes())
_SYSTEM = ("/usr/lib", "/usr/share/zoneinfo", "/etc/localtime", "/dev/urandom")


class RefusedError(PermissionError):
    """Raised in the code that tried what it may not."""


class Confinement:
    """The rights of this process.

    Attributes:
        refusals: what was tried in vain during the present answer.
        was_needed: whether any of it ran against a wall, and was not refused already as a text.
    """

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.was_needed = False
        self._trusted = True

    def begin(self) -> list[str]:
        """From here on, and for good. Returns the names of the walls that stand: "audit", and "seccomp" on Linux."""
        import _thread

        walls = ["seccomp"] if seccomp.forbid_all_but_computing() else []
        limits.forbid_growing_files()
        for module, name in ((_thread, "start_new_thread"), (threading, "_start_new_thread")):
            setattr(module, name, self._no_thread)  # audited from Python 3.12 on only
        sys.addaudithook(self._hook())
        self._trusted = False
        return ["audit", *walls]

    @contextlib.contextmanager
    def trusted(self) -> Iterator[None]:
        """While a request of the trainer is read, or a scorer built: files may be read from anywhere."""
        self._trusted = True
        try:
            yield
        finally:
            self._trusted = False

    def forget(self) -> None:
        """Before the next answer."""
        self.refusals.clear()
        self.was_needed = False

    def refusal(self, what: str) -> RefusedError:
        """The error to raise for a text that may not be evaluated; noted as well, since scorers swallow errors."""
        self.refusals.append(what)
        return RefusedError(f"{what} is not allowed here")

    def _breach(self, what: str) -> RefusedError:
        self.was_needed = True
        return self.refusal(what)

    def _no_thread(self, *arguments: object, **settings: object) -> None:
        raise self._breach("starting a thread")

    def _hook(self) -> Callable[[str, tuple], None]:
        roots = _roots()

        def refused(event: str, arguments: tuple) -> None:
            if event in _HARMLESS:
                return
            if event in _READING and not _writes(event, arguments):
                if self._trusted or _is_of_the_installation(arguments[0], roots):
                    return
            elif self._trusted and not event.startswith(("os.", "open", "socket.", "subprocess.")):
                return
            raise self._breach(f"{event} {str(arguments[0])[:80]!r}" if arguments else event)

        return refused


def _writes(event: str, arguments: tuple) -> bool:
    if event != "open":
        return False
    _, mode, flags = arguments
    return bool((flags or 0) & _WRITING_FLAGS) or any(letter in (mode or "r") for letter in "wax+")


def _roots() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Folders of which everything may be read, and those on sys.path, of which code may be."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *_SYSTEM}
    return _folders(prefixes), _folders({entry for entry in sys.path if entry})


def _folders(names: set[str]) -> tuple[str, ...]:
    return tuple(path.rstrip(os.sep) for name in names for path in {os.path.abspath(name), os.path.realpath(name)})


def _is_of_the_installation(path: object, roots: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return False  # a number: a pipe that is already open
    name = os.path.normpath(os.path.join(os.getcwd(), os.fspath(path)))
    inside = [any(name == root or name.startswith(root + os.sep) for root in folders) for folders in roots]
    return inside[0] or (inside[1] and (name.endswith(_CODE) or os.path.isdir(name)))
