"""All addresses of all hosts are dialed, each socket has one owner, and none is waited for for long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.peers import FakeServer, Peer, silent_address
from tests.support.rabbitmq import free_ports

import leveret
from leveret.broker import EmbeddedBroker
from leveret.connection.connection import Connection
from leveret.errors import ConnectFailed, ConnectionClosed, OperationTimeout
from leveret.settings import ConnectionSettings, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.usefixtures("no_leftovers")


def settings(ports: Iterable[int], **options: float) -> ConnectionSettings:
    """Settings for brokers at these ports."""
    return ConnectionSettings(endpoints=[Endpoint("127.0.0.1", port) for port in ports], **options)  # type: ignore[arg-type]


@every_loop
async def test_no_descriptor_is_left_when_hosts_refuse_hang_up_and_say_nothing() -> None:
    async def hang_up(peer: Peer) -> None:
        peer.hang_up()

    async with FakeServer(hang_up) as server:
        with silent_address() as silent:
            dialed = settings([*free_ports(3), silent, server.port], connect_timeout=0.1)
            counts = []
            for _ in range(20):
                with pytest.raises(ConnectFailed):
                    await Connection.open(dialed)
                await asyncio.sleep(0.01)  # the server closes its end
                gc.collect()
                counts.append(len(os.listdir("/dev/fd")))
    assert counts[-1] <= counts[1]


async def reached(settings: ConnectionSettings, first: int | None = None) -> int:
    """Connects, beginning with the host at a port when one is given; returns the port of the one that answered."""
    connection = await Connection.open(settings, first=None if first is None else Endpoint("127.0.0.1", first))
    await connection.close()
    assert connection.endpoint is not None
    return connection.endpoint.port


@every_loop
async def test_a_silent_host_costs_less_than_its_deadline_when_another_answers(embedded: EmbeddedBroker) -> None:
    with silent_address() as silent:
        began = time.monotonic()
        assert await reached(settings([silent, embedded.port], connect_timeout=30), first=silent) == embedded.port
    assert time.monotonic() - began < 10


@pytest.mark.asyncio(loop_factories=["asyncio"])  # it asks Python's own resolver, which the test answers for
async def test_a_silent_address_costs_less_than_its_deadline_when_the_name_has_another(
    embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def both(host: str, *options: Any) -> list[Any]:
        names = ["127.0.0.2", "127.0.0.1"] if host == "two.example" else [host]
        return [found for name in names for found in resolve(name, *options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with silent_address("127.0.0.2", embedded.port):
        began = time.monotonic()
        connection = await Connection.open(
            ConnectionSettings(endpoints=(Endpoint("two.example", embedded.port),), connect_timeout=30)
        )
        await connection.close()
    assert time.monotonic() - began < 10
    assert str(connection.endpoint) == f"two.example:{embedded.port}"


async def test_every_host_gets_its_try_when_the_deadline_is_short(embedded: EmbeddedBroker) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(silent_address()) for _ in range(7)]
        for _ in range(5):
            assert await reached(settings([*silent, embedded.port], connect_timeout=1)) == embedded.port


async def test_each_host_is_named_when_all_are_silent() -> None:
    with silent_address() as one, silent_address() as other, pytest.raises(ConnectFailed) as failed:
        await Connection.open(settings([one, other], connect_timeout=0.4))
    assert str(failed.value).count("within connect_timeout of 0.4 s") == 2
    assert f":{one} " in str(failed.value)
    assert f":{other} " in str(failed.value)


@every_loop
async def test_the_next_host_is_used_when_one_accepts_and_hangs_up(embedded: EmbeddedBroker) -> None:
    async def hang_up(peer: Peer) -> None:
        peer.hang_up()

    async with FakeServer(hang_up) as server:
        assert await reached(settings([server.port, embedded.port]), first=server.port) == embedded.port


async def test_the_next_host_is_used_when_one_is_silent_in_the_handshake(embedded: EmbeddedBroker) -> None:
    async def silent(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with FakeServer(silent) as server:
        dialed = settings([server.port, embedded.port], handshake_timeout=0.2)
        assert await reached(dialed, first=server.port) == embedded.port
        with pytest.raises(OperationTimeout, match=f"127.0.0.1:{server.port}"):
            await Connection.open(settings([server.port], handshake_timeout=0.2))


@every_loop
async def test_no_timer_is_left_when_a_connection_ends_in_the_read_that_opened_it() -> None:
    async def open_and_close(peer: Peer) -> None:
        await peer.handshake(heartbeat=60)
        peer.send(commands.Connection.Close(320, "shutdown", 0, 0))

    async with FakeServer(open_and_close) as server:
        connection = await Connection.open(settings([server.port], close_timeout=60))
        assert isinstance(connection.error, ConnectionClosed)
        await connection.close()
        ended = weakref.ref(connection)
        del connection
        # A timer that the loop holds would keep the connection until it runs.
        gc.collect()
        assert ended() is None


@every_loop
async def test_only_one_of_the_hosts_hears_of_amqp_when_all_answer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leveret.transport.dialing.STAGGER", 0.0)
    heard = 0

    async def oblige(peer: Peer) -> None:
        nonlocal heard
        await peer.handshake()
        heard += 1
        await peer.linger()

    async with contextlib.AsyncExitStack() as stack:
        ports = [(await stack.enter_async_context(FakeServer(oblige))).port for _ in range(8)]
        for attempts in range(1, 21):
            assert await reached(settings(ports)) in ports
            assert heard == attempts


async def test_clients_are_spread_over_the_hosts_when_all_answer() -> None:
    async with EmbeddedBroker() as one, EmbeddedBroker() as other:
        # That 40 fair coins fall on the same side has a chance of 1 in 10**11.
        assert {await reached(settings([one.port, other.port])) for _ in range(40)} == {one.port, other.port}


async def test_a_client_goes_back_to_the_host_it_was_connected_to() -> None:
    async with EmbeddedBroker() as one, EmbeddedBroker() as other, EmbeddedBroker() as third:
        brokers = {broker.port: broker for broker in (one, other, third)}
        options = settings(brokers, recovery_initial_delay=0.001, recovery_max_delay=0.002)
        async with leveret.connect(options) as client, client.producer(mandatory=False) as producer:
            endpoint = client.connection.endpoint
            assert endpoint is not None
            for _ in range(20):
                brokers[endpoint.port].close_connections()
                before = client.connection
                await until(lambda: before.error is not None)  # noqa: B023
                await producer.publish(b"", "orders")
                assert client.connection is not before
                assert client.connection.endpoint == endpoint
