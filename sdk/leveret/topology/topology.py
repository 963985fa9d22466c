"""Topologies: exchanges, queues and bindings that are described first and then declared together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from leveret.errors import ConfigurationError
from leveret.records import dataclass, field
from leveret.settings.names import CheckedNames
from leveret.topology.entities import BindingEntity, ExchangeBindingEntity, ExchangeEntity, QueueEntity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["Classic", "DeclareReport", "QueueInfo", "Quorum", "Topology"]

_EXCHANGE_TYPES: Final = ("direct", "fanout", "topic", "headers")


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classic(CheckedNames):
    """A classic queue (RabbitMQ: classic queues); `arguments` holds what has no field here.

    Attributes:
        dead_letter_exchange: Where refused and expired messages go.
        dead_letter_routing_key: Their routing key there; their own by default.
        message_ttl: Seconds that a message may wait.
        expires: Seconds after which an unused queue is deleted.
        max_length: Messages it may hold.
        max_length_bytes: Bytes of bodies it may hold.
        overflow: What happens beyond that: `drop-head` or `reject-publish`.
        max_priority: Makes it a priority queue, 1 to 255.
        single_active_consumer: One consumer at a time.
        arguments: Further x-arguments, as AMQP has them.
    """

    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    message_ttl: float | None = None
    expires: float | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: Literal["drop-head", "reject-publish"] | None = None
    max_priority: int | None = None
    single_active_consumer: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def x_arguments(self) -> dict[str, Any]:
        """The arguments of queue.declare."""
        return _x_arguments(
            self.arguments,
            {
                "x-dead-letter-exchange": self.dead_letter_exchange,
                "x-dead-letter-routing-key": self.dead_letter_routing_key,
                "x-message-ttl": _milliseconds(self.message_ttl),
                "x-expires": _milliseconds(self.expires),
                "x-max-length": self.max_length,
                "x-max-length-bytes": self.max_length_bytes,
                "x-overflow": self.overflow,
                "x-max-priority": self.max_priority,
                "x-single-active-consumer": True if self.single_active_consumer else None,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum(CheckedNames):
    """A quorum queue (RabbitMQ: quorum queues), replicated and always durable.

    Attributes:
        delivery_limit: How often a message may be returned before it is dead-lettered, or dropped where there is no
            dead-letter exchange. RabbitMQ 3.10 has no limit by default, 4.0 and 4.3 have 20.
        dead_letter_exchange: Where refused and expired messages go.
        dead_letter_routing_key: Their routing key there; their own by default.
        message_ttl: Seconds that a message may wait.
        max_length: Messages it may hold.
        max_length_bytes: Bytes of bodies it may hold.
        overflow: What happens beyond that: `drop-head` or `reject-publish`.
        single_active_consumer: One consumer at a time.
        arguments: Further x-arguments, as AMQP has them.
    """

    delivery_limit: int | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    message_ttl: float | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: Literal["drop-head", "reject-publish"] | None = None
    single_active_consumer: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def x_arguments(self) -> dict[str, Any]:
        """The arguments of queue.declare."""
        return _x_arguments(
            self.arguments,
            {
                "x-queue-type": "quorum",
                "x-delivery-limit": self.delivery_limit,
                "x-dead-letter-exchange": self.dead_letter_exchange,
                "x-dead-letter-routing-key": self.dead_letter_routing_key,
                "x-message-ttl": _milliseconds(self.message_ttl),
                "x-max-length": self.max_length,
                "x-max-length-bytes": self.max_length_bytes,
                "x-overflow": self.overflow,
                "x-single-active-consumer": True if self.single_active_consumer else None,
            },
        )


def _x_arguments(extra: Mapping[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in named.items() if value is not None}
    both = sorted(extra.keys() & given.keys())
    if both:
        raise ConfigurationError(f"argument {both[0]} is given twice", option="arguments")
    return {**extra, **given}


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A declared queue, as the broker describes it.

    Attributes:
        name: Its name; for a queue that was declared without one, the server's choice.
        message_count: Ready messages.
        consumer_count: Active consumers.
    """

    name: str
    message_count: int
    consumer_count: int


@dataclass(frozen=True, slots=True)
class DeclareReport:
    """The result of `Client.declare`.

    Attributes:
        exchanges: The names of the exchanges that exist now.
        queues: The queues, by the name they were declared with.
        bindings: How many bindings exist now.
    """

    exchanges: tuple[str, ...]
    queues: Mapping[str, QueueInfo]
    bindings: int


class Topology:
    """Exchanges, queues and bindings; each method returns the topology, so that calls chain.

    Declaring is idempotent: what exists with the same arguments is left as it is.

    Example:
        >>> topology = (Topology()
        ...     .exchange("orders", "topic")
        ...     .queue("billing", Quorum(delivery_limit=5))
        ...     .bind("billing", "orders", "order.*"))
    """

    def __init__(self) -> None:
        self._exchanges: list[ExchangeEntity] = []
        self._queues: list[QueueEntity] = []
        self._bindings: list[BindingEntity | ExchangeBindingEntity] = []

    def __repr__(self) -> str:
        return f"Topology({', '.join(map(str, (*self._exchanges, *self._queues, *self._bindings)))})"

    @property
    def exchanges(self) -> tuple[ExchangeEntity, ...]:
        """The exchanges, in the order in which they were added."""
        return tuple(self._exchanges)

    @property
    def queues(self) -> tuple[QueueEntity, ...]:
        """The queues, in the order in which they were added."""
        return tuple(self._queues)

    @property
    def bindings(self) -> tuple[BindingEntity | ExchangeBindingEntity, ...]:
        """The bindings, in the order in which they were added."""
        return tuple(self._bindings)

    def exchange(
        self,
        name: str,
        type: str = "direct",  # noqa: A002 - AMQP's word
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Adds an exchange.

        Args:
            name: At most 255 bytes.
            type: direct, fanout, topic, headers, or a plugin's type that begins with `x-`.
            durable: It survives a restart of the broker.
            auto_delete: It goes when its last binding goes.
            internal: Only other exchanges may publish to it.
            arguments: For example `alternate-exchange`.

        Raises:
            ConfigurationError: The type is none of these.
        """
        if type not in _EXCHANGE_TYPES and not type.startswith("x-"):
            raise ConfigurationError(
                f"exchange {name!r} has type {type!r}; it must be one of {', '.join(_EXCHANGE_TYPES)} or begin with x-",
                option="type",
            )

        self._exchanges.append(
            ExchangeEntity(
                name=name,
                type=type,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=dict(arguments or {}),
            )
        )
        return self

    def queue(
        self,
        name: str = "",
        kind: Classic | Quorum | None = None,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
    ) -> Self:
        """Adds a queue.

        Args:
            name: At most 255 bytes; when it is empty the server chooses, and `DeclareReport.queues[""]` tells.
            kind: `Classic()` by default, or `Quorum()`.
            durable: It survives a restart of the broker.
            exclusive: For one connection only, and deleted with it. A client declares it on the connection that its
                consumers use, and declares it again on the next connection.
            auto_delete: It goes when its last consumer goes.

        Raises:
            ConfigurationError: A quorum queue cannot be exclusive, auto-deleted, transient or without a name.
        """
        if isinstance(kind, Quorum) and (not durable or exclusive or auto_delete or not name):
            raise ConfigurationError(
                f"quorum queue {name!r} must be durable, named, and neither exclusive nor auto-deleted", option="kind"
            )
        if kind is not None and not isinstance(kind, Classic | Quorum):
            raise ConfigurationError(f"queue {name!r} must be Classic(...) or Quorum(...), not {kind!r}", option="kind")
        if not name and any(not queue.name for queue in self._queues):
            raise ConfigurationError(
                "a topology has one queue without a name; declare another topology for the next one", option="name"
            )
        self._queues.append(
            QueueEntity(
                name=name,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=(kind or Classic()).x_arguments(),
            )
        )
        return self

    def bind(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> Self:
        """Binds a queue to an exchange.

        Args:
            queue: The queue; an empty name means the one that the server names in this topology.
            exchange: The exchange.
            routing_key: With topic exchanges `*` stands for one word and `#` for any number of words.
            arguments: For headers exchanges: the headers to match, and `x-match`.
        """
        self._bindings.append(
            BindingEntity(queue=queue, exchange=exchange, routing_key=routing_key, arguments=dict(arguments or {}))
        )
        return self

    def bind_exchange(
        self, destination: str, source: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> Self:
        """Binds an exchange to another exchange (RabbitMQ: exchange to exchange bindings)."""
        self._bindings.append(
            ExchangeBindingEntity(
                destination=destination, source=source, routing_key=routing_key, arguments=dict(arguments or {})
            )
        )
        return self
