"""The client: two connections, one for publishing and one for consuming, and what is made on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet

from leveret.connection import Connection
from leveret.consumer import Consumer
from leveret.errors import ConfigurationError, ConnectionClosed
from leveret.monitoring import ConnectionMeter, Monitor, Sinks
from leveret.plugins.interfaces import CircuitBreaker, ConnectionEvent, ConnectionEventKind, RetryPolicy
from leveret.plugins.registry import PluginRegistry
from leveret.producer import Producer
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from leveret.channel import Channel
    from leveret.plugins.interfaces import Sample
    from leveret.topology import DeclareReport, Topology

__all__ = ["Client", "connect"]

T = TypeVar("T")


class _Link:
    """One of the client's connections, opened when it is first needed, and again when it was lost."""

    def __init__(self, settings: ConnectionSettings, purpose: str, registry: PluginRegistry) -> None:
        self._settings = settings
        self._name = f"{settings.client_name} ({purpose})"
        self._lock = asyncio.Lock()
        self._registry = registry
        self.meter = ConnectionMeter()
        self.connection: Connection | None = None
        self.closed = False

    async def __call__(self) -> Connection:
        async with self._lock:
            self._check_open()
            lost = self.connection is not None and self.connection.error is not None
            if self.connection is None or lost:
                connection = await Connection.open(self._settings, name=self._name, on_event=self._on_event)
                try:
                    self._check_open()
                except ConnectionClosed:
                    # Closed meanwhile: nobody else would close this one.
                    await connection.close()
                    raise
                self.connection = connection
                self.meter.replace(connection)
                if lost:
                    recovered = ConnectionEvent(kind=ConnectionEventKind.RECOVERED, connection_name=self._name)
                    self._registry.connection_event(recovered)
            return self.connection

    async def recovered(self) -> Connection:
        return await self()

    def _on_event(self, event: ConnectionEvent) -> None:
        if event.error is not None:
            self.meter.lost += 1
        self._registry.connection_event(event)

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
    publishing connection is opened by `connect`, the other with the first consumer.

    When a connection is lost, what waits on it ends with a typed error, and so do its producers and consumers; they are
    not revived. New ones get a new connection.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
    """

    def __init__(self, settings: Settings, registry: PluginRegistry) -> None:
        self.settings = settings.connection
        self.registry = registry
        self._defaults = settings
        self._publishing = _Link(settings.connection, "publish", registry)
        self._consuming = _Link(settings.connection, "consume", registry)
        self._monitor = Monitor(settings.connection.client_name)
        self._monitor.add(self._publishing, "connection", "publish", self._publishing.meter)
        self._monitor.add(self._consuming, "connection", "consume", self._consuming.meter)
        self._sinks = Sinks(registry, settings.monitoring)
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
                try:
                    await self._publishing.close()
                finally:
                    await self._sinks.close()

    async def open(self) -> Client:
        """Opens the publishing connection and starts the metrics sinks; `connect` does it.

        Raises:
            LeveretError: What `Connection.open` raises.
            PluginError: A metrics sink could not be started.
        """
        await self._publishing()
        try:
            await self._sinks.start(self._monitor)
        except BaseException:
            await self.close()
            raise
        return self

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

    def metrics(self) -> list[Sample]:
        """Everything that this client has counted, now; what metrics sinks read.

        Returns:
            A sample for each metric and label set. Counters include producers and consumers that are gone.
        """
        return self._monitor.snapshot()

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

    def producer(
        self,
        settings: ProducerSettings | None = None,
        *,
        retry: RetryPolicy | str | None = None,
        circuit_breaker: CircuitBreaker | str | None = None,
        **options: Any,
    ) -> Producer:
        """Makes a producer; use it with `async with`.

        Args:
            settings: All options at once; those that `connect` was given by default.
            retry: A retry policy, or the name of one, over that of `settings`.
            circuit_breaker: A circuit breaker, or the name of one. An object may be shared by producers.
            **options: Single options of `ProducerSettings`, over those of `settings`.

        Returns:
            The producer, not open yet.

        Raises:
            ConfigurationError: An option is unknown or out of range.
            PluginError: A serializer, compressor or policy could not be made.
        """
        settings = (settings or self._defaults.producer).replace(**options)
        chosen: object = settings.retry if retry is None else retry
        policy = self.registry.retry_policy(chosen) if isinstance(chosen, str) else chosen
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise ConfigurationError(f"retry is a {type(policy).__name__}, which is no RetryPolicy", option="retry")
        chosen = settings.circuit_breaker if circuit_breaker is None else circuit_breaker
        breaker = self.registry.circuit_breaker(chosen) if isinstance(chosen, str) else chosen
        if breaker is not None and not isinstance(breaker, CircuitBreaker):
            raise ConfigurationError(
                f"circuit_breaker is a {type(breaker).__name__}, which is no CircuitBreaker", option="circuit_breaker"
            )
        producer = Producer(self._publishing, settings, self.registry, retry=policy, circuit_breaker=breaker)
        self._producers.add(producer)
        self._monitor.add(producer, "producer", settings.exchange, producer.meter)
        return producer

    @overload
    def consumer(
        self, queue: str, model: type[T], settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[T]: ...

    @overload
    def consumer(
        self, queue: str, model: Any = None, settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[Any]: ...

    def consumer(
        self, queue: str, model: Any = None, settings: ConsumerSettings | None = None, **options: Any
    ) -> Consumer[Any]:
        """Makes a consumer.

        Args:
            queue: The queue.
            model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
            settings: All options at once; those that `connect` was given by default.
            **options: Single options of `ConsumerSettings`, over those of `settings`.

        Returns:
            The consumer, not started yet.

        Raises:
            ConfigurationError: An option is unknown or out of range, or no serializer makes the model.
        """
        settings = settings or self._defaults.consumer
        consumer: Consumer[Any] = Consumer(self._consuming, queue, model, settings.replace(**options), self.registry)
        self._consumers.add(consumer)
        self._monitor.add(consumer, "consumer", queue, consumer.meter)
        return consumer


class _Connector:
    """What `connect` returns: awaitable, and an asynchronous context manager."""

    def __init__(self, settings: Settings, registry: PluginRegistry | None) -> None:
        self._settings = settings
        self._registry = registry
        self._client: Client | None = None

    async def _connect(self) -> Client:
        registry = self._registry or PluginRegistry.load(self._settings.plugins)
        return await Client(self._settings, registry).open()

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


def connect(
    target: str | ConnectionSettings | Settings | None = None,
    *,
    plugins: PluginRegistry | PluginSettings | None = None,
    monitoring: MonitoringSettings | None = None,
    **options: Any,
) -> _Connector:
    """Connects to a broker.

    Args:
        target: An AMQP URL such as `amqps://user:password@a,b/vhost?heartbeat=20`, or `ConnectionSettings`, or None
            for the environment's `LEVERET_*` variables and the defaults. `Settings`, for example from
            `leveret.settings.load`, say everything, with the options that producers and consumers begin with; the
            environment is not asked then.
        plugins: A registry to share between clients, or which installed plugins to load; by default what the `Settings`
            or `LEVERET_PLUGINS` and `LEVERET_PLUGINS_BLOCK` say, or else all.
        monitoring: Which metrics sinks to start; by default what the `Settings` or `LEVERET_MONITORING_SINKS` say, or
            else none.
        **options: Single options of `ConnectionSettings`, over those of the target.

    Returns:
        Something to use with `async with`, which closes the client, or to `await`.

    Raises:
        ConfigurationError: A URL part or option is unknown or out of range; it is named.
        And on entering or awaiting, what `Connection.open` and `PluginRegistry.load` raise, and `PluginError` when a
        metrics sink cannot be started.
    """
    if target is None:
        connection = ConnectionSettings.from_env().replace(**options)
    elif isinstance(target, str):
        connection = ConnectionSettings.from_url(target, **options)
    elif isinstance(target, ConnectionSettings):
        connection = target.replace(**options)
    elif isinstance(target, Settings):
        connection = target.connection.replace(**options)
    else:
        raise ConfigurationError(
            f"connect takes a URL, ConnectionSettings or Settings, not {type(target).__name__}", option="target"
        )
    whole = target if isinstance(target, Settings) else None
    registry = plugins if isinstance(plugins, PluginRegistry) else None
    if registry is not None:
        chosen = registry.settings
    elif isinstance(plugins, PluginSettings):
        chosen = plugins
    else:
        chosen = whole.plugins if whole else PluginSettings.from_env()
    settings = Settings(
        connection=connection,
        producer=whole.producer if whole else ProducerSettings(),
        consumer=whole.consumer if whole else ConsumerSettings(),
        plugins=chosen,
        monitoring=monitoring or (whole.monitoring if whole else MonitoringSettings.from_env()),
    )
    return _Connector(settings, registry)
