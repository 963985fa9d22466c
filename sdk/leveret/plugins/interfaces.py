"""The interfaces of plugins: descriptors, which hooks return, and the objects that their factories make.

Hooks are called when plugins are discovered. A descriptor's factory is called when a producer, consumer or client is
made; from then on its object is called directly, and no message passes through pluggy.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from leveret.records import dataclass
from leveret.settings.names import CheckedNames

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from leveret.errors import LeveretError
    from leveret.message import BatchResult
    from leveret.plugins.distributions import Distribution
    from leveret.publishing.publishing import Receipt

__all__ = [
    "API_VERSION",
    "SERIALIZER_OPTIONS",
    "SUPPORTED_API_VERSIONS",
    "BackoffPolicy",
    "BreakerPolicy",
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

#: The version of this interface; it grows with each incompatible change. Descriptors that name no version have 1.
API_VERSION: Final = 1
SUPPORTED_API_VERSIONS: Final = frozenset({1})
#: The options of producers and consumers that the factory of a serializer may take.
SERIALIZER_OPTIONS: Final = ("rename", "omit_none")


# ---------------------------------------------------------------------- serializers


class Serializer(Protocol):
    """Encodes values into bodies of one content type, and decodes them.

    One object serves one producer or one consumer, in one thread. Both functions are called for each message, so they
    should do all lookups beforehand.
    """

    @property
    def encode(self) -> Callable[[Any], bytes]:
        """The function that encodes a value; it may be a method.

        It returns `bytes`. For a value that it cannot encode it raises any exception, and the core raises
        `EncodeFailed` from it, which names the value's type and never the value. The core shows the text of an
        exception only if it is a `CodecError`; its text must contain nothing of the value.
        """
        ...

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes a body.

        Args:
            model: The type of the values, for example a class; None for plain values.

        Returns:
            The function. For a body that it cannot decode it raises any exception. The core shows the text only of a
            `CodecError`, whose text must contain nothing of the body. Bodies are untrusted: decoding must not run code
            that the sender chose, allocate far more than the body's size, or recurse without a limit.

        Raises:
            ConfigurationError: The serializer cannot decode into this model; `option` is `"model"`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializerSpec(CheckedNames):
    """Describes a serializer. `leveret_serializers` returns these.

    Attributes:
        name: The name for `serializer=`, unique among serializers: lower-case letters, digits, `-`, `_` and `.`.
        content_type: The MIME type that it writes into the `content_type` property, and decodes.
        factory: Makes a `Serializer`.
        aliases: Other content types that it decodes.
        models: Returns whether the serializer is for a model; None for a general serializer. A content type belongs to
            one general serializer. A serializer for certain models may share the content type, and decodes these.
        safe: False when decoding can run code that the sender chose, as with pickle. It then decodes only for a
            consumer that names it with `serializer=`, or its content type with `accept=`.
        options: Which of the options "rename" and "omit_none" the factory takes as keyword arguments; it gets those
            that the producer or consumer sets. `FieldNames` does what they say.
        api_version: The version of the plugin interface that it was written for.

    Example:
        >>> SerializerSpec(name="repr", content_type="text/x-python", factory=object).safe
        True
    """

    name: str
    content_type: str
    factory: Callable[..., Serializer]
    aliases: Sequence[str] = ()
    models: Callable[[Any], bool] | None = None
    safe: bool = True
    options: Sequence[str] = ()
    api_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeSpec(CheckedNames):
    """Describes a serializer that chooses another serializer for each value. `leveret_serializers` may return these.

    Each body has the content type of the serializer that encoded it, so consumers need not guess.

    Attributes:
        name: The name for `serializer=`, unique among serializers.
        parts: The names of the serializers that it chooses among. All of them must exist when it is used.
        select: Returns the name of the part for a value. Called for each message.
        compressor: The compressor of a producer that names none.
        api_version: The version of the plugin interface that it was written for.
    """

    name: str
    parts: Sequence[str]
    select: Callable[[Any], str]
    compressor: str | None = None
    api_version: int = 1


# ---------------------------------------------------------------------- compressors


class Compressor(Protocol):
    """Compresses and decompresses bodies. One object serves one producer or one consumer, in one thread."""

    def compress(self, data: bytes, /) -> bytes:
        """Compresses a body into one complete frame or stream that other languages can read."""
        ...

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses a body that came from the network.

        Args:
            data: One complete frame or stream, with nothing after it.
            max_size: The most bytes to return. The compressor must not allocate much more, whatever size the data
                claims.

        Returns:
            The body.

        Raises:
            BodyTooLarge: The body has more than `max_size` bytes.
            Exception: The data is malformed or truncated, or something follows it. The core raises `DecodeFailed` from
                the exception.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorSpec(CheckedNames):
    """Describes a compressor. `leveret_compressors` returns these.

    Attributes:
        name: The name for `compressor=`, unique among compressors.
        content_encoding: The value that it writes into the `content_encoding` property, and decompresses.
        factory: Makes a `Compressor` for a level; None stands for the compressor's own default.
        levels: The lowest and highest level.
        aliases: Other content encodings that it decompresses.
        api_version: The version of the plugin interface that it was written for.
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
    """Describes a counter, gauge or histogram of the core.

    Attributes:
        name: Lower-case words with `_`, without prefix, unit or `total`.
        kind: "counter" for a number that never falls, "histogram" for the distribution of values, of which each is
            counted once, otherwise "gauge".
        unit: "messages", "bytes" and so on.
        help: A description in one line.
        labels: The names of the labels of its samples.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a metric for one set of labels.

    Attributes:
        metric: The metric.
        labels: The values of the metric's labels, in their order.
        value: The value; of a histogram, how many values came.
        distribution: Of a histogram, the values, in the metric's unit; None of the others.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: int
    distribution: Distribution | None = None

    @property
    def summand(self) -> int | Distribution:
        """What is added up over several clients or labels: the distribution of a histogram, the value of the others."""
        return self.value if self.distribution is None else self.distribution


class MetricsSource(Protocol):
    """The numbers of one client, which a sink reads."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics."""
        ...

    def snapshot(self) -> Iterable[Sample]:
        """Returns the current value of each metric. Any thread may call it; it costs nothing on the message path."""
        ...


class MetricsSink(Protocol):
    """Exports the core's numbers to a monitoring system.

    The core calls both methods in a thread of their own, and waits at most `sink_timeout` seconds for each. An error of
    `start` fails the connect; an error of `close` is logged.
    """

    def start(self, source: MetricsSource, /) -> None:
        """Keeps the source. The sink calls its `snapshot` whenever the monitoring system asks for numbers."""
        ...

    def close(self) -> None:
        """Stops the export and releases the source. Called once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSpec(CheckedNames):
    """Describes a metrics sink. `leveret_metrics` returns these.

    Attributes:
        name: The name for `sinks=` of `MonitoringSettings`, unique among sinks.
        factory: Makes a `MetricsSink` for one client.
        api_version: The version of the plugin interface that it was written for.
        render: Writes the numbers of a source as text for an HTTP answer: the content type, and the body. None when
            the monitoring system does not fetch its numbers. `leveret run --health` calls it, in any thread, for
            `/metrics`.
    """

    name: str
    factory: Callable[[], MetricsSink]
    api_version: int = 1
    render: Callable[[MetricsSource], tuple[str, bytes]] | None = None


# ---------------------------------------------------------------------- policies


@runtime_checkable
class RetryPolicy(Protocol):
    """Decides after a failure whether and when to try again. It is only called after failures."""

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        """Decides about the next attempt.

        Args:
            attempt: The number of failed attempts: 1 after the first.
            error: The exception of the last attempt.

        Returns:
            Seconds to wait before the next attempt, or None to give up.
        """
        ...


@runtime_checkable
class BackoffPolicy(Protocol):
    """Chooses the delays between attempts that continue until one succeeds.

    `recovery_backoff` of `ConnectionSettings` names the policy that recovery asks, before it dials a lost connection
    again, and before a consumer subscribes again. Each link of a client has one object, and `delay` may be called for
    several sequences of attempts by turns. When it raises, or does not return seconds, the delays of the settings are
    used.
    """

    def delay(self, attempt: int, /) -> float:
        """Returns the seconds to wait after `attempt` failed attempts (1 after the first)."""
        ...


@runtime_checkable
class BreakerPolicy(Protocol):
    """A circuit breaker: it refuses calls while too many fail.

    While `closed` is true, the core makes calls without asking, and records only failures, together with the number of
    successes since the last record. Otherwise it calls `before_call` first, and `record` exactly once after each call
    that was allowed.
    """

    @property
    def closed(self) -> bool:
        """True when calls need no permission. It is read for each call, so it should be a plain attribute."""
        ...

    def before_call(self) -> None:
        """Returns when the call is allowed.

        Raises:
            CircuitOpen: The call is not allowed now.
        """
        ...

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        """Counts results.

        Args:
            successes: How many calls succeeded.
            failures: How many calls failed. With 0 and 0, an allowed call ended without a result; for example, it was
                cancelled.
            seconds: The length of the time before now in which the successes happened.
            error: The exception of one of the failed calls.
        """
        ...


PolicyKind = Literal["retry", "backoff", "circuit_breaker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec(CheckedNames):
    """Describes a policy. `leveret_policies` returns these.

    Attributes:
        kind: The interface that it has.
        name: The name for `retry=`, `circuit_breaker=` or `recovery_backoff=`, unique among its kind.
        factory: Makes a `RetryPolicy`, `BackoffPolicy` or `BreakerPolicy` with its default options.
        api_version: The version of the plugin interface that it was written for.
    """

    kind: PolicyKind
    name: str
    factory: Callable[[], RetryPolicy | BackoffPolicy | BreakerPolicy]
    api_version: int = 1


# ---------------------------------------------------------------------- connection events


class ConnectionEventKind(enum.Enum):
    """The kinds of events of a connection."""

    OPENED = "opened"
    """The connection is open."""
    CLOSED = "closed"
    """The client closed the connection (`error` is None), or it was lost."""
    BLOCKED = "blocked"
    """The broker is short of memory or disk and accepts no publishings (RabbitMQ: connection.blocked)."""
    UNBLOCKED = "unblocked"
    """The broker accepts publishings again."""
    RECOVERED = "recovered"
    """The connection replaced one that was lost. The event OPENED came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvent:
    """An event of a connection. `leveret_connection_event` gets these.

    Attributes:
        kind: The kind of event.
        connection_name: The connection's name in the broker's lists, for example "billing (publish)".
        reason: The reason as text that is safe to print, or an empty string.
        error: The error that ended the connection, or None.
    """

    kind: ConnectionEventKind
    connection_name: str
    reason: str = ""
    error: LeveretError | None = None


# ---------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec(CheckedNames):
    """Describes a command of `leveret`. `leveret_cli` returns these.

    Attributes:
        name: The command's name. It must differ from the core's commands.
        help: One line for `leveret --help`.
        load: Imports and returns the `click.Command`. Called when the command runs or its help is shown.
        api_version: The version of the plugin interface that it was written for.
    """

    name: str
    help: str
    load: Callable[[], Any]
    api_version: int = 1


# ---------------------------------------------------------------------- wrapped by plugins


class Publisher(Protocol):
    """A `leveret.Producer`, or a plugin's wrapper around one. A wrapper can be wrapped again.

    The options are those of `leveret.Producer.publish`. `*args` is never passed: with it, type checkers accept the
    producer's typed options for `**options: Any`.
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
    """The second argument of handlers: the part of `leveret.Message` that wrappers of handlers may use."""

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
