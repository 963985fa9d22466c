"""The health endpoint of a run: `/live`, `/ready`, `/health` and `/metrics` over HTTP, answered in threads.

Threads answer, so that a process whose event loop is stuck can still say so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from leveret.app.board import Board

__all__ = ["Endpoint", "parsed_address"]

logger = logging.getLogger("leveret.app")

#: Seconds that a client may take to send its request, and to read the answer.
_PATIENCE: Final = 5.0
#: Seconds for a whole request, however many small pieces it comes in.
_LONGEST: Final = 10.0
#: Requests that are answered at once; a further connection is closed.
_MOST_REQUESTS: Final = 16
#: Seconds between two attempts to listen on a port that is in use.
_RETRY: Final = 2.0


def parsed_address(text: str) -> tuple[str, int]:
    """Reads `HOST:PORT`, `[IPv6]:PORT` or `:PORT`, which means all addresses.

    Raises:
        ConfigurationError: It is something else.
    """
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})", text)
    if found is None or int(found[3]) > 65_535:
        raise ConfigurationError(f"the health address is HOST:PORT, not {text!r}", option="health")
    return found[1] or found[2] or "0.0.0.0", int(found[3])  # noqa: S104 - what the user asked for


class Endpoint:
    """Serves the board of a run, from a thread, for as long as the context lasts.

    A port that is in use is tried again, every two seconds, and disturbs nothing; the log says so once.

    Args:
        address: `HOST:PORT`. Port 0 takes a free one.
        board: What is served.
        render: Writes the board's metrics: content type and body. None answers `/metrics` with 501.

    Attributes:
        url: Where it is served, once it is; empty before.

    Raises:
        ConfigurationError: The address is wrong.
    """

    def __init__(self, address: str, board: Board, render: Callable[[Board], tuple[str, bytes]] | None) -> None:
        self.url = ""
        self._host, self._port = parsed_address(address)
        self._pages = _Pages(board, render)
        self._stop = threading.Event()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._serve, name="leveret health endpoint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
        self._thread.join(_PATIENCE)

    def _serve(self) -> None:
        server = self._listen()
        if server is None:
            return
        self._server = server
        host, port = server.server_address[:2]
        self.url = f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"
        logger.info("health and metrics: %s/live, /ready, /health, /metrics", self.url)
        with server:
            while not self._stop.is_set():
                server.serve_forever(poll_interval=0.2)

    def _listen(self) -> _Server | None:
        said = False
        while not self._stop.is_set():
            try:
                return _Server(self._host, self._port, self._pages)
            except OSError as error:
                if not said:
                    said = True
                    logger.error(
                        "health cannot be served on %s:%d, which is tried again every %g s: %s",
                        *(self._host, self._port, _RETRY, error.strerror or error),
                    )
            self._stop.wait(_RETRY)
        return None


class _Pages:
    """What each path answers with: status, content type and body."""

    def __init__(self, board: Board, render: Callable[[Board], tuple[str, bytes]] | None) -> None:
        self._board = board
        self._render = render
        self._failed = False
        self.paths: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/live": self._live,
            "/ready": self._ready,
            "/health": self._health,
            "/metrics": self._metrics,
        }

    def answer(self, path: str) -> tuple[int, str, bytes]:
        page = self.paths.get(path.partition("?")[0].rstrip("/"))
        if page is None:
            return _text(404, f"this serves {', '.join(self.paths)}")
        try:
            return page()
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("the health endpoint could not answer %s (logged once)", path.partition("?")[0])
            return _text(500, "it could not be answered; the log has the error")

    def _live(self) -> tuple[int, str, bytes]:
        standing = self._board.standing()
        return _json(200 if standing.live else 503, {"live": standing.live, "reasons": standing.reasons})

    def _ready(self) -> tuple[int, str, bytes]:
        standing = self._board.standing()
        return _json(200 if standing.ready else 503, {"ready": standing.ready, "reasons": standing.reasons})

    def _health(self) -> tuple[int, str, bytes]:
        found = self._board.as_dict()
        return _json(200 if found["ready"] else 503, found)

    def _metrics(self) -> tuple[int, str, bytes]:
        if self._render is None:
            return _text(501, "no installed plugin writes metrics for HTTP; pip install leveret-prometheus brings one")
        return 200, *self._render(self._board)


def _text(status: int, text: str) -> tuple[int, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


def _json(status: int, value: Any) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode() + b"\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, pages: _Pages) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__((host, port), _Request)

    def server_bind(self) -> None:
        # HTTPServer would look up the host's name, which can take long.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        assert isinstance(request, socket.socket)
        ending = threading.Timer(_LONGEST, _hang_up, (request,))
        ending.daemon = True
        ending.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            ending.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: it is a client that went away, or took too long."""


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Request(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server_version = "leveret"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        status, kind, body = self.server.pages.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Says nothing: probes come every few seconds."""
