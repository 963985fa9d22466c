"""`leveret broker` and `python -m leveret.broker` serve until they are stopped, and say why they cannot."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.support.command_line import TIMEOUT, leveret, running
from tests.support.paths import path_for

from leveret.broker import serve_forever
from leveret.broker.__main__ import main
from leveret.protocol.commands import PROTOCOL_HEADER

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_prints_its_url_first_and_stops_on_signals(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "leveret.broker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("amqp://guest:guest@127.0.0.1:")
        port = int(url.split(":")[3].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(PROTOCOL_HEADER)
            assert client.recv(1) == b"\x01"
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


def test_command_says_why_it_cannot_listen(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    assert main(["--host", "192.0.2.1"]) == 1
    assert "allow_remote" in capsys.readouterr().err


def test_serve_forever_tells_when_clients_can_connect_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    seen = []

    def ready(url: str) -> None:
        seen.append(url)
        os.kill(os.getpid(), signal.SIGTERM)

    before = (signal.getsignal(signal.SIGTERM), gc.get_threshold())
    serve_forever(path=path_for(tmp_path), on_ready=ready)
    assert seen == [f"amqp+unix://guest:guest@/%2F?unix_socket={tmp_path / 'b'}"]
    assert (signal.getsignal(signal.SIGTERM), gc.get_threshold()) == before


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_broker_command_serves_until_it_is_stopped(stop: signal.Signals) -> None:
    with running("broker", "--port", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert "in memory only" in process.stdout.readline()
        leveret("demo", "--count", "100", "--broker", url)
        process.send_signal(stop)
        _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert error == ""


def test_broker_command_serves_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    with running("broker", "--path", str(path)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("amqp+unix://")
        leveret("demo", "--count", "100", "--broker", url)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0


def test_broker_command_names_a_port_that_is_taken() -> None:
    with running("broker", "--port", "0") as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip().rsplit(":", 1)[1].partition("/")[0]
        done = leveret("broker", "--port", port, status=1)
        assert done.stderr.startswith("Error: ")
        assert port in done.stderr
        assert done.stderr.count("\n") == 1
