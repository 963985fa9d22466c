"""Channels that are opened once and lent for single calls."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from leveret.errors import ConfigurationError, OperationTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.settings import ConnectionSettings

__all__ = ["ChannelPool"]


class ChannelPool:
    """The channels that a connection lends. Made by the client: `client.channels`.

    It opens a channel when all that it has are lent, up to `limit`, and keeps those that come back as new. One that is
    closed, in confirm or transaction mode, or has had a consumer, a publisher or a message, is closed instead. What the
    broker has open for it is never more than `limit`, whatever fails or is cancelled.

    A channel that lies idle counts against `channel_max` only until another user of the connection needs its place.

    Attributes:
        limit: The most channels: `max_pooled_channels`, or `channel_max` when that is less.

    Example:
        async with client.channels.acquire() as channel:
            await channel.queue_declare("orders")
    """

    def __init__(self, link: Link, settings: ConnectionSettings) -> None:
        self.limit = min(settings.max_pooled_channels, settings.channel_max)
        self._link = link
        self._timeout = settings.operation_timeout
        # All that the broker may know of: lent, idle, being opened or being closed.
        self._channels: set[Channel] = set()
        self._idle: list[Channel] = []
        # Callers that wait for a channel, the longest first. A caller that was woken stays at the front until it runs,
        # so that no later caller takes its channel.
        self._turns: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ChannelPool {len(self._channels)} of {self.limit} open, {len(self._idle)} idle>"

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Channel]:
        """Lends a channel until the end of the `async with` block; it is not to be used after that.

        When all `limit` channels are lent, this waits for one: first come, first served. A caller that acquires
        a second channel while it holds one may wait for itself.

        Returns:
            Something to use with `async with`; it gives the channel.

        Raises:
            OperationTimeout: None was free within `operation_timeout` seconds, the broker did not open one, or the lost
                connection did not come back.
            ConfigurationError: All `channel_max` channels of the connection are in use by others.
            LeveretError: There is no connection, and none could be made.
        """
        channel = await self._take()
        try:
            yield channel
        finally:
            self._give_back(channel)

    async def _take(self) -> Channel:
        deadline = asyncio.get_running_loop().time() + self._timeout
        connection = await self._connected(deadline)
        connection.check_loop()
        try:
            if self._turns:
                await self._wait(connection, deadline)
            # Each time around it is this caller's turn, and there is no `await` before it has its channel.
            while True:
                if self._idle:
                    channel = self._idle.pop()
                    channel.renew()
                    self._wake()
                    return channel
                if connection.error is not None:
                    connection = await self._connected(deadline)
                    continue
                if len(self._channels) < self.limit and (new := self._new(connection)) is not None:
                    self._wake()
                    await new.open()
                    return new
                await self._wait(connection, deadline, first=True)
        except BaseException:
            # It may have been this one's turn.
            self._wake()
            raise

    async def _connected(self, deadline: float) -> Connection:
        return await self._link.for_call("a channel", max(0.0, deadline - asyncio.get_running_loop().time()))

    def _new(self, connection: Connection) -> Channel | None:
        try:
            channel = connection.new_channel()
        except ConfigurationError:
            if not connection.confirm_channels.make_way(lambda _: self._wake()) and not self._channels:
                raise
            # Others use the rest of `channel_max`, but one of ours will come back, or the number of an idle one.
            return None
        channel.on_end = self._ended
        connection.spare_channel = self._spare
        self._channels.add(channel)
        return channel

    async def _wait(self, connection: Connection, deadline: float, *, first: bool = False) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._turns.appendleft(turn)
        else:
            self._turns.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except TimeoutError:
            raise OperationTimeout(
                f"no channel of connection {connection.name!r} was free within operation_timeout of "
                f"{self._timeout:g} s; {len(self._channels)} are in use, and the pool's limit is {self.limit} "
                "(max_pooled_channels)"
            ) from None
        finally:
            self._turns.remove(turn)

    def _wake(self) -> None:
        if self._turns and not self._turns[0].done():
            self._turns[0].set_result(None)

    def _give_back(self, channel: Channel) -> None:
        if channel.is_reusable:
            self._idle.append(channel)
            self._wake()
        else:
            # Its place is free when the broker says that it is closed.
            channel.abandon()

    def _ended(self, channel: Channel) -> None:
        self._channels.discard(channel)
        if channel in self._idle:
            self._idle.remove(channel)
        self._wake()

    def _spare(self) -> Channel | None:
        if not self._idle:
            return None
        channel = self._idle.pop()
        channel.renew()
        self._channels.discard(channel)
        return channel
