"""Plugins are told what happens to connections, in its order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import frame
from pamqp.commands import Connection
from tests.support.peers import FakeServer, Peer
from tests.support.plugins import plugin

import leveret
from leveret.errors import ConnectionClosed, LeveretError
from leveret.plugins import ConnectionEvent, ConnectionEventKind, PluginRegistry
from leveret.settings import ConnectionSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_plugins_are_told_what_happens_to_connections(embedded: EmbeddedBroker) -> None:
    told: list[ConnectionEvent] = []

    def tell(event: ConnectionEvent) -> None:
        told.append(event)

    def kinds() -> list[tuple[str, str]]:
        found = [(event.kind.value, event.connection_name) for event in told]
        told.clear()
        return found

    registry = PluginRegistry.from_plugins(plugin(connection_event=tell))
    async with leveret.connect(embedded.url, client_name="billing", plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        assert kinds() == [("opened", "billing (publish)")]
        await client.consumer("q").get()
        assert kinds() == [("opened", "billing (consume)")]

        embedded.block("low on memory")
        async with client.producer() as producer:
            ticket = producer.publish_nowait(1, "q")
            await asyncio.sleep(0.05)
            assert [(event.kind, event.reason) for event in told] == [(ConnectionEventKind.BLOCKED, "low on memory")]
            embedded.unblock()
            await ticket
        assert kinds() == [("blocked", "billing (publish)"), ("unblocked", "billing (publish)")]

        channel = await client.channel()
        embedded.close_connections(320, "maintenance")
        with pytest.raises(leveret.LeveretError):
            await channel.basic_qos(1)
        lost = next(event for event in told if event.connection_name == "billing (publish)")
        assert lost.kind is ConnectionEventKind.CLOSED
        assert lost.error is client.connection.error
        assert "maintenance" in lost.reason
        told.clear()

        await client.channel()
        assert kinds() == [("opened", "billing (publish)"), ("recovered", "billing (publish)")]
    assert ("closed", "billing (publish)") in kinds()


async def open_and_say(peer: Peer, *more: Any) -> None:
    """Opens the connection as `handshake` does, and says more in the same breath."""
    await peer.read(8)
    peer.send(Connection.Start(server_properties={}))
    await peer.expect(Connection.StartOk)
    peer.send(Connection.Tune(2047, 131_072, 0))
    await peer.expect(Connection.TuneOk, Connection.Open)
    peer.send_bytes(b"".join(frame.marshal(each, 0) for each in (Connection.OpenOk(), *more)))
    await peer.linger()


async def silent(peer: Peer) -> None:
    await peer.read(8)


@pytest.mark.parametrize(
    ("script", "kinds", "lost"),
    [
        pytest.param(silent, [], 0, id="never open"),
        pytest.param(
            lambda peer: open_and_say(peer, Connection.Blocked("disk")),
            ["opened", "blocked", "closed"],
            0,
            id="blocked",
        ),
        pytest.param(
            lambda peer: open_and_say(peer, Connection.Close(320, "", 0, 0)), ["opened", "closed"], 1, id="lost"
        ),
    ],
)
async def test_a_connection_is_told_of_as_opened_before_anything_else(
    script: Callable[[Peer], Awaitable[None]], kinds: list[str], lost: int
) -> None:
    told: list[ConnectionEvent] = []

    def tell(event: ConnectionEvent) -> None:
        told.append(event)

    registry = PluginRegistry.from_plugins(plugin(connection_event=tell))
    async with FakeServer(script) as server:
        settings = ConnectionSettings.from_url(server.url, handshake_timeout=0.1)
        client = leveret.Client(Settings(connection=settings), registry)
        try:
            await client.open()
        except LeveretError:
            assert script is silent or lost
        await client.close()
        await asyncio.sleep(0)  # a socket that was closed says so in the next turn
        counted = {sample.metric.name: sample.value for sample in client.metrics() if sample.labels[1] == "publish"}
    assert [event.kind.value for event in told] == kinds
    assert counted["connections_lost"] == lost


async def test_no_closing_is_told_when_a_client_was_closed_before_its_connection_was_open() -> None:
    told: list[str] = []
    registry = PluginRegistry.from_plugins(plugin(connection_event=lambda event: told.append(event.kind.value)))
    dialed, go_on = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        dialed.set()
        await go_on.wait()
        await peer.handshake()
        await peer.linger()

    async with FakeServer(script) as server:
        client = leveret.Client(Settings(connection=ConnectionSettings.from_url(server.url)), registry)
        opening = asyncio.create_task(client.open())
        await dialed.wait()
        await client.close()
        go_on.set()
        with pytest.raises(ConnectionClosed):
            await opening
    assert told in ([], ["opened", "closed"])
