"""The base of `Client` and `DedicatedConnection`: links, and the producers and consumers on them."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from weakref import WeakSet

from leveret.client.chosen import Chosen
from leveret.client.closing import close_by
from leveret.client.first_use_producer import FirstUseProducer
from leveret.errors import ConfigurationError, ConnectionClosed
from leveret.plugins.interfaces import BreakerPolicy, RetryPolicy
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.producer import Producer
from leveret.runtime.tasks import one_deadline
from leveret.settings.functions import plain_function, refuse_async_methods
from leveret.settings.names import arguments_of, refuse_unknown
from leveret.settings.rules import rules_of
from leveret.topology.declarer import Declarer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from leveret.connection.channel import Channel
    from leveret.connection.channel_pool import ChannelPool
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.consuming.batches import Batches
    from leveret.consuming.builder import ConsumerBuilder
    from leveret.consuming.consumer import Consumer
    from leveret.consuming.failing.error_policy import DeadLetter, Drop, OnError, Park
    from leveret.monitoring.monitor import Monitor
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings, ProducerSettings, Settings
    from leveret.topology.restoring import Restorer
    from leveret.topology.topology import DeclareReport, QueueInfo, Topology
    from leveret.wire.message import Message

__all__ = ["ClientBase"]

T = TypeVar("T")

#: AMQP's largest prefetch.
_MAX_PREFETCH: Final = 65_535


class ClientBase:
    """The base of clients and dedicated connections: makes producers, consumers and channels on links.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
        publishing_links: Give the connections that publish, and recover them; producers get them in turn.
        publishing_link: The first of them, which declares, too.
        consuming_link: Gives the connection that consumes, and recovers it.
        declared: What the client and its dedicated connections have declared and not deleted since.
    """

    def __init__(
        self,
        settings: Settings,
        registry: PluginRegistry,
        monitor: Monitor,
        publishing: Sequence[Link],
        consuming: Link,
        restorer: Restorer,
    ) -> None:
        self.settings = settings.connection
        self.registry = registry
        self._defaults = settings
        self._chosen_producer = Chosen(settings.producer, self.producer)
        self._chosen_consumer = Chosen(settings.consumer, self.consumer)
        self._monitor = monitor
        self.publishing_links = tuple(publishing)
        self.publishing_link = self.publishing_links[0]
        self.consuming_link = consuming
        self._links = tuple(dict.fromkeys((*publishing, consuming)))
        self._turns = itertools.cycle(self.publishing_links)
        self.declared = restorer.declared
        self._restorer = restorer
        self._declarer = Declarer(restorer.declared, self.publishing_link, consuming)
        for link in self._links:
            link.prepare = functools.partial(restorer.prepare, link)
        # Weak references: an open producer or consumer is kept alive by its channel, and closed ones do not pile up in
        # a service that makes a consumer for each message.
        self._producers: WeakSet[Producer] = WeakSet()
        self._consumers: WeakSet[Consumer[Any]] = WeakSet()
        self._first_use_producer = FirstUseProducer(self.producer, self.publishing_links)
        self._slow_handler = settings.monitoring.slow_handler

    async def _close(self, until: float) -> None:
        """Closes what was made here, then its connections, all before a time of the loop's clock."""
        try:
            await close_by(until, list(self._consumers), list(self._producers), self._links)
        finally:
            for link in self._links:
                link.drop()
            self._consumers.clear()
            self._producers.clear()

    @property
    def consumers(self) -> list[Consumer[Any]]:
        """The consumers that were made here and are still in use."""
        return list(self._consumers)

    def report_slow_handlers(self, seconds: float | None) -> None:
        """Has handlers that take longer reported in the log, of these consumers and further ones; None for no more."""
        self._slow_handler = seconds
        for consumer in self._consumers:
            consumer.report_slow(seconds)

    @property
    def connection(self) -> Connection:
        """The connection that publishes, with what was negotiated; of several, the first."""
        connection = self.publishing_link.connection
        if connection is None:
            raise ConnectionClosed("the client is not connected; use `async with leveret.connect(...)`")
        return connection

    @property
    def channels(self) -> ChannelPool:
        """Lends channels of that connection: `async with client.channels.acquire() as channel:`."""
        return self.publishing_link.channels

    async def channel(self) -> Channel:
        """Opens a channel on that connection, for methods of AMQP that have no other place here; it is the caller's.

        Raises:
            OperationTimeout: A lost connection did not come back, or the broker did not answer, within
                `operation_timeout`.
            LeveretError: What `Connection.channel` raises.
        """
        async with one_deadline(self.settings.operation_timeout, "opening a channel"):
            return await (await self.publishing_link.for_call("a channel")).channel()

    # ------------------------------------------------------------------ topology

    async def declare(self, topology: Topology) -> DeclareReport:
        """Declares exchanges, queues and bindings; what exists with the same arguments stays as it is.

        It takes a few round trips, however many there are. The client remembers what it has declared until it deletes
        or unbinds it, and declares it again on each new connection, before producers and consumers use that. Exclusive
        and server-named queues are declared on the connection that consumes; a new name that the server gives goes to
        the queue's bindings and consumers.

        Args:
            topology: What should exist.

        Returns:
            The queues' names and counts.

        Raises:
            PreconditionFailed: Something exists with other arguments; `argument`, `wanted` and `actual` tell which.
            ChannelClosed: The broker refused for another reason. What comes before it exists.
            OperationTimeout: Not all of it was declared within `operation_timeout` seconds, and as many again for each
                100 entities. What is left out here comes with the next call.
            ConfigurationError: An exclusive or server-named queue belongs to another connection of the client.
        """
        return await self._declarer.declare(topology)

    async def unbind(
        self,
        queue: str | QueueInfo,
        exchange: str,
        routing_key: str = "",
        *,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Undoes `Topology.bind`; a binding that does not exist is no error."""
        await self._declarer.unbind(_name_of(queue), exchange, routing_key, arguments)

    async def unbind_exchange(
        self, destination: str, source: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undoes `Topology.bind_exchange`; a binding that does not exist is no error."""
        await self._declarer.unbind_exchange(destination, source, routing_key, arguments)

    async def purge(self, queue: str | QueueInfo) -> int:
        """Drops a queue's ready messages; returns how many there were."""
        return await self._declarer.purge(_name_of(queue))

    async def delete_queue(self, queue: str | QueueInfo) -> int:
        """Deletes a queue; returns how many messages it had. A queue that does not exist is no error in RabbitMQ."""
        return await self._declarer.delete_queue(_name_of(queue))

    async def delete_exchange(self, exchange: str) -> None:
        """Deletes an exchange."""
        await self._declarer.delete_exchange(exchange)

    # ------------------------------------------------------------------ publishing and consuming

    def message(self, value: Any) -> MessageBuilder:
        """Begins a message that is put together call by call, and published by a producer that this client keeps.

            await client.message(order).exchange("orders").routing_key("order.created").persistent().publish()

        Args:
            value: What the serializer takes, that of the options that `connect` was given.

        Returns:
            See `MessageBuilder`.
        """
        return MessageBuilder(value, self._first_use_producer)

    def producer(
        self,
        settings: ProducerSettings | None = None,
        *,
        retry: RetryPolicy | str | None = None,
        circuit_breaker: BreakerPolicy | str | None = None,
        **options: Any,
    ) -> Producer:
        """Makes a producer; use it with `async with`.

        With `publish_connections` each new producer gets the next of these connections, and keeps it.

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
        settings = self._chosen_producer.settings(settings, options)
        chosen: object = settings.retry if retry is None else retry
        policy = self.registry.retry_policy(chosen) if isinstance(chosen, str) else chosen
        if policy is not None:
            if not isinstance(policy, RetryPolicy):
                raise ConfigurationError(f"retry is a {type(policy).__name__}, which is no RetryPolicy", option="retry")
            refuse_async_methods("retry", policy, RetryPolicy)
        chosen = settings.circuit_breaker if circuit_breaker is None else circuit_breaker
        breaker = self.registry.circuit_breaker(chosen) if isinstance(chosen, str) else chosen
        if breaker is not None:
            if not isinstance(breaker, BreakerPolicy):
                raise ConfigurationError(
                    f"circuit_breaker is a {type(breaker).__name__}, which is no BreakerPolicy",
                    option="circuit_breaker",
                )
            refuse_async_methods("circuit_breaker", breaker, BreakerPolicy)
        link = next(self._turns)
        producer = Producer(link, settings, self.registry, retry=policy, circuit_breaker=breaker)
        self._producers.add(producer)
        self._monitor.add(producer, "producer", settings.exchange, producer.meter)
        return producer

    @overload
    def consumer(
        self,
        queue: str | QueueInfo,
        model: type[T],
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        refused: DeadLetter | Park | Drop | None = None,
        **options: Any,
    ) -> Consumer[T]: ...

    @overload
    def consumer(
        self,
        queue: str | QueueInfo,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        refused: DeadLetter | Park | Drop | None = None,
        **options: Any,
    ) -> Consumer[Any]: ...

    def consumer(
        self,
        queue: str | QueueInfo,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        ordered_by: str | Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        refused: DeadLetter | Park | Drop | None = None,
        **options: Any,
    ) -> Consumer[Any]:
        """Makes a consumer.

        Args:
            queue: The queue's name, or its entry in a `DeclareReport`.
            model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
            settings: All options at once; those that `connect` was given by default.
            ordered_by: As in `ConsumerSettings`, or a function of a message that returns its key.
            on_error: What becomes of a message whose handler raised: an `ErrorPolicy`, one action for everything, a
                mapping of exception classes to actions, or a function `(error, message)` that returns an action, or
                True to try again and False to refuse. None: `Retry()`, that is after 1, 5, 30 and 60 s, then parked.
            refused: What becomes of a message whose handler returned False: `DeadLetter()`, `Park()` or `Drop()`. None:
                dead-lettered where this client has declared the queue with a dead-letter exchange, parked otherwise.
            **options: Single options of `ConsumerSettings`, over those of `settings`.

        Returns:
            The consumer, not started yet.

        Raises:
            ConfigurationError: An option is unknown or out of range, no serializer makes the model, or the queue is
                exclusive to another connection of the client.
        """
        from leveret.consuming.consumer import Consumer  # a program that only publishes does without

        queue = _name_of(queue)
        self._declarer.check_home(queue)
        if callable(ordered_by):
            plain_function("ordered_by", ordered_by, "for each message")
        elif ordered_by is not None:
            options["ordered_by"] = ordered_by
        consumer: Consumer[Any] = Consumer(
            self.consuming_link,
            queue,
            model,
            self._chosen_consumer.settings(settings, options),
            self.registry,
            ordered_by=ordered_by if callable(ordered_by) else None,
            on_error=on_error,
            refused=refused,
            publishing=self.publishing_link,
            restorer=self._restorer,
        )
        consumer.report_slow(self._slow_handler)
        self._consumers.add(consumer)
        self._monitor.add(consumer, "consumer", queue, consumer.meter)
        return consumer

    @overload
    def queue(self, queue: str | QueueInfo, model: type[T]) -> ConsumerBuilder[T]: ...

    @overload
    def queue(self, queue: str | QueueInfo, model: Any = None) -> ConsumerBuilder[Any]: ...

    def queue(self, queue: str | QueueInfo, model: Any = None) -> ConsumerBuilder[Any]:
        """Begins a consumer that is put together call by call.

            await client.queue("billing", Order).concurrency(8).prefetch(100).consume(handler)

        Args:
            queue: As for `consumer`.
            model: As for `consumer`.

        Returns:
            See `ConsumerBuilder`.
        """
        from leveret.consuming.builder import ConsumerBuilder

        return ConsumerBuilder(self, _name_of(queue), model)

    @overload
    def batches(
        self,
        queue: str | QueueInfo,
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
        queue: str | QueueInfo,
        model: Any = None,
        settings: ConsumerSettings | None = None,
        *,
        size: int = 100,
        wait: float = 0.1,
        **options: Any,
    ) -> Batches[Any]: ...

    def batches(
        self,
        queue: str | QueueInfo,
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
            queue: As for `consumer`.
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
        from leveret.consuming.batches import Batches

        rules = rules_of(type(self._defaults.consumer))
        refuse_unknown(options, (*rules, *arguments_of(self.consumer), *arguments_of(self.batches)))
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


def _name_of(queue: str | QueueInfo) -> str:
    from leveret.topology.topology import QueueInfo

    return queue.name if isinstance(queue, QueueInfo) else queue
