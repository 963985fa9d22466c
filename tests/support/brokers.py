"""RabbitMQ and the embedded broker under one interface, with the faults that both can be asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
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
