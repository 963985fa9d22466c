"""The client: its connections, which are opened again when they were lost, and what is made on them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload
from weakref import WeakSet

from leveret.connection.channel_pool import ChannelPool
from leveret.connection.connection import Connection, longest_delay, may_mend
from leveret.consuming.batches import Batches
from leveret.consuming.builder import Consumption
from leveret.consuming.consumer import Consumer
from leveret.errors import (
    ConfigurationError,
    ConnectionClosed,
    LeveretError,
    PublishError,
    again,
)
from leveret.message import Outcome
from leveret.monitoring.meters import ConnectionMeter, Monitor, Sinks
from leveret.plugins.interfaces import CircuitBreaker, ConnectionEvent, ConnectionEventKind, RetryPolicy
from leveret.plugins.registry import PluginRegistry
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.producer import Producer
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Hashable
    from types import TracebackType
    from typing import Unpack

    from leveret.connection.channel import Channel
    from leveret.consuming.error_policy import OnError
    from leveret.plugins.interfaces import Sample
    from leveret.publishing.confirms import Receipt, Ticket
    from leveret.publishing.options import PublishOptions
    from leveret.topology.topology import DeclareReport, Topology
    from leveret.wire.message import Message

__all__ = ["Client", "DedicatedConnection", "connect"]

logger = logging.getLogger("leveret.client")

T = TypeVar("T")

#: AMQP's largest prefetch.
_MAX_PREFETCH = 65_535


class _Link:
    """A connection that is opened when it is first needed, and again when it was lost."""

    def __init__(self, settings: ConnectionSettings, name: str, registry: PluginRegistry) -> None:
        self.name = name
        self.meter = ConnectionMeter()
        self.connection: Connection | None = None
        self.closed = False
        self.channels = ChannelPool(self, settings)
        self._settings = settings
        self._registry = registry
        self._lock = asyncio.Lock()
        self._opened = asyncio.Event()
        # The one that dials now, and those that were told to end and have not yet.
        self._recovery: asyncio.Task[Connection] | None = None
        self._recoveries: set[asyncio.Task[Connection]] = set()
        self._waiting = 0
        # Attempts to recover in a row, and when this connection was dialed last, for whatever reason.
        self._attempts = 0
        self._tried_at = 0.0

    async def __call__(self) -> Connection:
        """The open connection, or a new one; dials at most once."""
        async with self._lock:
            self._check_open()
            lost = self.connection is not None and self.connection.error is not None
            if self.connection is None or lost:
                last_good = None if self.connection is None else self.connection.endpoint
                try:
                    connection = await Connection.open(
                        self._settings, name=self.name, on_event=self._on_event, first=last_good
                    )
                except LeveretError:
                    self.meter.failed += 1
                    raise
                finally:
                    self._tried_at = asyncio.get_running_loop().time()
                try:
                    self._check_open()
                except ConnectionClosed:
                    # Closed meanwhile: nobody else would close this one.
                    await connection.close()
                    raise
                self.connection = connection
                self.meter.replace(connection)
                self._opened.set()
                if lost:
                    recovered = ConnectionEvent(kind=ConnectionEventKind.RECOVERED, connection_name=self.name)
                    self._registry.connection_event(recovered)
            return self.connection

    async def recovered(self) -> Connection:
        """The open connection, or the one that takes the place of a lost one, however long that takes.

        All callers wait for the same attempts, which go on until one succeeds or nobody waits any more. The caller sets
        the deadline, and may be cancelled without harm to the others.

        Raises:
            ConnectionClosed: The client is closed, or the server refuses what no attempt can mend (reply code 530).
            AuthenticationError, TLSVerificationError, ConfigurationError: Likewise.
            LeveretError: Why the connection was lost, without `auto_recovery`; and whatever the first connection failed
                with, which is tried once.
        """
        while True:
            self._check_open()
            connection = self.connection
            if connection is None:
                return await self()
            connection.check_loop()
            if connection.error is None:
                return connection
            if not self._settings.auto_recovery:
                raise again(connection.error)
            await self._wait_for_recovery()

    async def _wait_for_recovery(self) -> None:
        task = self._recovery
        if task is None:
            self._opened.clear()
            task = self._recovery = asyncio.create_task(self._recover())
            self._recoveries.add(task)
            task.add_done_callback(self._recovery_ended)
        self._waiting += 1
        try:
            # It neither raises what the task does nor cancels it when this caller is cancelled.
            await asyncio.wait([task])
        finally:
            self._waiting -= 1
            if not self._waiting and self._recovery is not None:
                self._recovery.cancel()
                self._recovery = None
        if not task.cancelled() and (error := task.exception()) is not None:
            raise again(error) if isinstance(error, LeveretError) else error

    async def _recover(self) -> Connection:
        # What is lost again right after it was opened, or given up and soon wanted again, is in the same row: otherwise
        # a broker that closes each new connection would be dialed as fast as it does so.
        if asyncio.get_running_loop().time() - self._tried_at > self._longest_delay():
            self._attempts = 0
        while True:
            delay = random.uniform(0, self._longest_delay())  # noqa: S311 - it keeps no secret
            # Less, when somebody who does not wait for this connects meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._opened.wait()
            self._opened.clear()
            self._attempts += 1
            try:
                return await self()
            except LeveretError as error:
                if self.closed:
                    raise
                logger.warning("connection %r: attempt %d to recover it failed: %s", self.name, self._attempts, error)
                if not may_mend(error):
                    raise

    def _longest_delay(self) -> float:
        return longest_delay(self._settings, self._attempts)

    def _recovery_ended(self, task: asyncio.Task[Connection]) -> None:
        self._recoveries.discard(task)
        if self._recovery is task:
            self._recovery = None
        if not task.cancelled():
            # Looked at here: all who waited may have been cancelled in the same turn of the loop.
            task.exception()

    def _on_event(self, event: ConnectionEvent) -> None:
        if event.error is not None:
            self.meter.lost += 1
        self._registry.connection_event(event)

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionClosed(f"connection {self.name!r} was closed by this side", reply_code=200)

    async def close(self) -> None:
        self.closed = True
        recoveries = list(self._recoveries)
        for task in recoveries:
            task.cancel()
        try:
            if recoveries:
                await asyncio.wait(recoveries)
        finally:
            if self.connection is not None:
                await self.connection.close()


class _OwnProducer:
    """The producer of `message`, opened with the first one."""

    def __init__(self, make: Callable[[], Producer]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._producer: Producer | None = None

    async def publish(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Receipt:
        producer = self._producer
        if producer is None or not producer.is_open:
            async with self._lock:
                producer = self._producer
                if producer is None or not producer.is_open:
                    producer = self._producer = await self._make().open()
        return await producer.publish(value, routing_key, **options)

    def publish_nowait(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Ticket:
        if self._producer is None:
            raise PublishError(
                "not sent: the client opens a producer with its first `publish`; make one with `client.producer`",
                outcome=Outcome.NOT_SENT,
            )
        return self._producer.publish_nowait(value, routing_key, **options)


class _Workplace:
    """What a client and a dedicated connection have in common: connections, and what is made on them.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
    """

    def __init__(
        self, settings: Settings, registry: PluginRegistry, monitor: Monitor, publishing: _Link, consuming: _Link
    ) -> None:
        self.settings = settings.connection
        self.registry = registry
        self._defaults = settings
        self._monitor = monitor
        self._publishing = publishing
        self._consuming = consuming
        # What is open is held by its channel, and what was closed is not held here: a service may make a consumer for
        # each message.
        self._producers: WeakSet[Producer] = WeakSet()
        self._consumers: WeakSet[Consumer[Any]] = WeakSet()
        self._own_producer = _OwnProducer(self.producer)

    async def _close(self, ending: contextlib.AsyncExitStack) -> None:
        """Closes what was made here, then its connections, then what `ending` holds, the last first."""
        async with ending:
            ending.push_async_callback(self._publishing.close)
            if self._consuming is not self._publishing:
                ending.push_async_callback(self._consuming.close)
            try:
                for consumer in list(self._consumers):
                    await consumer.close()
                for producer in list(self._producers):
                    await producer.close()
            finally:
                self._consumers.clear()
                self._producers.clear()

    @property
    def connection(self) -> Connection:
        """The connection that publishes, with what was negotiated."""
        connection = self._publishing.connection
        if connection is None:
            raise ConnectionClosed("the client is not connected; use `async with leveret.connect(...)`")
        return connection

    @property
    def channels(self) -> ChannelPool:
        """Lends channels of that connection: `async with client.channels.acquire() as channel:`."""
        return self._publishing.channels

    async def channel(self) -> Channel:
        """Opens a channel on that connection, for methods of AMQP that have no other place here; it is the caller's."""
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
        async with self.channels.acquire() as channel:
            return await topology.declare_on(channel)

    async def purge(self, queue: str) -> int:
        """Drops a queue's ready messages; returns how many there were."""
        async with self.channels.acquire() as channel:
            return await channel.queue_purge(queue)

    async def delete_queue(self, queue: str) -> int:
        """Deletes a queue; returns how many messages it had. A queue that does not exist is no error in RabbitMQ."""
        async with self.channels.acquire() as channel:
            return await channel.queue_delete(queue)

    async def delete_exchange(self, exchange: str) -> None:
        """Deletes an exchange."""
        async with self.channels.acquire() as channel:
            await channel.exchange_delete(exchange)

    # ------------------------------------------------------------------ publishing and consuming

    def message(self, value: Any) -> MessageBuilder:
        """Begins a message that is put together call by call, and published by a producer that this client keeps.

            await client.message(order).exchange("orders").routing_key("order.created").persistent().publish()

        Args:
            value: What the serializer takes, that of the options that `connect` was given.

        Returns:
            See `MessageBuilder`.
        """
        return MessageBuilder(value, self._own_producer)

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
        self,
        queue: str,
        model: type[T],
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        **options: Any,
    ) -> Consumer[T]: ...

    @overload
    def consumer(
        self,
        queue: str,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        **options: Any,
    ) -> Consumer[Any]: ...

    def consumer(
        self,
        queue: str,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        **options: Any,
    ) -> Consumer[Any]:
        """Makes a consumer.

        Args:
            queue: The queue.
            model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
            settings: All options at once; those that `connect` was given by default.
            ordered_by: As in `ConsumerSettings`, or a function of a message that returns its key.
            on_error: What becomes of a message whose handler raised: an `ErrorPolicy`, one action for everything, a
                mapping of exception classes to actions, or a function `(error, message)` that returns an action, or
                True to retry and False to dead-letter. None: `Requeue`.
            **options: Single options of `ConsumerSettings`, over those of `settings`.

        Returns:
            The consumer, not started yet.

        Raises:
            ConfigurationError: An option is unknown or out of range, or no serializer makes the model.
        """
        if ordered_by is not None and not callable(ordered_by):
            options["ordered_by"] = ordered_by
        consumer: Consumer[Any] = Consumer(
            self._consuming,
            queue,
            model,
            (settings or self._defaults.consumer).replace(**options),
            self.registry,
            ordered_by=ordered_by if callable(ordered_by) else None,
            on_error=on_error,
            publishing=self._publishing,
        )
        self._consumers.add(consumer)
        self._monitor.add(consumer, "consumer", queue, consumer.meter)
        return consumer

    @overload
    def queue(self, queue: str, model: type[T]) -> Consumption[T]: ...

    @overload
    def queue(self, queue: str, model: Any = None) -> Consumption[Any]: ...

    def queue(self, queue: str, model: Any = None) -> Consumption[Any]:
        """Begins a consumer that is put together call by call.

            await client.queue("billing", Order).concurrency(8).prefetch(100).consume(handler)

        Args:
            queue: The queue.
            model: As for `consumer`.

        Returns:
            See `Consumption`.
        """
        return Consumption(self, queue, model)

    @overload
    def batches(
        self,
        queue: str,
        model: type[T],
        settings: ConsumerSettings | None = None,
        *,
        size: int = 100,
        wait: float = 0.1,
        **options: Any,
    ) -> Batches[T]: ...

    @overload
    def batches(
        self,
        queue: str,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        size: int = 100,
        wait: float = 0.1,
        **options: Any,
    ) -> Batches[Any]: ...

    def batches(
        self,
        queue: str,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        size: int = 100,
        wait: float = 0.1,
        **options: Any,
    ) -> Batches[Any]:
        """Makes a consumer that takes messages in batches, each with one acknowledgement.

            async for batch in client.batches("billing", Order, size=500, wait=0.05):
                await store(batch.values)
                batch.ack()

        Args:
            queue: The queue.
            model: As for `consumer`.
            settings: As for `consumer`.
            size: The most messages of a batch, 1 to 65535.
            wait: Seconds that the first message of a batch waits for others at most, 0 to 3600.
            **options: Single options of `ConsumerSettings`. The prefetch is twice the size unless it is given, so that
                the next batch comes while one is worked on.

        Returns:
            See `Batches`.

        Raises:
            ConfigurationError: An option is unknown or out of range, or the prefetch is "auto" or less than the size.
        """
        checked: tuple[object, object] = size, wait  # the types promise it; a caller without a type checker may not
        if type(checked[0]) is not int or not 1 <= size <= _MAX_PREFETCH:
            raise ConfigurationError(f"size is {size!r:.40}; it must be 1 to {_MAX_PREFETCH}", option="size")
        if type(checked[1]) not in (int, float) or not 0 <= wait <= 3600:
            raise ConfigurationError(f"wait is {wait!r:.40} s; it must be 0 to 3600", option="wait")
        if settings is None:
            options.setdefault("prefetch", min(_MAX_PREFETCH, 2 * size))
        consumer = self.consumer(queue, model, settings, **options)
        prefetch = consumer.settings.prefetch
        if prefetch == "auto" or prefetch < size:
            raise ConfigurationError(
                f"prefetch is {prefetch!r}; batches of {size} need a number of at least {size}", option="prefetch"
            )
        if consumer.settings.ordered_by is not None or callable(options.get("ordered_by")):
            raise ConfigurationError(
                "ordered_by is of no use in batches, which keep the queue's order", option="ordered_by"
            )
        return Batches(consumer, size, float(wait))


class Client(_Workplace):
    """Talks to one broker. Made by `connect`.

    Publishing and consuming use separate connections, because a broker that is short of memory stops reading from
    connections that publish, and acknowledgements must still get through (RabbitMQ: connection.blocked). The
    publishing connection is opened by `connect`, the other with the first consumer.

    When a connection is lost, what waits on it ends with a typed error. Producers go on with the next connection, which
    is dialed until it is there (`auto_recovery`); consumers end, and new ones get that connection.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
    """

    def __init__(self, settings: Settings, registry: PluginRegistry) -> None:
        name = settings.connection.client_name
        super().__init__(
            settings,
            registry,
            Monitor(name),
            _Link(settings.connection, f"{name} (publish)", registry),
            _Link(settings.connection, f"{name} (consume)", registry),
        )
        self._monitor.add(self._publishing, "connection", "publish", self._publishing.meter)
        self._monitor.add(self._consuming, "connection", "consume", self._consuming.meter)
        self._sinks = Sinks(registry, settings.monitoring)
        self._dedicated: dict[str, DedicatedConnection] = {}
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_closing = False

    def __repr__(self) -> str:
        return f"<Client {self.settings.redacted_url}>"

    # ------------------------------------------------------------------ life

    async def open(self) -> Client:
        """Opens the publishing connection and starts the metrics sinks; `connect` does it. Again, it does nothing.

        Raises:
            ConnectionClosed: The client was closed.
            LeveretError: What `Connection.open` raises.
            PluginError: A metrics sink could not be started.
        """
        async with self._opening:
            await self._publishing()
            if not self._is_open:
                try:
                    await self._sinks.start(self._monitor)
                except BaseException:
                    await self.close()
                    raise
                self._is_open = True
        return self

    async def close(self) -> None:
        """Flushes and closes the producers, closes the consumers and then all connections; never hangs.

        What cannot be confirmed within `confirm_timeout` seconds ends UNKNOWN; what consumers did not finish goes
        back to its queue.
        """
        self._is_closing = True
        ending = contextlib.AsyncExitStack()
        ending.push_async_callback(self._sinks.close)
        for dedicated in list(self._dedicated.values()):
            ending.push_async_callback(dedicated.close)
        await self._close(ending)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def monitor(self) -> Monitor:
        """Adds up what this client counts; others may add what they count (see `GcPolicy.attach`)."""
        return self._monitor

    def metrics(self) -> list[Sample]:
        """Everything that this client has counted, now; what metrics sinks read.

        Returns:
            A sample for each metric and label set. Counters include producers and consumers that are gone.
        """
        return self._monitor.snapshot()

    # ------------------------------------------------------------------ connections of their own

    def dedicated_connection(self, name: str, max_channels: int | None = None) -> _Opening[DedicatedConnection]:
        """Opens a connection of its own for producers and consumers that shall not share one with the rest.

        Args:
            name: The name that the broker lists, 1 to 200 bytes, unique among those of this client that are open.
            max_channels: The most channels it may have, 1 to 65535; None for `channel_max` of the settings. Both sides
                agree on it, where the broker may lower it, and both enforce it. A producer or consumer has one channel.

        Returns:
            Something to use with `async with`, which closes the connection, or to `await`.

        Raises:
            ConfigurationError: The name or the number is out of range or, when it is opened, the name is in use.
            LeveretError: When it is opened: what `Connection.open` raises.
        """
        settings = _with_argument(self.settings, "client_name", name, "name")
        if max_channels is not None:
            settings = _with_argument(settings, "channel_max", max_channels, "max_channels")

        async def opened() -> DedicatedConnection:
            if name in self._dedicated:
                raise ConfigurationError(
                    f"this client has a dedicated connection named {name!r} already", option="name"
                )
            if self._is_closing:
                raise ConnectionClosed("the client is closed", reply_code=200)
            dedicated = DedicatedConnection(self, settings)
            # Before it is open, so that the name is taken, and whoever closes the client closes it.
            self._dedicated[name] = dedicated
            try:
                await dedicated._publishing()
            except BaseException:
                await dedicated.close()
                raise
            self._monitor.add(dedicated._publishing, "connection", name, dedicated._publishing.meter)
            return dedicated

        return _Opening(opened, f"dedicated_connection({name!r})")


class DedicatedConnection(_Workplace):
    """A connection of its own, with what is made on it. Made by `Client.dedicated_connection`.

    Its producers and consumers share it. A broker that is short of memory stops reading from connections that publish,
    acknowledgements included: what must go on then needs another one.

    It is closed with its client. When it is lost it ends its producers and consumers, and new ones get a new
    connection of the same name, as with `Client`.

    Attributes:
        settings: Those of the client, with this name and number of channels.
        registry: The plugins it uses.
    """

    def __init__(self, client: Client, settings: ConnectionSettings) -> None:
        link = _Link(settings, settings.client_name, client.registry)
        super().__init__(
            dataclasses.replace(client._defaults, connection=settings), client.registry, client._monitor, link, link
        )
        self._others = client._dedicated

    def __repr__(self) -> str:
        return f"<DedicatedConnection {self.name!r} {self.settings.redacted_url}>"

    @property
    def name(self) -> str:
        """The name that the broker lists."""
        return self._publishing.name

    async def close(self) -> None:
        """Flushes and closes its producers, closes its consumers and then the connection; never hangs."""
        ending = contextlib.AsyncExitStack()
        ending.callback(self._forget)
        await self._close(ending)

    def _forget(self) -> None:
        if self._others.get(self.name) is self:
            del self._others[self.name]

    async def __aenter__(self) -> DedicatedConnection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _with_argument(settings: ConnectionSettings, option: str, value: object, argument: str) -> ConnectionSettings:
    """Sets an option that a call knows by another name, which is the one that errors say."""
    try:
        return settings.replace(**{option: value})
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(option, argument), option=argument) from None


class _Closeable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closeable)


class _Opening(Generic[C]):
    """Something that is opened by `await`, which leaves closing to the caller, or by `async with`; once at a time."""

    def __init__(self, opened: Callable[[], Awaitable[C]], what: str) -> None:
        self._opened = opened
        self._what = what
        self._is_used = False
        self._value: C | None = None

    async def _open(self) -> C:
        if self._is_used:
            raise ConfigurationError(f"{self._what} was opened already; call it again for another one")
        self._is_used = True
        try:
            return await self._opened()
        except BaseException:
            # It may be tried again.
            self._is_used = False
            raise

    def __await__(self) -> Generator[Any, None, C]:
        return self._open().__await__()

    async def __aenter__(self) -> C:
        self._value = await self._open()
        return self._value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        value, self._value = self._value, None
        if value is not None:
            await value.close()
        self._is_used = False


def connect(
    target: str | ConnectionSettings | Settings | None = None,
    *,
    plugins: PluginRegistry | PluginSettings | None = None,
    monitoring: MonitoringSettings | None = None,
    **options: Any,
) -> _Opening[Client]:
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

    async def opened() -> Client:
        return await Client(settings, registry or PluginRegistry.load(settings.plugins)).open()

    return _Opening(opened, "connect(...)")
