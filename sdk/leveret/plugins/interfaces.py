"""What plugins give and get: descriptors, which hooks return, and the objects that their factories make.

Hooks run when plugins are discovered, and then no more. A descriptor's factory runs when a producer, a consumer or a
client is made, and what it returns is called directly from then on: no message passes through pluggy.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from leveret.errors import LeveretError
    from leveret.message import BatchResult
    from leveret.publishing.confirms import Receipt

__all__ = [
    "API_VERSION",
    "SUPPORTED_API_VERSIONS",
    "BackoffPolicy",
    "CircuitBreaker",
    "CommandSpec",
    "CompositeSpec",
    "Compressor",
    "CompressorSpec",
    "ConnectionEvent",
    "ConnectionEventKind",
    "Delivery",
    "Metric",
    "MetricsSink",
    "MetricsSource",
    "MetricsSpec",
    "PolicyKind",
    "PolicySpec",
    "Publisher",
    "RetryPolicy",
    "Sample",
    "Serializer",
    "SerializerSpec",
]

#: Raised when a descriptor or interface changes incompatibly. A descriptor that does not say was written for the first,
#: whatever this is now.
API_VERSION: Final = 1
SUPPORTED_API_VERSIONS: Final = frozenset({1})


# ---------------------------------------------------------------------- serializers


class Serializer(Protocol):
    """Turns values into bodies of one content type, and back.

    One object serves one producer or one consumer, in one thread. Both functions are called directly for each message,
    so look up nothing in them that can be looked up before.
    """

    @property
    def encode(self) -> Callable[[Any], bytes]:
        """Encodes a value. A method will do.

        It returns `bytes`, and raises whatever it likes for a value that it cannot encode: the core raises
        `EncodeFailed` from it, with the value's type and never the value. Texts are shown of a `CodecError` only, whose
        author promises that nothing of the value is in it.
        """
        ...

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes a body.

        Args:
            model: What values should be, for example a class; None for plain values.

        Returns:
            The function. It raises whatever it likes for a body that it cannot decode; texts are shown of a
            `CodecError` only, whose author promises that nothing of the body is in it. Bodies are foreign data: none
            may run code, allocate far more than its size, or recurse without a limit.

        Raises:
            ConfigurationError: It cannot decode into this model; `option` is `"model"`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializerSpec:
    """Describes a serializer; what `leveret_serializers` returns.

    Attributes:
        name: What `serializer=` calls it, unique among serializers: lower-case letters, digits, `-`, `_` and `.`.
        content_type: The MIME type that it writes into the `content_type` property, and reads.
        factory: Makes a `Serializer`.
        aliases: Other content types whose bodies it reads.
        models: Says which models it is for, or None for a general serializer. Of the general serializers one may have
            a content type. One that is for certain models may share it, and decodes those.
        safe: False when decoding can run code that the sender chose, as pickle does: it decodes then only for a
            consumer that names it with `serializer=`, or its content type with `accept=`.
        api_version: The plugin interface that it was written for; 1 when it does not say.

    Example:
        >>> SerializerSpec(name="repr", content_type="text/x-python", factory=object).safe
        True
    """

    name: str
    content_type: str
    factory: Callable[[], Serializer]
    aliases: Sequence[str] = ()
    models: Callable[[Any], bool] | None = None
    safe: bool = True
    api_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeSpec:
    """Describes a serializer that chooses another for each value; `leveret_serializers` may return it, too.

    Every body carries the content type of the serializer that wrote it, so there is nothing to guess when it is read.

    Attributes:
        name: What `serializer=` calls it, unique among serializers.
        parts: The names of the serializers it chooses among; all must be there when it is used.
        select: Returns the part for a value. Called for each message.
        compressor: The compressor that a producer uses with it unless it names one.
        api_version: The plugin interface that it was written for; 1 when it does not say.
    """

    name: str
    parts: Sequence[str]
    select: Callable[[Any], str]
    compressor: str | None = None
    api_version: int = 1


# ---------------------------------------------------------------------- compressors


class Compressor(Protocol):
    """Makes bodies smaller, and whole again. One object serves one producer or one consumer, in one thread."""

    def compress(self, data: bytes, /) -> bytes:
        """Compresses a body into one complete frame or stream that other languages can read."""
        ...

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses a body that came from the network.

        Args:
            data: One complete frame or stream, and nothing behind it.
            max_size: The most bytes to return. Never allocate much more, whatever sizes the data claims.

        Returns:
            The body.

        Raises:
            BodyTooLarge: It has more than `max_size` bytes.
            Exception: It is malformed, cut off, or has something behind it; the core raises `DecodeFailed` from it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorSpec:
    """Describes a compressor; what `leveret_compressors` returns.

    Attributes:
        name: What `compressor=` calls it, unique among compressors.
        content_encoding: What it writes into the `content_encoding` property, and reads.
        factory: Makes a `Compressor` for a level; None stands for its own default.
        levels: The lowest and highest level.
        aliases: Other content encodings that it reads.
        api_version: The plugin interface that it was written for; 1 when it does not say.
    """

    name: str
    content_encoding: str
    factory: Callable[[int | None], Compressor]
    levels: tuple[int, int]
    aliases: Sequence[str] = ()
    api_version: int = 1


# ---------------------------------------------------------------------- metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """Describes a number that the core counts.

    Attributes:
        name: Lower-case words with `_`, without prefix, unit or `total`.
        kind: A counter never falls; a gauge does.
        unit: "messages", "bytes" and so on.
        help: One line that says what is counted.
        labels: The names of the labels that each of its samples has.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number.

    Attributes:
        metric: What it is.
        labels: The values of the metric's labels, in their order.
        value: The number.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: int


class MetricsSource(Protocol):
    """What a sink pulls from."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics that there are."""
        ...

    def snapshot(self) -> Iterable[Sample]:
        """Reads all counters. It may be called from any thread and costs nothing on the message path."""
        ...


class MetricsSink(Protocol):
    """Brings the core's counters somewhere.

    Both methods run in a thread that nobody waits for longer than a few seconds. What they raise is logged.
    """

    def start(self, source: MetricsSource, /) -> None:
        """Begins to pull: keeps the source and calls its `snapshot` when somebody wants the numbers."""
        ...

    def close(self) -> None:
        """Ends it. The source may be gone afterwards. Called once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSpec:
    """Describes a metrics sink; what `leveret_metrics` returns.

    Attributes:
        name: What `sinks=` of `MonitoringSettings` calls it, unique among sinks.
        factory: Makes a `MetricsSink` for one client.
        api_version: The plugin interface that it was written for; 1 when it does not say.
    """

    name: str
    factory: Callable[[], MetricsSink]
    api_version: int = 1


# ---------------------------------------------------------------------- policies


@runtime_checkable
class RetryPolicy(Protocol):
    """Decides after a failure whether and when to try again. It is not called when nothing fails."""

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        """Decides.

        Args:
            attempt: How many attempts have failed: 1 after the first.
            error: What the last one raised.

        Returns:
            Seconds to wait before the next attempt, or None to give up.
        """
        ...


@runtime_checkable
class BackoffPolicy(Protocol):
    """Says how long to wait between attempts of something that goes on until it succeeds.

    `recovery_backoff` of `ConnectionSettings` names the one that recovery asks: before a lost connection is dialed
    again, and before a consumer subscribes again. One is made for each link of a client, and `delay` may be called for
    several sequences of attempts by turns. Where it raises or returns no seconds, the delays of the settings are used.
    """

    def delay(self, attempt: int, /) -> float:
        """Seconds to wait after `attempt` failed attempts (1 after the first)."""
        ...


@runtime_checkable
class CircuitBreaker(Protocol):
    """Stops calls to something that fails too often.

    While `closed` is true, calls are made without asking, and only failures are recorded, together with how many
    successes there were since the last record. Otherwise `before_call` is asked first, and exactly one `record` follows
    each call that it allowed.
    """

    @property
    def closed(self) -> bool:
        """True when calls need not ask. Read for each call, so make it a plain attribute."""
        ...

    def before_call(self) -> None:
        """Allows the call, or not.

        Raises:
            CircuitOpen: Not now.
        """
        ...

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        """Counts results.

        Args:
            successes: How many calls succeeded.
            failures: How many failed. With 0 and 0 an allowed call ended without a result, for example cancelled.
            seconds: The time over which the successes happened, before now.
            error: What one of the failed calls raised.
        """
        ...


PolicyKind = Literal["retry", "backoff", "circuit_breaker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """Describes a policy; what `leveret_policies` returns.

    Attributes:
        kind: Which of the three interfaces it has.
        name: What `retry=`, `circuit_breaker=` or `recovery_backoff=` calls it, unique among its kind.
        factory: Makes a `RetryPolicy`, `BackoffPolicy` or `CircuitBreaker` with its default options.
        api_version: The plugin interface that it was written for; 1 when it does not say.
    """

    kind: PolicyKind
    name: str
    factory: Callable[[], RetryPolicy | BackoffPolicy | CircuitBreaker]
    api_version: int = 1


# ---------------------------------------------------------------------- connection events


class ConnectionEventKind(enum.Enum):
    """What happened to a connection."""

    OPENED = "opened"
    """The handshake is over."""
    CLOSED = "closed"
    """It ended: closed by this side (`error` is None) or lost."""
    BLOCKED = "blocked"
    """The broker is short of memory or disk and takes no publishings (RabbitMQ: connection.blocked)."""
    UNBLOCKED = "unblocked"
    """It takes them again."""
    RECOVERED = "recovered"
    """A connection took the place of one that was lost; OPENED came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvent:
    """What `leveret_connection_event` gets.

    Attributes:
        kind: What happened.
        connection_name: The connection, as the broker lists it, for example "billing (publish)".
        reason: Why, as text that is safe to print; empty when there is nothing to say.
        error: Why the connection was lost, or None.
    """

    kind: ConnectionEventKind
    connection_name: str
    reason: str = ""
    error: LeveretError | None = None


# ---------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """Describes a command of `leveret`; what `leveret_cli` returns.

    Attributes:
        name: The command's name, unique and not one of the core's.
        help: One line for `leveret --help`.
        load: Imports and returns the `click.Command`. Called when the command is run or its help is shown.
        api_version: The plugin interface that it was written for; 1 when it does not say.
    """

    name: str
    help: str
    load: Callable[[], Any]
    api_version: int = 1


# ---------------------------------------------------------------------- what plugins wrap


class Publisher(Protocol):
    """What publishes: a `leveret.Producer`, or a plugin's wrapper around one, which can be wrapped again.

    The options are those of `leveret.Producer.publish`. (`*args` is there because type checkers take `*args: Any,
    **options: Any` for any arguments, and the producer's typed options for a mismatch otherwise. Nothing passes them.)
    """

    async def publish(self, value: Any, routing_key: str = "", *args: Any, **options: Any) -> Receipt:
        """See `leveret.Producer.publish`."""
        ...

    def publish_nowait(self, value: Any, routing_key: str = "", *args: Any, **options: Any) -> Awaitable[Receipt]:
        """See `leveret.Producer.publish_nowait`."""
        ...

    async def publish_batch(
        self, values: Iterable[Any], routing_key: str = "", *args: Any, **options: Any
    ) -> BatchResult:
        """See `leveret.Producer.publish_batch`."""
        ...

    async def flush(self, timeout: float | None = None) -> None:
        """See `leveret.Producer.flush`."""
        ...


class Delivery(Protocol):
    """What handlers get beside the value: a `leveret.Message`, as far as wrappers of handlers need it."""

    @property
    def delivery_tag(self) -> int: ...  # noqa: D102

    @property
    def exchange(self) -> str: ...  # noqa: D102

    @property
    def routing_key(self) -> str: ...  # noqa: D102

    @property
    def consumer_tag(self) -> str: ...  # noqa: D102

    @property
    def redelivered(self) -> bool: ...  # noqa: D102

    @property
    def body_size(self) -> int: ...  # noqa: D102

    @property
    def headers(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def content_type(self) -> str | None: ...  # noqa: D102

    @property
    def correlation_id(self) -> str | None: ...  # noqa: D102

    @property
    def message_id(self) -> str | None: ...  # noqa: D102
