"""Virtual hosts: exchanges, queues and bindings by name, routing, dead-lettering, and the scheduling of deliveries."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.broker.arguments import (
    Arguments,
    QueueOptions,
    alternate_exchange,
    assert_equivalent,
    assert_exchange_arguments,
    assert_queue_arguments,
    queue_module,
    queue_options,
)
from leveret.broker.dead_letters import DeadLetteredMessage
from leveret.broker.exchanges import EXCHANGE_TYPES, Binding, DirectExchange, Exchange
from leveret.broker.queues import BrokerQueue, Timer
from leveret.broker.refusals import Refusal, access_refused, not_found, precondition_failed
from leveret.wire.numbers import COMMAND_INVALID, RESOURCE_LOCKED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from leveret.wire.message import Message

__all__ = ["Scheduler", "VirtualHost"]

logger = logging.getLogger("leveret.broker")

#: The most cached routes. A full cache is cleared, which bounds memory without bookkeeping.
_ROUTES_COUNT: Final = 8192
_PREDECLARED: Final = (
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.topic", "topic"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
)
#: The most messages that are dead-lettered before other connections get their turn. Each takes some ten microseconds.
_LETTERS_COUNT: Final = 256
_UNKNOWN: Final = object()


class Scheduler:
    """Runs the deliveries of queues and the routing of dead letters, one after the other and never nested.

    Code that changes a queue wakes it. A session calls `run` after each read; otherwise it runs in the next turn of the
    event loop. Dead letters have a queue of their own here, so that a chain of dead-letter exchanges does not become a
    chain of nested calls.

    Args:
        loop: The broker's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._awake: dict[BrokerQueue, None] = {}
        self._dead_letters: deque[tuple[VirtualHost, BrokerQueue, list[Message], str]] = deque()
        self._handle: asyncio.Handle | None = None
        self._closed = False

    def wake(self, queue: BrokerQueue) -> None:
        """Schedules the deliveries of a queue."""
        self._awake[queue] = None
        self._schedule()

    def dead_letter(self, vhost: VirtualHost, queue: BrokerQueue, messages: list[Message], reason: str) -> None:
        """Schedules the routing of dead letters."""
        for start in range(0, len(messages), _LETTERS_COUNT):
            self._dead_letters.append((vhost, queue, messages[start : start + _LETTERS_COUNT], reason))
        self._schedule()

    def _schedule(self) -> None:
        if self._handle is None and not self._closed:
            self._handle = self.loop.call_soon(self.run)

    def run(self) -> None:
        """Runs all scheduled work, or as much of it as fits into one turn; the rest is scheduled again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        unfinished = []
        letters = _LETTERS_COUNT
        while self._awake or (self._dead_letters and letters > 0):
            try:
                while self._dead_letters and letters > 0:
                    vhost, source, messages, reason = self._dead_letters.popleft()
                    letters -= len(messages)
                    vhost.publish_dead_letters(source, messages, reason)
                while self._awake:
                    queue = next(iter(self._awake))
                    del self._awake[queue]
                    if queue.dispatch():
                        unfinished.append(queue)
            except Exception:
                # A bug that shows in one queue must not stop the others.
                logger.exception("a queue of the embedded broker failed to deliver")
        for queue in unfinished:
            self.wake(queue)
        if self._dead_letters:
            self._schedule()

    def close(self) -> None:
        """Drops all scheduled work, and schedules no more."""
        self._closed = True
        self._awake.clear()
        self._dead_letters.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class VirtualHost:
    """One virtual host.

    Args:
        name: The virtual host's name.
        scheduler: The broker's scheduler.

    Attributes:
        exchanges: The exchanges by name.
        queues: The queues by name.
    """

    def __init__(self, name: str, scheduler: Scheduler) -> None:
        self.name = name
        self.scheduler = scheduler
        self.queues: dict[str, BrokerQueue] = {}
        self.exchanges: dict[str, Exchange] = {"": _DefaultExchange(self)}
        for exchange, kind in _PREDECLARED:
            self.exchanges[exchange] = EXCHANGE_TYPES[kind](exchange, name)
        self._routes: dict[tuple[str, str], tuple[BrokerQueue, ...] | None] = {}

    # ------------------------------------------------------------------ called by queues

    def time(self) -> float:
        """Returns the seconds on the event loop's clock."""
        return self.scheduler.loop.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back after `delay` seconds."""
        return self.scheduler.loop.call_later(delay, callback)

    def wake(self, queue: BrokerQueue) -> None:
        """Schedules the deliveries of a queue."""
        self.scheduler.wake(queue)

    def dead_letter(self, queue: BrokerQueue, messages: list[Message], reason: str) -> None:
        """Schedules the dead-lettering of messages, or drops them when the queue has no dead-letter exchange."""
        if messages and queue.options.dead_letter_exchange is not None:
            self.scheduler.dead_letter(self, queue, messages, reason)

    # ------------------------------------------------------------------ routing

    def route(self, exchange: str, routing_key: str) -> tuple[BrokerQueue, ...] | None:
        """Finds the queues for messages with this exchange and routing key.

        Args:
            exchange: The exchange's name.
            routing_key: The routing key.

        Returns:
            The queues, each once; None when the route depends on headers, see `route_by_headers`.

        Raises:
            Refusal: 404 when the exchange does not exist, 403 when it is internal.
        """
        queues: Any = self._routes.get((exchange, routing_key), _UNKNOWN)
        if queues is _UNKNOWN:
            start = self.exchange(exchange)
            if start.internal:
                raise access_refused(f"cannot publish to internal {start.what}")
            queues = self._walk(start, routing_key, None)
            if len(self._routes) >= _ROUTES_COUNT:
                self._routes.clear()
            self._routes[exchange, routing_key] = queues
        return queues  # type: ignore[no-any-return]

    def route_by_headers(
        self, exchange: Exchange, routing_key: str, headers: Mapping[str, Any]
    ) -> tuple[BrokerQueue, ...]:
        """Finds the queues for one message with headers."""
        return self._walk(exchange, routing_key, headers) or ()

    def _walk(
        self, start: Exchange, routing_key: str, headers: Mapping[str, Any] | None
    ) -> tuple[BrokerQueue, ...] | None:
        """Follows bindings from exchange to exchange, each once; returns None when headers are needed and missing."""
        queues: dict[BrokerQueue, None] = {}
        seen = {start}
        waiting = [start]
        while waiting:
            exchange = waiting.pop()
            if exchange.by_headers and headers is None:
                return None
            found: Iterable[BrokerQueue | Exchange] = exchange.match(routing_key, headers)
            if exchange.alternate is not None and not found:
                alternate = self.exchanges.get(exchange.alternate)
                found = () if alternate is None else (alternate,)
            for destination in found:
                if isinstance(destination, BrokerQueue):
                    queues[destination] = None
                elif destination not in seen:
                    seen.add(destination)
                    waiting.append(destination)
        return tuple(queues)

    def exchange(self, name: str) -> Exchange:
        """Returns an exchange.

        Raises:
            Refusal: 404 when it does not exist.
        """
        found = self.exchanges.get(name)
        if found is None:
            raise not_found(self._what("exchange", name))
        return found

    def queue(self, name: str, owner: object) -> BrokerQueue:
        """Returns a queue that `owner` may use.

        Raises:
            Refusal: 404 when it does not exist, 405 when it is exclusive to another connection.
        """
        found = self.queues.get(name)
        if found is None:
            raise not_found(self._what("queue", name))
        if found.owner is not None and found.owner is not owner:
            raise _locked(found)
        return found

    def _what(self, kind: str, name: str) -> str:
        return f"{kind} '{name}' in vhost '{self.name}'"

    # ------------------------------------------------------------------ exchanges

    def declare_exchange(
        self, name: str, kind: str, *, durable: bool, auto_delete: bool, internal: bool, arguments: Arguments
    ) -> None:
        """Creates an exchange, or checks that the existing one is equivalent.

        Raises:
            Refusal: 403, 406, 503 or 540.
        """
        cls = EXCHANGE_TYPES.get(kind)
        if cls is None:
            raise Refusal(COMMAND_INVALID, f"unknown exchange type '{kind}'")
        name = _stripped(name)
        _assert_not_default(name)
        found = self.exchanges.get(name)
        if found is None:
            if name.startswith("amq."):
                raise access_refused(f"exchange name '{name}' contains reserved prefix 'amq.*'")
            alternate = alternate_exchange(arguments, self._what("exchange", name))
            self.exchanges[name] = cls(
                name,
                self.name,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=arguments,
                alternate=alternate,
            )
            self._routes.clear()
            return
        assert_equivalent(found.kind, kind, found.what, "type")
        assert_equivalent(found.durable, durable, found.what, "durable")
        assert_equivalent(found.auto_delete, auto_delete, found.what, "auto_delete")
        assert_equivalent(found.internal, internal, found.what, "internal")
        assert_exchange_arguments(found.arguments, arguments, found.what)

    def check_exchange(self, name: str) -> None:
        """Answers a passive declare.

        Raises:
            Refusal: 404 or 403.
        """
        name = _stripped(name)
        _assert_not_default(name)
        self.exchange(name)

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Deletes an exchange, if it exists (as RabbitMQ since 3.2).

        Raises:
            Refusal: 403 or 406.
        """
        name = _stripped(name)
        _assert_not_default(name)
        if name.startswith("amq."):
            raise access_refused(f"deletion of system {self._what('exchange', name)} not allowed")
        found = self.exchanges.get(name)
        if found is None:
            return
        if if_unused and found.bindings:
            raise precondition_failed(f"{found.what} in use")
        self._delete_exchanges([found])

    def _delete_exchanges(self, doomed: list[Exchange]) -> None:
        # A list instead of recursion: auto-delete exchanges may be bound in a chain of any length.
        while doomed:
            exchange = doomed.pop()
            if self.exchanges.pop(exchange.name, None) is None:
                continue
            for binding in list(exchange.bindings):
                exchange.remove(binding)
            doomed += self._unbind_all(exchange)
        self._routes.clear()

    def _unbind_all(self, destination: BrokerQueue | Exchange) -> list[Exchange]:
        """Removes the bindings to a destination; returns the auto-delete exchanges that have no bindings left."""
        doomed = []
        for binding, source in list(destination.inbound.items()):
            source.remove(binding)
            if source.auto_delete and not source.bindings:
                doomed.append(source)
        return doomed

    # ------------------------------------------------------------------ queues

    def declare_queue(
        self, name: str, owner: object, *, durable: bool, exclusive: bool, auto_delete: bool, arguments: Arguments
    ) -> BrokerQueue:
        """Creates a queue, or checks that the existing one is equivalent.

        Args:
            name: The queue's name; empty for a name that the broker makes.
            owner: The connection that declares it.
            durable: Whether it is declared durable.
            exclusive: Whether it is declared exclusive.
            auto_delete: Whether it is deleted with its last consumer.
            arguments: The arguments of the declaration.

        Returns:
            The queue.

        Raises:
            Refusal: 403, 405, 406 or 540.
        """
        name = _stripped(name)
        durable = durable and not exclusive
        if not name:
            if queue_module(arguments) == "rabbit_quorum_queue":
                raise precondition_failed("Cannot declare a server-named queue for type rabbit_quorum_queue")
            name = f"amq.gen-{secrets.token_urlsafe(16)}"
        elif name.startswith("amq."):
            raise access_refused(f"queue name '{name}' contains reserved prefix 'amq.*'")
        found = self.queues.get(name)
        if found is not None:
            if found.owner is not (owner if exclusive else None):
                raise _locked(found)
            assert_equivalent(found.durable, durable, found.what, "durable")
            assert_equivalent(found.auto_delete, auto_delete, found.what, "auto_delete")
            assert_queue_arguments(found.arguments, arguments, found.what, found.options.queue_type)
            found.used()
            return found
        options: QueueOptions = queue_options(
            arguments, self._what("queue", name), durable=durable, exclusive=exclusive, auto_delete=auto_delete
        )
        queue = BrokerQueue(
            name,
            self.name,
            self,
            options,
            arguments,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
        )
        self.queues[name] = queue
        self._routes.clear()
        return queue

    def delete_queue(self, queue: BrokerQueue) -> None:
        """Deletes a queue with its bindings and its messages, and cancels its consumers."""
        if self.queues.get(queue.name) is not queue:
            return
        del self.queues[queue.name]
        self._delete_exchanges(self._unbind_all(queue))
        queue.delete()

    # ------------------------------------------------------------------ bindings

    def bind(
        self, source: str, kind: str, destination: str, routing_key: str, arguments: Arguments, owner: object
    ) -> None:
        """Binds a queue or exchange to an exchange.

        Raises:
            Refusal: 403, 404, 405 or 406.
        """
        from_exchange, to = self._ends(source, kind, destination)
        from_exchange.check(arguments)
        if isinstance(to, BrokerQueue) and to.owner is not None and to.owner is not owner:
            raise _locked(to)
        binding = Binding.of(from_exchange.name, kind, to.name, routing_key, arguments)
        from_exchange.add(binding, to, arguments)
        self._routes.clear()

    def unbind(
        self, source: str, kind: str, destination: str, routing_key: str, arguments: Arguments, owner: object
    ) -> None:
        """Removes a binding, if the binding and both its ends exist (as RabbitMQ since 3.2).

        Raises:
            Refusal: 403 or 405.
        """
        source, destination = _stripped(source), _stripped(destination)
        _assert_not_default(source, *((destination,) if kind == "exchange" else ()))
        from_exchange = self.exchanges.get(source)
        if from_exchange is None:
            return
        binding = Binding.of(source, kind, destination, routing_key, arguments)
        to = from_exchange.bindings.get(binding)
        if to is None:
            return
        if isinstance(to, BrokerQueue) and to.owner is not None and to.owner is not owner:
            raise _locked(to)
        from_exchange.remove(binding)
        if from_exchange.auto_delete and not from_exchange.bindings:
            self._delete_exchanges([from_exchange])
        self._routes.clear()

    def _ends(self, source: str, kind: str, destination: str) -> tuple[Exchange, BrokerQueue | Exchange]:
        source, destination = _stripped(source), _stripped(destination)
        _assert_not_default(source, *((destination,) if kind == "exchange" else ()))
        from_exchange = self.exchanges.get(source)
        to: BrokerQueue | Exchange | None = (self.queues if kind == "queue" else self.exchanges).get(destination)
        if from_exchange is None:
            raise not_found(self._what("exchange", source))
        if to is None:
            raise not_found(self._what(kind, destination))
        return from_exchange, to

    # ------------------------------------------------------------------ dead letters

    def publish_dead_letters(self, queue: BrokerQueue, messages: list[Message], reason: str) -> None:
        """Publishes dead letters to the dead-letter exchange of their queue.

        Args:
            queue: The queue that they left.
            messages: The messages.
            reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
        """
        name = queue.options.dead_letter_exchange
        exchange = None if name is None else self.exchanges.get(name)
        if exchange is None:
            return
        for message in messages:
            letter = DeadLetteredMessage.of(message, queue, exchange.name, reason)
            if letter is None:
                logger.warning(
                    "a message from %s was dropped: its x-death header has the most entries allowed", queue.what
                )
                continue
            for target in self.route_by_headers(exchange, letter.message.routing_key, letter.headers):
                if not letter.is_cycle(target.name):
                    target.publish([letter.message])

    def close(self) -> None:
        """Ends all queues and their timers."""
        for queue in list(self.queues.values()):
            queue.delete()
        self.queues.clear()
        self._routes.clear()


class _DefaultExchange(DirectExchange):
    """Routes to the queue whose name is the routing key (AMQP 0-9-1 section 3.1.3.1)."""

    def __init__(self, vhost: VirtualHost) -> None:
        super().__init__("", vhost.name)
        self._queues = vhost.queues

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        queue = self._queues.get(routing_key)
        return () if queue is None else (queue,)


def _stripped(name: str) -> str:
    # As RabbitMQ does, because names are written to log files.
    return name.replace("\n", "").replace("\r", "") if "\n" in name or "\r" in name else name


def _assert_not_default(*names: str) -> None:
    if "" in names:
        raise access_refused("operation not permitted on the default exchange")


def _locked(queue: BrokerQueue) -> Refusal:
    return Refusal(
        RESOURCE_LOCKED,
        f"cannot obtain exclusive access to locked {queue.what}. It could be originally declared on another connection "
        "or the exclusive property value does not match that of the original declaration.",
    )
