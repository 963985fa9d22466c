"""The embedded broker as a whole: options, addresses, starting, stopping, and the command that runs it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.loops import every_loop
from tests.support.paths import path_for

from leveret.broker import EmbeddedBroker, serve_forever
from leveret.broker.__main__ import main
from leveret.errors import ConfigurationError, TransportError
from leveret.protocol.commands import PROTOCOL_HEADER, Connection, encode, make


def exists(path: str) -> bool:
    return os.path.exists(path)


async def greeting(broker: EmbeddedBroker, path: str | None = None) -> tuple[bytes, asyncio.StreamWriter]:
    """The first byte that the broker says; connection.start is a method frame."""
    if path is None:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    else:
        reader, writer = await asyncio.open_unix_connection(path)
    writer.write(PROTOCOL_HEADER)
    return await reader.readexactly(1), writer


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "5672"),
        ("port", True),
        ("heartbeat", -1),
        ("heartbeat", 65536),
        ("heartbeat", 0.5),
        ("heartbeat", "60"),
        ("frame_max", 4095),
        ("frame_max", 1 << 31),
        ("channel_max", 0),
        ("channel_max", 65536),
        ("max_message_size", 0),
        ("max_message_size", 1 << 30),
        ("handshake_timeout", 0),
        ("handshake_timeout", float("nan")),
        ("backlog", 0),
        ("users", {}),
        ("users", {"": "secret"}),
        ("users", {"guest": None}),
        ("virtual_hosts", ()),
        ("virtual_hosts", ""),
        ("virtual_hosts", "/"),
        ("virtual_hosts", ("",)),
        ("virtual_hosts", ("v" * 256,)),
        ("virtual_hosts", (5,)),
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("host", "192.0.2.1"),
        ("host", "example.org"),
    ],
)
def test_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option) as raised:
        EmbeddedBroker(**{option: value})
    assert raised.value.option == option
    assert "secret" not in str(raised.value)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="prefetch"):
        EmbeddedBroker(prefetch=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "localhost", "::1"])
def test_loopback_addresses_need_no_permission(host: str) -> None:
    EmbeddedBroker(host=host)


def test_other_addresses_need_permission() -> None:
    EmbeddedBroker(host="192.0.2.1", allow_remote=True)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"port": 5672}, "amqp://guest:guest@127.0.0.1:5672/%2F"),
        ({"port": 1, "host": "::1"}, "amqp://guest:guest@[::1]:1/%2F"),
        ({"port": 1, "users": {"a@b": "p/w:"}}, "amqp://a%40b:p%2Fw%3A@127.0.0.1:1/%2F"),
        ({"port": 1, "virtual_hosts": ("orders", "/")}, "amqp://guest:guest@127.0.0.1:1/orders"),
        ({"path": "/run/a b.sock"}, "amqp+unix://guest:guest@/%2F?socket=/run/a%20b.sock"),
    ],
)
def test_url_names_everything_that_a_client_needs(options: dict[str, Any], url: str) -> None:
    broker = EmbeddedBroker(**options)
    assert broker.url == url
    assert "guest:guest" not in repr(broker)


# ---------------------------------------------------------------------- life


@every_loop
async def test_broker_listens_until_it_is_stopped(no_leftovers: None) -> None:
    async with EmbeddedBroker() as broker:
        first, writer = await greeting(broker)
        assert first == b"\x01"
        writer.close()
        port = broker.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@every_loop
async def test_broker_starts_again_on_its_port_and_empty(no_leftovers: None) -> None:
    broker = EmbeddedBroker()
    await broker.start()
    port = broker.port
    broker.vhosts["/"].declare_queue("q", None, durable=True, exclusive=False, auto_delete=False, arguments={})
    assert broker.queue_depth("q") == 0
    assert await broker.start() is broker  # a second start changes nothing
    assert broker.queue_depth("q") == 0
    await broker.stop()
    await broker.stop()  # nor does a second stop
    async with broker:
        assert broker.port == port
        with pytest.raises(ConfigurationError, match="no queue 'q'"):
            broker.queue_depth("q")
        with pytest.raises(ConfigurationError, match="no virtual host 'v'"):
            broker.queue_depth("q", "v")


@every_loop
async def test_stop_ends_connections_that_do_not_answer(no_leftovers: None) -> None:
    broker = await EmbeddedBroker().start()
    _, handshaking = await greeting(broker)
    _, silent = await asyncio.open_connection("127.0.0.1", broker.port)
    async with asyncio.timeout(5):
        while len(broker.sessions) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await broker.stop(timeout=0)
    assert broker.sessions == {}
    for writer in (handshaking, silent):
        writer.close()


@every_loop
async def test_silent_client_is_dropped_when_the_handshake_takes_too_long(no_leftovers: None) -> None:
    async with EmbeddedBroker(handshake_timeout=0.05) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        async with asyncio.timeout(5):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.close()


async def test_stop_ends_open_connections_that_do_not_answer(no_leftovers: None) -> None:
    broker = await EmbeddedBroker().start()
    _, writer = await greeting(broker)
    writer.write(encode(0, make(Connection.StartOk, client_properties={}, response="\0guest\0guest")))
    writer.write(encode(0, make(Connection.TuneOk, channel_max=1, frame_max=4096, heartbeat=0)))
    writer.write(encode(0, make(Connection.Open)))
    async with asyncio.timeout(5):
        while "running" not in repr(broker.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await broker.stop(timeout=0.01)
    assert broker.sessions == {}
    writer.close()


async def test_busy_port_is_named() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        broker = EmbeddedBroker(port=port)
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
            await broker.start()
        assert "stopped" in repr(broker)


# ---------------------------------------------------------------------- unix sockets


@every_loop
async def test_unix_socket_is_removed_when_the_broker_stops(no_leftovers: None, tmp_path: Path) -> None:
    path = path_for(tmp_path)
    async with EmbeddedBroker(path=Path(path)) as broker:
        first, writer = await greeting(broker, path)
        assert (first, broker.port) == (b"\x01", 0)
        writer.close()
        assert broker.url.endswith(f"?socket={tmp_path / 'b'}")
    assert not exists(path)


@every_loop
async def test_unix_socket_of_a_broker_that_lives_is_not_taken(no_leftovers: None, tmp_path: Path) -> None:
    path = path_for(tmp_path)
    async with EmbeddedBroker(path=path) as broker:
        with pytest.raises(TransportError, match="another server listens there"):
            await EmbeddedBroker(path=path).start()
        first, writer = await greeting(broker, path)
        assert first == b"\x01"
        writer.close()


@every_loop
async def test_unix_socket_of_a_broker_that_died_is_taken_over(no_leftovers: None, tmp_path: Path) -> None:
    path = path_for(tmp_path)
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(path)
    async with EmbeddedBroker(path=path) as broker:
        first, writer = await greeting(broker, path)
        assert first == b"\x01"
        writer.close()


@every_loop
async def test_file_that_is_no_socket_is_left_alone(no_leftovers: None, tmp_path: Path) -> None:
    path = path_for(tmp_path)
    os.close(os.open(path, os.O_CREAT))
    with pytest.raises(TransportError, match="cannot listen on"):
        await EmbeddedBroker(path=path).start()
    assert exists(path)


async def test_unix_socket_of_somebody_else_is_left_alone_on_stop(tmp_path: Path) -> None:
    path = path_for(tmp_path)
    broker = await EmbeddedBroker(path=path).start()
    os.unlink(path)
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(path)
        await broker.stop()
        assert stat.S_ISSOCK(os.stat(path).st_mode)


async def test_missing_folder_is_named() -> None:
    with pytest.raises(TransportError, match="/nowhere/at/all"):
        await EmbeddedBroker(path="/nowhere/at/all").start()


# ---------------------------------------------------------------------- what tests may ask for


async def test_block_refuses_a_reason_that_does_not_fit() -> None:
    async with EmbeddedBroker() as broker:
        with pytest.raises(ConfigurationError, match="reason"):
            broker.block("r" * 256)


async def test_close_connections_refuses_a_code_that_amqp_does_not_have() -> None:
    async with EmbeddedBroker() as broker:
        with pytest.raises(ConfigurationError, match="999"):
            broker.close_connections(999)


# ---------------------------------------------------------------------- the command


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
    assert seen == [f"amqp+unix://guest:guest@/%2F?socket={tmp_path / 'b'}"]
    assert (signal.getsignal(signal.SIGTERM), gc.get_threshold()) == before
