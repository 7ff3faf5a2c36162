"""The report of a run in progress: a local server that reads the run folders again when they have grown."""

import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from equipoise.diagnostics.report.data import report_data
from equipoise.diagnostics.report.page import embedded, page
from equipoise.diagnostics.report.page_bounds import LONGEST_NOTE, bounded_text
from equipoise.diagnostics.run_folder import RECORDS_FOLDER
from equipoise.errors import InputError

HOST = "127.0.0.1"


class LiveData:
    """The data of a report, read again at most every `seconds`, and only when a file has changed.

    Args:
        folders: the run folders.
        title: of the page.
        seconds: between two readings.
    """

    def __init__(self, folders: list[Path], *, title: str | None, seconds: float):
        self.folders, self.title, self.seconds = folders, title, seconds
        self._lock = threading.Lock()
        self._state: Any = None
        self._read = -float("inf")
        self._data: dict[str, Any] = {}

    def current(self) -> dict[str, Any]:
        """The newest data.

        Raises:
            InputError: the first time, when a folder is no run. Later a label in the data tells what failed.
        """
        with self._lock:
            state = _state(self.folders)
            if state != self._state and time.monotonic() - self._read >= self.seconds:
                try:
                    self._data = report_data(self.folders, title=self.title)
                except Exception as error:  # a page that is open stays open, and says what happened
                    if not self._data:
                        raise
                    self._data["warnings"] = [_one_line(error)]
                self._state, self._read = state, time.monotonic()
            return self._data


def _state(folders: list[Path]) -> tuple:
    """Changes whenever a metric, an evaluation or a file of records is added."""
    watched = [p for f in folders for p in (*f.glob("*.jsonl"), *f.glob(f"{RECORDS_FOLDER}/*.parquet"))]
    sizes = []
    for path in sorted(watched):
        try:
            sizes.append((str(path), path.stat().st_size))
        except OSError:  # a resumed run removes files
            continue
    return tuple(sizes)


def _one_line(error: Exception) -> str:
    text = bounded_text(" ".join(str(error).split()), LONGEST_NOTE)
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a connection that somebody keeps open does not keep the program

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the other side gave up is no news; anything else is one line."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            print(f"equipoise: a request failed: {_one_line(error)}", file=sys.stderr)


def serve(folders: list[Path], *, title: str | None = None, port: int = 8765, seconds: float = 10.0) -> None:
    """Serve the report of runs in progress on http://127.0.0.1:port until interrupted.

    Raises:
        InputError: a folder that is no run, or a port that cannot be used.
    """
    server = live_server(folders, title=title, port=port, seconds=seconds)
    print(f"http://{HOST}:{server.server_address[1]}  (refreshes every {seconds:g} s; end with Ctrl-C)", flush=True)
    with server:
        server.serve_forever()


def live_server(folders: list[Path], *, title: str | None, port: int, seconds: float) -> ThreadingHTTPServer:
    """The server, bound to its port (0: any that is free) but not yet serving."""
    live = LiveData(folders, title=title, seconds=seconds)
    live.current()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a connection may say nothing

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):  # another site's name that was made to point here
                self.send_error(403)
            elif self.path == "/":
                self._answer(lambda: page(live.current(), refresh_seconds=seconds), "text/html")
            elif self.path.split("?")[0] == "/data.json":
                self._answer(lambda: embedded(live.current()), "application/json")
            else:
                self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, made: Callable[[], str], kind: str) -> None:
            try:
                status, body = 200, made().encode()
            except Exception as error:
                status, kind, body = 500, "text/plain", f"{_one_line(error)}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a page that refreshes would fill the terminal."""

    try:
        return _Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"port {port} cannot be used: {cause}; choose another --port") from error
