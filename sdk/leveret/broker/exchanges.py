"""Exchanges: they find the queues and exchanges that a message goes to next (AMQP 0-9-1 section 3.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from leveret.broker.refusals import precondition_failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.broker.arguments import Arguments
    from leveret.broker.queues import BrokerQueue

__all__ = ["EXCHANGE_TYPES", "Binding", "Exchange"]

_X_MATCHES: Final = ("all", "any", "all-with-x", "any-with-x")


class Binding(NamedTuple):
    """A binding. Two bindings are the same when all fields are equal.

    Attributes:
        source: The exchange's name.
        kind: `queue` or `exchange`.
        destination: The name of the queue or exchange that gets the messages.
        routing_key: The binding key.
        arguments: The packed arguments, sorted, so that they can be compared and hashed.
    """

    source: str
    kind: str
    destination: str
    routing_key: str
    arguments: tuple[tuple[str, str, bytes], ...]

    @classmethod
    def of(cls, source: str, kind: str, destination: str, routing_key: str, arguments: Arguments) -> Binding:
        """Makes a binding from decoded arguments."""
        packed = tuple(sorted((key, entry.letter, entry.raw) for key, entry in arguments.items()))
        return cls(source, kind, destination, routing_key, packed)


class Exchange:
    """The base of all exchange types.

    Args:
        name: The exchange's name; empty for the default exchange.
        vhost: The virtual host's name, for texts.
        durable: Stored and compared only: no exchange outlives the process.
        auto_delete: Whether the exchange is deleted with its last binding.
        internal: Whether publishers may not use it.
        arguments: The arguments of its declaration.
        alternate: The exchange for messages that this one cannot route.

    Attributes:
        bindings: Every binding of which this exchange is the source, with its destination.
        inbound: Every binding of which this exchange is the destination.
    """

    kind: ClassVar[str]
    #: Whether `match` depends on headers, so that its result cannot be cached by routing key.
    by_headers: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        vhost: str,
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Arguments | None = None,
        alternate: str | None = None,
    ) -> None:
        self.name = name
        self.what = f"exchange '{name}' in vhost '{vhost}'"
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = arguments or {}
        self.alternate = alternate
        self.bindings: dict[Binding, BrokerQueue | Exchange] = {}
        self.inbound: dict[Binding, Exchange] = {}

    def add(self, binding: Binding, destination: BrokerQueue | Exchange, arguments: Arguments) -> None:
        """Adds a binding. Adding an existing one changes nothing."""
        self.check(arguments)
        if binding not in self.bindings:
            self.bindings[binding] = destination
            destination.inbound[binding] = self
            self._added(binding, destination, arguments)

    def remove(self, binding: Binding) -> bool:
        """Removes a binding.

        Returns:
            False when there is no such binding.
        """
        destination = self.bindings.pop(binding, None)
        if destination is None:
            return False
        del destination.inbound[binding]
        self._removed(binding)
        return True

    def check(self, arguments: Arguments) -> None:
        """Checks the arguments of a binding.

        Raises:
            Refusal: 406 for invalid arguments.
        """

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        """Returns the destinations of a message; a destination may occur more than once."""
        raise NotImplementedError

    def _added(self, binding: Binding, destination: BrokerQueue | Exchange, arguments: Arguments) -> None:
        """Adds a binding to the index."""

    def _removed(self, binding: Binding) -> None:
        """Removes a binding from the index."""


class DirectExchange(Exchange):
    """Routes to the bindings whose key is the routing key."""

    kind = "direct"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._by_key: dict[str, dict[Binding, BrokerQueue | Exchange]] = {}

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        return self._by_key.get(routing_key, {}).values()

    def _added(self, binding: Binding, destination: BrokerQueue | Exchange, arguments: Arguments) -> None:
        self._by_key.setdefault(binding.routing_key, {})[binding] = destination

    def _removed(self, binding: Binding) -> None:
        bindings = self._by_key[binding.routing_key]
        del bindings[binding]
        if not bindings:
            del self._by_key[binding.routing_key]


class FanoutExchange(Exchange):
    """Routes to every binding."""

    kind = "fanout"

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        return self.bindings.values()


class _Node:
    """A word of binding keys in the trie of a topic exchange."""

    __slots__ = ("children", "destinations", "repeats")

    def __init__(self, word: str = "") -> None:
        self.children: dict[str, _Node] = {}
        self.destinations: dict[Binding, BrokerQueue | Exchange] = {}
        self.repeats = word == "#"


class TopicExchange(Exchange):
    """Routes by words between dots: `*` stands for one word, `#` for any number of them.

    The binding keys form a trie that is walked as a state machine, one step for each word of the routing key. The work
    is bounded by words times nodes, also for keys such as `#.a.#.a.#.a`, for which backtracking would be exponential.
    """

    kind = "topic"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._root = _Node()

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        active: set[_Node] = set()
        _enter(self._root, active)
        # RabbitMQ splits an empty key into no words, and "." into two empty ones.
        for word in routing_key.split(".") if routing_key else ():
            following: set[_Node] = set()
            for node in active:
                if node.repeats:
                    _enter(node, following)
                for step in (word, "*") if word != "*" else ("*",):
                    child = node.children.get(step)
                    # A "#" in the routing key is an ordinary word and matches wildcards only.
                    if child is not None and not child.repeats:
                        _enter(child, following)
            active = following
            if not active:
                return ()
        return [destination for node in active for destination in node.destinations.values()]

    def _added(self, binding: Binding, destination: BrokerQueue | Exchange, arguments: Arguments) -> None:
        node = self._root
        for word in binding.routing_key.split(".") if binding.routing_key else ():
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node(word)
            node = child
        node.destinations[binding] = destination

    def _removed(self, binding: Binding) -> None:
        words = binding.routing_key.split(".") if binding.routing_key else []
        path = [self._root]
        for word in words:
            path.append(path[-1].children[word])
        del path[-1].destinations[binding]
        # Unused nodes would slow down later matches.
        while words and not path[-1].destinations and not path[-1].children:
            path.pop()
            del path[-1].children[words.pop()]


def _enter(node: _Node, active: set[_Node]) -> None:
    # "#" matches no word, too, so entering a node also enters its "#".
    following: _Node | None = node
    while following is not None and following not in active:
        active.add(following)
        following = following.children.get("#")


class HeadersExchange(Exchange):
    """Routes by the message's headers. The binding's `x-match` says whether all or any of them must match."""

    kind = "headers"
    by_headers = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wanted: dict[Binding, tuple[str, dict[str, Any]]] = {}

    def check(self, arguments: Arguments) -> None:
        entry = arguments.get("x-match")
        if entry is None:
            return
        if not entry.is_string:
            raise precondition_failed(
                f"Invalid x-match field type {entry.type_name} (value {entry.printed()}); expected longstr"
            )
        if entry.value not in _X_MATCHES:
            # RabbitMQ prints the value as an Erlang binary.
            raise precondition_failed(
                f'Invalid x-match field value <<"{entry.value}">>; expected all, any, all-with-x, or any-with-x'
            )

    def match(self, routing_key: str, headers: Mapping[str, Any] | None) -> Iterable[BrokerQueue | Exchange]:
        given = headers or {}
        return [
            self.bindings[binding]
            for binding, (mode, wanted) in self._wanted.items()
            if _headers_match(mode, wanted, given)
        ]

    def _added(self, binding: Binding, destination: BrokerQueue | Exchange, arguments: Arguments) -> None:
        mode = str(arguments["x-match"].value) if "x-match" in arguments else "all"
        wanted = {
            key: entry.value
            for key, entry in arguments.items()
            if key != "x-match" and (mode.endswith("-with-x") or not key.startswith("x-"))
        }
        self._wanted[binding] = (mode, wanted)

    def _removed(self, binding: Binding) -> None:
        del self._wanted[binding]


def _headers_match(mode: str, wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    found = (key in given and _equal(value, given[key]) for key, value in wanted.items())
    return any(found) if mode.startswith("any") else all(found)


def _equal(wanted: Any, given: Any) -> bool:
    if wanted is None:
        # A void in the binding requires only that the header is present.
        return True
    if isinstance(wanted, bool) is not isinstance(given, bool):
        # In Python True equals 1, but on the wire they have different types.
        return False
    if isinstance(wanted, bytes) or isinstance(given, bytes):
        return bool(_octets(wanted) == _octets(given))
    return bool(wanted == given)


def _octets(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


EXCHANGE_TYPES: Final[dict[str, type[Exchange]]] = {
    cls.kind: cls for cls in (DirectExchange, FanoutExchange, TopicExchange, HeadersExchange)
}
