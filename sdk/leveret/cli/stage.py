"""The stage of a benchmark: a client with an exchange and a queue that exist only for it."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

import leveret
from leveret.cli.failures import Incomplete
from leveret.errors import printable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from types import TracebackType
    from typing import Self

    from leveret.cli.orders import Order

__all__ = ["STALL", "Broker", "Stage", "Target", "identify", "together"]

#: Seconds without progress after which work counts as failed.
STALL: Final = 30.0
#: Seconds that deleting the exchange and queue may take.
_REMOVE_TIMEOUT: Final = 10.0
#: Seconds without use after which the broker deletes the queue, in case this process is killed.
_EXPIRES: Final = 3600.0
#: Messages per second. All batches start together, so the confirm timeout allows for the last one at this rate.
_SLOWEST_RATE: Final = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A broker, and the options of the queue there.

    Attributes:
        connection: The broker's connection settings.
        embedded: Whether it is the embedded broker, which ends with the command.
        queue_type: `classic` or `quorum`.
        count: The most messages that will be published.
    """

    connection: leveret.ConnectionSettings
    embedded: bool = False
    queue_type: str = "classic"
    count: int = 10_000


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker, as it names itself.

    Attributes:
        product: Its name.
        version: Its version.
        embedded: Whether it is Leveret's embedded broker, in a process of its own.
    """

    product: str
    version: str
    embedded: bool

    def __str__(self) -> str:
        name = printable(f"{self.product} {self.version}", 128)
        return f"the embedded broker in its own process: {name}" if self.embedded else name


def _connect(target: Target) -> Any:
    """Calls `leveret.connect` with a client name that the broker's tools show."""
    return leveret.connect(target.connection, client_name="leveret command")


async def identify(target: Target) -> Broker:
    """Connects once; returns the broker's product and version as it names them, and whether it is embedded."""
    async with _connect(target) as client:
        properties = client.connection.negotiated.server_properties
    names = {name: str(properties.get(name, "unknown")) for name in ("product", "version")}
    return Broker(**names, embedded=target.embedded)


class Stage:
    """A client with one durable queue, bound to one durable exchange. Use it with `async with`.

    The names are new at each use. Leaving the context deletes queue and exchange.

    Args:
        target: The broker, and the options.
        name: The prefix of the names.
        routing_key: The routing key of the binding.

    Attributes:
        client: The client.
        exchange: The exchange's name.
        queue: The queue's name.
        routing_key: The routing key.
    """

    client: leveret.Client

    def __init__(self, target: Target, name: str, routing_key: str) -> None:
        suffix = secrets.token_hex(4)
        self.routing_key = routing_key
        self.exchange = f"{name}-exchange-{suffix}"
        self.queue = f"{name}-{suffix}"
        self._name = name
        self._target = target
        kind: leveret.Classic | leveret.Quorum = leveret.Classic(expires=_EXPIRES)
        if target.queue_type == "quorum":
            kind = leveret.Quorum(arguments={"x-expires": round(_EXPIRES * 1000)})
        self._queue = leveret.Topology().queue(self.queue, kind)
        # auto_delete: the broker deletes the exchange with its last binding, so with the queue.
        self._all = (
            leveret.Topology()
            .exchange(self.exchange, "direct", auto_delete=True)
            .queue(self.queue, kind)
            .bind(self.queue, self.exchange, routing_key)
        )

    async def __aenter__(self) -> Self:
        self.client = await _connect(self._target)
        try:
            await self.client.declare(self._all)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        try:
            # A new connection, because the client's own may be lost or stuck.
            async with asyncio.timeout(_REMOVE_TIMEOUT), _connect(self._target) as client:
                await client.delete_exchange(self.exchange)
                await client.delete_queue(self.queue)
        except (leveret.LeveretError, TimeoutError) as error:
            if not self._target.embedded:
                hours = _EXPIRES / 3600
                click.echo(
                    f"could not delete the queue {self.queue} ({error}); the broker deletes it after {hours:g} h",
                    err=True,
                )
        finally:
            await self.client.close()

    def producer(self, **options: Any) -> leveret.Producer:
        """Makes a producer for the exchange, with options of `ProducerSettings`."""
        patience = max(STALL, self._target.count / _SLOWEST_RATE)
        return self.client.producer(
            exchange=self.exchange, confirm_timeout=patience, publish_timeout=patience, **options
        )

    def consumer(self, model: type[Order], **options: Any) -> leveret.Consumer[Order]:
        """Makes a consumer for the queue, with options of `ConsumerSettings`."""
        return self.client.consumer(self.queue, model, **options)

    async def fill(self, values: Iterable[Order], count: int) -> None:
        """Publishes messages with confirms, and checks that the queue then holds exactly `count`.

        Raises:
            Incomplete: The queue holds another number.
            PublishError: A message was not confirmed.
        """
        async with self.producer() as producer:
            result = await producer.publish_batch(values, self.routing_key)
        result.raise_for_failures()
        await self.expect(count)

    async def expect(self, messages: int, *, consumers: int | None = None) -> None:
        """Waits until the queue holds exactly `messages` messages, and has `consumers` consumers unless that is None.

        Raises:
            Incomplete: The counts still differ after `STALL` seconds without a change.
        """
        last, changed_at = None, time.monotonic()
        while True:
            info = (await self.client.declare(self._queue)).queues[self.queue]
            if info.message_count == messages and consumers in (None, info.consumer_count):
                return
            if info != last:
                last, changed_at = info, time.monotonic()
            elif time.monotonic() > changed_at + STALL:
                raise Incomplete(
                    f"{self._name}: the queue holds {info.message_count} messages for {info.consumer_count} consumers; "
                    f"{messages} messages were expected"
                )
            await asyncio.sleep(0.02)


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Runs coroutines until all have ended. The first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
