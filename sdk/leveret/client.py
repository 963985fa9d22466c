"""The client: two connections, one for publishing and one for consuming, and what is made on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet

from leveret.connection import Connection
from leveret.consumer import Consumer
from leveret.errors import ConfigurationError, ConnectionClosed, again
from leveret.producer import Producer
from leveret.settings import ConnectionSettings, ConsumerSettings, ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from leveret.channel import Channel
    from leveret.topology import DeclareReport, Topology

__all__ = ["Client", "connect"]

T = TypeVar("T")


class _Link:
    """One of the client's connections, opened when it is first needed."""

    def __init__(self, settings: ConnectionSettings, purpose: str) -> None:
        self._settings = settings
        self._name = f"{settings.client_name} ({purpose})"
        self._lock = asyncio.Lock()
        self.connection: Connection | None = None
        self.closed = False

    async def __call__(self) -> Connection:
        async with self._lock:
            self._check_open()
            if self.connection is None:
                connection = await Connection.open(self._settings, name=self._name)
                try:
                    self._check_open()
                except ConnectionClosed:
                    # Closed meanwhile: nobody else would close this one.
                    await connection.close()
                    raise
                self.connection = connection
            elif self.connection.error is not None:
                raise again(self.connection.error)
            return self.connection

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionClosed("the client is closed", reply_code=200)

    async def close(self) -> None:
        self.closed = True
        if self.connection is not None:
            await self.connection.close()


class Client:
    """Talks to one broker. Made by `connect`.

    Publishing and consuming use separate connections, because a broker that is short of memory stops reading from
    connections that publish, and acknowledgements must still get through (RabbitMQ: connection.blocked). The
    publishing connection is opened by `connect`, the other with the first consumer. A lost connection is not made
    again: what waits on it ends with a typed error, and so does what comes after.

    Attributes:
        settings: What it was made with.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self._publishing = _Link(settings, "publish")
        self._consuming = _Link(settings, "consume")
        # To be closed with the client. What is open is held by its channel, and what was closed is not held here: a
        # service may make a consumer for each message.
        self._producers: WeakSet[Producer] = WeakSet()
        self._consumers: WeakSet[Consumer[Any]] = WeakSet()

    def __repr__(self) -> str:
        return f"<Client {self.settings.redacted_url}>"

    # ------------------------------------------------------------------ life

    async def close(self) -> None:
        """Flushes and closes the producers, closes the consumers and then both connections; never hangs.

        What cannot be confirmed within `confirm_timeout` seconds ends UNKNOWN; what consumers did not finish goes
        back to its queue.
        """
        try:
            for consumer in list(self._consumers):
                await consumer.close()
            for producer in list(self._producers):
                await producer.close()
        finally:
            self._consumers.clear()
            self._producers.clear()
            try:
                await self._consuming.close()
            finally:
                await self._publishing.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connection(self) -> Connection:
        """The publishing connection, with what was negotiated."""
        connection = self._publishing.connection
        if connection is None:
            raise ConnectionClosed("the client is not connected; use `async with leveret.connect(...)`")
        return connection

    async def channel(self) -> Channel:
        """Opens a channel on the publishing connection, for methods of AMQP that have no other place here."""
        return await (await self._publishing()).channel()

    # ------------------------------------------------------------------ topology

    async def declare(self, topology: Topology) -> DeclareReport:
        """Declares exchanges, queues and bindings; what exists with the same arguments stays as it is.

        Args:
            topology: What should exist.

        Returns:
            The queues' names and counts.

        Raises:
            PreconditionFailed: Something exists with other arguments; `argument`, `wanted` and `actual` tell which.
            ChannelClosed: The broker refused for another reason.
        """
        channel = await self.channel()
        try:
            return await topology.declare_on(channel)
        finally:
            await channel.close()

    async def purge(self, queue: str) -> int:
        """Drops a queue's ready messages; returns how many there were."""
        channel = await self.channel()
        try:
            return await channel.queue_purge(queue)
        finally:
            await channel.close()

    async def delete_queue(self, queue: str) -> int:
        """Deletes a queue; returns how many messages it had. A queue that does not exist is no error in RabbitMQ."""
        channel = await self.channel()
        try:
            return await channel.queue_delete(queue)
        finally:
            await channel.close()

    async def delete_exchange(self, exchange: str) -> None:
        """Deletes an exchange."""
        channel = await self.channel()
        try:
            await channel.exchange_delete(exchange)
        finally:
            await channel.close()

    # ------------------------------------------------------------------ publishing and consuming

    def producer(self, settings: ProducerSettings | None = None, **options: Any) -> Producer:
        """Makes a producer; use it with `async with`.

        Args:
            settings: All options at once.
            **options: Single options of `ProducerSettings`, over those of `settings`.

        Returns:
            The producer, not open yet.

        Raises:
            ConfigurationError: An option is unknown or out of range.
        """
        settings = settings or ProducerSettings()
        producer = Producer(self._publishing, settings.replace(**options))
        self._producers.add(producer)
        return producer

    @overload
    def consumer(
        self, queue: str, model: type[T], settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[T]: ...

    @overload
    def consumer(
        self, queue: str, model: None = None, settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[Any]: ...

    def consumer(
        self, queue: str, model: Any = None, settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[Any]:
        """Makes a consumer.

        Args:
            queue: The queue.
            model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
            settings: All options at once.
            **options: Single options of `ConsumerSettings`, over those of `settings`.

        Returns:
            The consumer, not started yet.

        Raises:
            ConfigurationError: An option is unknown or out of range, or no serializer makes the model.
        """
        settings = settings or ConsumerSettings()
        consumer: Consumer[Any] = Consumer(self._consuming, queue, model, settings.replace(**options))
        self._consumers.add(consumer)
        return consumer


class _Connector:
    """What `connect` returns: awaitable, and an asynchronous context manager."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._client: Client | None = None

    async def _connect(self) -> Client:
        client = Client(self._settings)
        await client._publishing()
        return client

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connect().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()


def connect(target: str | ConnectionSettings | None = None, **options: Any) -> _Connector:
    """Connects to a broker.

    Args:
        target: An AMQP URL such as `amqps://user:password@a,b/vhost?heartbeat=20`, or `ConnectionSettings`, or None
            for the environment's `LEVERET_*` variables and the defaults.
        **options: Single options of `ConnectionSettings`, over those of the target.

    Returns:
        Something to use with `async with`, which closes the client, or to `await`.

    Raises:
        ConfigurationError: A URL part or option is unknown or out of range; it is named.
        And on entering or awaiting, what `Connection.open` raises.
    """
    if target is None:
        settings = ConnectionSettings.from_env().replace(**options)
    elif isinstance(target, str):
        settings = ConnectionSettings.from_url(target, **options)
    elif isinstance(target, ConnectionSettings):
        settings = target.replace(**options)
    else:
        raise ConfigurationError(
            f"connect takes a URL or ConnectionSettings, not {type(target).__name__}", option="target"
        )
    return _Connector(settings)
