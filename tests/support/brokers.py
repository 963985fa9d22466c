"""RabbitMQ and the embedded broker under one interface, with the faults that both can be asked for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from leveret.errors import ConfirmTimeout

if TYPE_CHECKING:
    import leveret
    from leveret.broker import EmbeddedBroker
    from tests.support.rabbitmq import RabbitMQNode


#: The RabbitMQ that the embedded broker imitates.
IMITATED: Final = (3, 10, 8)


class Broker(Protocol):
    """A live broker that does what a test asks."""

    @property
    def url(self) -> str: ...

    @property
    def version(self) -> tuple[int, ...]:
        """The RabbitMQ that it is, or that it imitates; what tests expect may depend on it (`server_version`)."""

    async def close_connections(self) -> None:
        """Closes every client's connection with reply code 320."""

    async def block(self) -> None:
        """Blocks publishers, for lack of memory."""

    async def unblock(self) -> None:
        """Lets them go on."""


class RabbitMQ:
    """A RabbitMQ node; its program for such things blocks, so it runs in a thread."""

    def __init__(self, node: RabbitMQNode) -> None:
        self.node = node
        self.url = node.url
        self.version: tuple[int, ...] = node.version

    async def close_connections(self) -> None:
        await asyncio.to_thread(self.node.ctl, "close_all_connections", "asked to by a test")

    async def block(self) -> None:
        await asyncio.to_thread(self.node.alarm, True)

    async def unblock(self) -> None:
        await asyncio.to_thread(self.node.alarm, False)


class Embedded:
    """An embedded broker."""

    version: tuple[int, ...] = IMITATED

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.url = broker.url

    async def close_connections(self) -> None:
        self.broker.close_connections()

    async def block(self) -> None:
        self.broker.block()

    async def unblock(self) -> None:
        self.broker.unblock()


async def publish_until_blocked(client: leveret.Client, producer: leveret.Producer, queue: str) -> None:
    """The broker says that it blocks to who publishes, and may or may not take that message before."""
    async with asyncio.timeout(5):
        while client.connection.blocked is None:
            with contextlib.suppress(ConfirmTimeout):
                await producer.publish("the first", queue)


async def open_channels(broker: Broker, connection: leveret.Connection) -> int:
    """How many channels the broker has for a connection."""
    here = connection.transport.extra_info("sockname")
    if isinstance(broker, Embedded):
        (session,) = (s for s in broker.broker.sessions if s.transport.extra_info("peername") == here)
        return len(session._channels)
    assert isinstance(broker, RabbitMQ)
    listed = await asyncio.to_thread(broker.node.ctl, "list_connections", "peer_port", "channels")
    (line,) = (line for line in listed.splitlines() if line.split("\t")[0] == str(here[1]))
    return int(line.split("\t")[1])
