"""Exchanges, queues and bindings as data: what is declared, what is remembered, and what is declared again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leveret.protocol import commands
from leveret.records import dataclass, field, replace

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BindingEntity", "Entity", "ExchangeBindingEntity", "ExchangeEntity", "QueueEntity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeEntity:
    """An exchange; see `Topology.exchange`."""

    name: str
    type: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"exchange {self.name!r}"

    def declare(self) -> commands.Method:
        """Makes exchange.declare."""
        return commands.make(
            commands.Exchange.Declare,
            exchange=self.name,
            exchange_type=self.type,
            passive=False,
            durable=self.durable,
            auto_delete=self.auto_delete,
            internal=self.internal,
            arguments=self.arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntity:
    """A queue; see `Topology.queue`. An empty name lets the server choose one."""

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"queue {self.name!r}" if self.name else "the queue that the server names"

    @property
    def needs_home(self) -> bool:
        """True when one connection owns the queue (exclusive), or its name lives with one (the server chose it)."""
        return self.exclusive or not self.name

    def declare(self, *, passive: str = "") -> commands.Method:
        """Makes queue.declare.

        Args:
            passive: Asks for the queue of this name and creates none.
        """
        return commands.make(
            commands.Queue.Declare,
            queue=passive or self.name,
            passive=bool(passive),
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingEntity:
    """A binding of a queue; see `Topology.bind`."""

    queue: str
    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"binding '{self.exchange} -> {self.queue}'"

    @property
    def key(self) -> tuple[str, str, str]:
        """Tells the bindings of one queue apart."""
        return self.exchange, self.routing_key, arguments_key(self.arguments)

    def of(self, queue: str) -> BindingEntity:
        """Returns the same binding of another queue."""
        return self if queue == self.queue else replace(self, queue=queue)

    def declare(self) -> commands.Method:
        """Makes queue.bind."""
        return commands.make(
            commands.Queue.Bind,
            queue=self.queue,
            exchange=self.exchange,
            routing_key=self.routing_key,
            arguments=self.arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeBindingEntity:
    """A binding of an exchange to another one; see `Topology.bind_exchange`."""

    destination: str
    source: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"binding '{self.source} -> {self.destination}'"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Tells bindings apart."""
        return self.destination, self.source, self.routing_key, arguments_key(self.arguments)

    def declare(self) -> commands.Method:
        """Makes exchange.bind."""
        return commands.make(
            commands.Exchange.Bind,
            destination=self.destination,
            source=self.source,
            routing_key=self.routing_key,
            arguments=self.arguments,
        )


Entity = ExchangeEntity | QueueEntity | BindingEntity | ExchangeBindingEntity


def arguments_key(arguments: Mapping[str, Any] | None) -> str:
    """Makes a key of arguments, which may hold lists and tables and so have no hash."""
    return repr(sorted((arguments or {}).items()))
