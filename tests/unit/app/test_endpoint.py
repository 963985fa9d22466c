"""The health endpoint answers from a thread, over real sockets, and disturbs nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.snapshots import snapshot

from leveret.app.board import STUCK, Board
from leveret.app.endpoint import Endpoint, parsed_address
from leveret.errors import ConfigurationError
from leveret.monitoring.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    made = Board("shop:app", 1, clock)
    made.update(snapshot(0, deliveries=5))
    made.tick()
    return made


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def serving(board: Board, render: Callable[[Board], tuple[str, bytes]] | None = None) -> Iterator[int]:
    with Endpoint("127.0.0.1:0", board, render) as endpoint:
        until(lambda: endpoint.url)
        yield int(endpoint.url.rpartition(":")[2])


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_run_that_is_well_answers_200(board: Board) -> None:
    with serving(board) as port:
        assert ask(port, "/ready") == (200, b'{"ready": true, "reasons": []}\n')
        assert ask(port, "/live/") == (200, b'{"live": true, "reasons": []}\n')
        status, body = ask(port, "/health?x=1")
        assert status == 200
        assert json.loads(body)["queues"]["billing"]["delivered"] == 5
        assert ask(port, "/ready", "HEAD") == (200, b"")


def test_a_run_that_is_not_answers_503_with_the_reasons(board: Board, clock: Clock) -> None:
    with serving(board) as port:
        board.update(snapshot(0, health=Health(ready=False, live=True, reasons=("connection 'consume': lost",))))
        assert ask(port, "/ready")[0] == 503
        assert ask(port, "/live")[0] == 200
        clock.now = STUCK + 1
        status, body = ask(port, "/live")
        assert status == 503
        assert json.loads(body)["reasons"] == ["its event loop has not turned for 11 s"]


def test_other_paths_and_methods_are_refused(board: Board) -> None:
    with serving(board) as port:
        assert ask(port, "/") == (404, b"this serves /live, /ready, /health, /metrics\n")
        assert ask(port, "/ready", "POST")[0] == 501


def test_metrics_are_written_by_a_plugin(board: Board) -> None:
    with serving(board) as port:
        status, body = ask(port, "/metrics")
        assert status == 501
        assert b"pip install leveret-prometheus" in body
    with serving(board, lambda source: ("text/x", str(len(source.snapshot())).encode())) as port:
        assert ask(port, "/metrics") == (200, b"2")


def test_an_exporter_that_raises_is_logged_once(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    def broken(source: Board) -> tuple[str, bytes]:
        raise ValueError("no")

    with serving(board, broken) as port:
        assert [ask(port, "/metrics")[0] for _ in range(3)] == [500] * 3
        assert ask(port, "/ready")[0] == 200
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_port_in_use_is_logged_once_and_taken_when_it_is_free(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "leveret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Endpoint(f"127.0.0.1:{port}", board, None) as endpoint:
            until(lambda: caplog.records)
            assert f"health cannot be served on 127.0.0.1:{port}" in caplog.messages[0]
            taken.close()
            until(lambda: endpoint.url)
            assert ask(port, "/ready")[0] == 200
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_clients_that_say_nothing_keep_no_other_from_its_answer(board: Board) -> None:
    with serving(board) as port, contextlib.ExitStack() as silent:
        for _ in range(10):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert ask(port, "/ready")[0] == 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        (":65535", ("0.0.0.0", 65_535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parsed_address(text) == address


@pytest.mark.parametrize("text", ["", "8080", "127.0.0.1", "127.0.0.1:65536", "http://127.0.0.1:80", "a b:1", "::1:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the health address is HOST:PORT"):
        parsed_address(text)
