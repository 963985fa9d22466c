"""The memory of what a client has declared, so that a new connection can declare it again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError
from leveret.topology.entities import (
    BindingEntity,
    ExchangeBindingEntity,
    ExchangeEntity,
    QueueEntity,
    arguments_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Declared", "DeclaredQueue"]

#: How many former names of a server-named queue are still found. A consumer that has found its queue needs none.
_FORMER_NAMES: Final = 8


class DeclaredQueue:
    """A queue that the client has declared, with its bindings.

    Attributes:
        entity: What was declared.
        name: Its name now: another one after a reconnection when the server chooses it.
        home: The link whose connection owns it (exclusive) or whose life its name follows (server-named); None for the
            others, which any connection may use.
        bindings: Its bindings by their keys.
        consumers: This client's consumers of it that have begun and are not closed.
        is_missing: True when it has to be declared again before it can be used: declaring it on the present connection
            was refused, or the broker has deleted it because its last consumer (ours) went.
        is_forgotten: True when this client has deleted it.
    """

    __slots__ = ("bindings", "consumers", "entity", "former_names", "home", "is_forgotten", "is_missing", "name")

    def __init__(self, entity: QueueEntity, name: str, home: object | None) -> None:
        self.entity = entity
        self.name = name
        self.home = home
        self.bindings: dict[tuple[str, str, str], BindingEntity] = {}
        self.consumers: set[object] = set()
        self.former_names: deque[str] = deque(maxlen=_FORMER_NAMES)
        self.is_missing = False
        self.is_forgotten = False

    def __repr__(self) -> str:
        return f"<DeclaredQueue {self.name!r}, {len(self.bindings)} bindings>"

    @property
    def is_transient(self) -> bool:
        """True when the queue goes with a connection or a consumer: exclusive, auto-delete or server-named."""
        return self.entity.needs_home or self.entity.auto_delete

    def check_home(self, link: object) -> None:
        """Refuses a queue that lives on another connection of the client.

        Raises:
            ConfigurationError: It is exclusive to another connection, or the server named it for another one.
        """
        if self.home is not None and self.home is not link:
            kind = "exclusive" if self.entity.exclusive else "server-named"
            raise ConfigurationError(
                f"{kind} queue {self.name!r} was declared for another connection of this client; declare, consume, "
                "purge and delete it through the client or dedicated connection that declared it",
                option="queue",
            )


class Declared:
    """What one client and its dedicated connections have declared and not deleted since.

    It does no input or output: those who declare, bind, unbind and delete tell it after the broker has answered.
    What others delete it does not learn, and a channel of the user's own tells it of deletions only.
    """

    def __init__(self) -> None:
        # All in the order of their first declaration.
        self._exchanges: dict[str, ExchangeEntity] = {}
        self._queues: dict[str, DeclaredQueue] = {}
        self._exchange_bindings: dict[tuple[str, str, str, str], ExchangeBindingEntity] = {}
        # Bindings of queues that this client has not declared.
        self._other_bindings: dict[tuple[str, tuple[str, str, str]], BindingEntity] = {}
        # Former names of server-named queues.
        self._renamed: dict[str, DeclaredQueue] = {}

    def __repr__(self) -> str:
        return f"<Declared {len(self._exchanges)} exchanges, {len(self._queues)} queues>"

    # ------------------------------------------------------------------ what others ask

    def has_dead_letter_exchange(self, queue: str) -> bool:
        """Returns whether this client has declared that queue with a dead-letter exchange."""
        found = self.queue(queue)
        return found is not None and found.entity.arguments.get("x-dead-letter-exchange") is not None

    def is_transient(self, queue: str) -> bool:
        """Returns whether a queue is exclusive, auto-delete or server-named, as far as this client knows.

        Names that begin with `amq.` are the server's, whoever declared the queue.
        """
        found = self.queue(queue)
        return queue.startswith("amq.") if found is None else found.is_transient

    def may_vanish(self, queue: str) -> bool:
        """Returns whether a queue may be deleted when it has no consumer: also one that this client did not declare."""
        found = self.queue(queue)
        return found is None or found.entity.auto_delete or "x-expires" in found.entity.arguments

    def is_stream(self, queue: str) -> bool:
        """Returns whether this client has declared that queue as a stream."""
        found = self.queue(queue)
        return found is not None and found.entity.arguments.get("x-queue-type") == "stream"

    def queue(self, name: str) -> DeclaredQueue | None:
        """Returns the queue of this name, the present or one of the last former ones; None when it is not known."""
        return self._queues.get(name) or self._renamed.get(name)

    def exchanges(self) -> list[ExchangeEntity]:
        """Returns the exchanges, in the order in which they were declared."""
        return list(self._exchanges.values())

    def queues(self) -> list[DeclaredQueue]:
        """Returns the queues, in the order in which they were declared."""
        return list(self._queues.values())

    def exchange_bindings(self) -> list[ExchangeBindingEntity]:
        """Returns the bindings between exchanges, in the order in which they were declared."""
        return list(self._exchange_bindings.values())

    def other_bindings(self) -> list[BindingEntity]:
        """Returns the bindings of queues that this client has not declared."""
        return list(self._other_bindings.values())

    # ------------------------------------------------------------------ what was declared

    def add_exchange(self, exchange: ExchangeEntity) -> None:
        """Remembers an exchange."""
        self._exchanges[exchange.name] = exchange

    def add_queue(self, entity: QueueEntity, name: str = "", home: object | None = None) -> DeclaredQueue:
        """Remembers a queue.

        Args:
            entity: What was declared.
            name: The server's choice when the entity has no name.
            home: See `DeclaredQueue`.
        """
        name = entity.name or name
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = DeclaredQueue(entity, name, home)
            # It may have been bound before it was declared here.
            for key in [key for key in self._other_bindings if key[0] == name]:
                queue.bindings[key[1]] = self._other_bindings.pop(key)
        else:
            queue.entity, queue.home = entity, home
        queue.is_missing = False
        return queue

    def add_binding(self, binding: BindingEntity) -> None:
        """Remembers a binding of a queue."""
        queue = self.queue(binding.queue)
        if queue is None:
            self._other_bindings[binding.queue, binding.key] = binding
        else:
            queue.bindings[binding.key] = binding.of(queue.name)

    def add_exchange_binding(self, binding: ExchangeBindingEntity) -> None:
        """Remembers a binding of an exchange to another one."""
        self._exchange_bindings[binding.key] = binding

    def rename(self, queue: DeclaredQueue, name: str) -> None:
        """Notes the new name of a server-named queue, which its bindings and consumers use from now on."""
        if name == queue.name or queue.is_forgotten:
            return
        # The first name stays known: it is the one in the `DeclareReport`.
        if len(queue.former_names) == queue.former_names.maxlen:
            self._renamed.pop(queue.former_names[1], None)
            del queue.former_names[1]
        queue.former_names.append(queue.name)
        self._renamed[queue.name] = queue
        del self._queues[queue.name]
        queue.name = name
        self._queues[name] = queue
        queue.bindings = {key: binding.of(name) for key, binding in queue.bindings.items()}

    # ------------------------------------------------------------------ what was deleted

    def forget_queue(self, name: str) -> None:
        """Forgets a queue and its bindings."""
        queue = self.queue(name)
        others = [key for key in self._other_bindings if key[0] == name]
        bindings = [self._other_bindings.pop(key) for key in others]
        if queue is not None:
            bindings += queue.bindings.values()
            del self._queues[queue.name]
            for former in queue.former_names:
                self._renamed.pop(former, None)
            queue.is_forgotten = True
            queue.bindings = {}
        self._forget_unused([binding.exchange for binding in bindings])

    def forget_exchange(self, name: str) -> None:
        """Forgets an exchange and its bindings."""
        self._exchanges.pop(name, None)
        for queue in self._queues.values():
            for key in [key for key in queue.bindings if key[0] == name]:
                del queue.bindings[key]
        for other in [key for key, binding in self._other_bindings.items() if binding.exchange == name]:
            del self._other_bindings[other]
        bindings = [it for it in self._exchange_bindings.values() if name in (it.source, it.destination)]
        for binding in bindings:
            del self._exchange_bindings[binding.key]
        self._forget_unused([it.source for it in bindings if it.source != name])

    def forget_binding(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Forgets a binding of a queue."""
        key = (exchange, routing_key, arguments_key(arguments))
        found = self.queue(queue)
        if found is not None:
            found.bindings.pop(key, None)
        self._other_bindings.pop((queue, key), None)
        self._forget_unused([exchange])

    def forget_exchange_binding(
        self, destination: str, source: str, routing_key: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Forgets a binding of an exchange to another one."""
        self._exchange_bindings.pop((destination, source, routing_key, arguments_key(arguments)), None)
        self._forget_unused([source])

    def leave(self, queue: DeclaredQueue, consumer: object) -> None:
        """Notes that a consumer is closed; the broker deletes an auto-delete queue with its last one."""
        if consumer in queue.consumers:
            queue.consumers.remove(consumer)
            if queue.entity.auto_delete and not queue.consumers and not queue.is_forgotten:
                self.forget_queue(queue.name)

    def forget_home(self, home: object) -> None:
        """Forgets the queues of a connection that this side has closed: they went with it."""
        for queue in [queue for queue in self._queues.values() if queue.home is home]:
            self.forget_queue(queue.name)

    # ------------------------------------------------------------------ inside

    def _forget_unused(self, exchanges: list[str]) -> None:
        """Forgets auto-delete exchanges whose last binding has gone: the broker has deleted them."""
        for name in dict.fromkeys(exchanges):
            exchange = self._exchanges.get(name)
            if exchange is not None and exchange.auto_delete and not self._has_bindings(name):
                self.forget_exchange(name)

    def _has_bindings(self, source: str) -> bool:
        return (
            any(key[0] == source for queue in self._queues.values() for key in queue.bindings)
            or any(binding.exchange == source for binding in self._other_bindings.values())
            or any(binding.source == source for binding in self._exchange_bindings.values())
        )
