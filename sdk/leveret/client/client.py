"""The client: the first object that an application holds, with its two connections, and what `connect` does."""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING, Any, Final

from leveret.client.arrival import wait_for_broker
from leveret.client.base import ClientBase
from leveret.client.opening import Opening
from leveret.connection.credentials import Credentials, secret_of
from leveret.connection.link import Link
from leveret.errors import ConfigurationError, ConnectionClosed, TransportError
from leveret.monitoring.monitor import Monitor
from leveret.monitoring.sinks import Sinks
from leveret.plugins.registry import PluginRegistry
from leveret.protocol.transitions import moved
from leveret.runtime.tasks import one_deadline, see_through
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Settings,
)
from leveret.settings.names import arguments_of, refuse_unknown
from leveret.settings.rules import rules_of
from leveret.topology.declared import Declared
from leveret.topology.restoring import Restorer
from leveret.wire.numbers import REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from leveret.client.dedicated_connection import DedicatedConnection
    from leveret.monitoring.alerts import Alert, AlertRule
    from leveret.monitoring.health import Health
    from leveret.monitoring.report import QueueDepth, Report
    from leveret.monitoring.reporter import Reporter
    from leveret.plugins.interfaces import Sample
    from leveret.settings import Secret
    from leveret.settings.connection import CredentialProvider

__all__ = ["Client", "ClientState", "check_connection_options", "connect", "connection_settings"]

#: The share of `close_timeout` that is kept for the metrics sinks.
_SINKS: Final = 0.2
#: Seconds between two reports where neither the settings nor the call say it.
_REPORT_EVERY: Final = 10.0


class ClientState(enum.Enum):
    """The life of a client."""

    NEW = "not open yet"
    OPEN = "open: its metrics sinks are started"
    CLOSED = "closed"


#: Which state may follow which.
CLIENT_TRANSITIONS: Final[Mapping[ClientState, frozenset[ClientState]]] = {
    ClientState.NEW: frozenset({ClientState.OPEN, ClientState.CLOSED}),
    ClientState.OPEN: frozenset({ClientState.CLOSED}),
    ClientState.CLOSED: frozenset(),
}


class Client(ClientBase):
    """Talks to one broker. Made by `connect`.

    Publishing and consuming use separate connections, because a broker that is short of memory stops reading from
    connections that publish, and acknowledgements must still get through (RabbitMQ: connection.blocked). The
    publishing connection is opened by `connect`, the other with the first consumer, and further publishing connections
    (`publish_connections`) with their first producers.

    When a connection is lost, producers and consumers wait for the next one and go on, and what was declared here is
    declared again on it; `auto_recovery=False` ends them with the error instead.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
        publishing_links: Give the connections that publish, and recover them; producers get them in turn.
        publishing_link: The first of them, which declares, too.
        consuming_link: Gives the connection that consumes, and recovers it.
        declared: What the client and its dedicated connections have declared and not deleted since.
    """

    def __init__(self, settings: Settings, registry: PluginRegistry) -> None:
        name = settings.connection.client_name
        credentials = self._credentials = Credentials(settings.connection)
        purposes = [
            "publish",
            *(f"publish-{number}" for number in range(2, settings.connection.publish_connections + 1)),
        ]
        links = {
            purpose: Link(settings.connection, f"{name} ({purpose})", registry, credentials)
            for purpose in (*purposes, "consume")
        }
        super().__init__(
            settings,
            registry,
            Monitor(name),
            [links[purpose] for purpose in purposes],
            links["consume"],
            Restorer(Declared()),
        )
        self._links_by_purpose = links
        for purpose, link in links.items():
            self._monitor.add(link, "connection", purpose, link.meter)
        self._sinks = Sinks(registry, settings.monitoring)
        self._dedicated: dict[str, DedicatedConnection] = {}
        self._opening = asyncio.Lock()
        self._opened_at: float | None = None
        self._reporter: Reporter | None = None
        self._state = ClientState.NEW

    def __repr__(self) -> str:
        return f"<Client {self.settings.redacted_url}>"

    # ------------------------------------------------------------------ life

    async def open(self) -> Client:
        """Opens the publishing connection and starts the metrics sinks; `connect` does it. Again, it does nothing.

        Raises:
            ConnectionClosed: The client was closed.
            LeveretError: What `Connection.open` raises; with `wait`, when the last attempt in that time failed.
            PluginError: A metrics sink could not be started.
        """
        async with self._opening:
            if self.settings.wait and self.publishing_link.connection is None:
                await wait_for_broker(self.publishing_link, self.settings.wait, self.settings.recovery_initial_delay)
            else:
                await self.publishing_link()
            for link in self._links:
                link.established = True
            if self._state is ClientState.NEW:
                try:
                    await self._sinks.start(self._monitor)
                except BaseException:
                    await self.close()
                    raise
                self._move(ClientState.OPEN)
                self._opened_at = time.monotonic()
                if self._defaults.monitoring.reports:
                    self.report()
        return self

    async def close(self) -> None:
        """Closes the consumers, the producers and then all connections, within `close_timeout` seconds in all.

        Producers wait for the outcomes of what they published. What the broker does not answer in time ends UNKNOWN,
        what consumers did not finish goes back to its queue, and both are logged. To wait longer, `flush` the
        producers and `drain` the consumers before. When the caller is cancelled, closing goes on without it.
        """
        self._move(ClientState.CLOSED)
        await see_through(self._close_all(asyncio.current_task()), f"leveret: close {self!r}")

    async def _close_all(self, caller: asyncio.Task[Any] | None) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.close_timeout
        # Sinks read the last counters, so they come last, and get a share even when the broker takes all the rest.
        until = deadline - (_SINKS * self.settings.close_timeout if self._sinks else 0.0)
        dedicated = list(self._dedicated.values())
        try:
            closing = [self._close(until), *(it.close_by(until) for it in dedicated)]
            if self._reporter is not None:
                closing.append(self._reporter.close(max(0.0, until - loop.time()), caller))
            results = await asyncio.gather(*closing, return_exceptions=True)
        finally:
            # At the end of a loop all of that may be cancelled, before it has begun.
            for link in (*self._links, *(it.publishing_link for it in dedicated)):
                link.drop()
            await self._sinks.close(max(0.0, deadline - loop.time()))
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def update_secret(self, secret: str | Secret, reason: str = "") -> None:
        """Gives the broker a new password or token, for all open connections and for each next one.

        Connections whose token expires are kept open with it (RabbitMQ: connection.update-secret). Callers that wait
        for a connection, because the old secret is refused, try at once with the new one. With `credentials` the next
        connections ask the provider.

        Args:
            secret: The new secret.
            reason: Goes into the broker's log, at most 255 bytes.

        Raises:
            ConfigurationError: The secret is no text that AMQP can carry; nothing was sent.
            OperationTimeout: The broker did not answer within `operation_timeout` seconds.
            ConnectionClosed: The broker refused it (reply code 530); next connections use the one before.
        """
        checked = secret_of(secret)
        links = {*self._links, *(it.publishing_link for it in self._dedicated.values())}
        opened = [link.connection for link in links if link.connection is not None and link.connection.is_open]
        updates = (connection.update_secret(checked, reason) for connection in opened)
        results = await asyncio.gather(*updates, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) == len(results) and all(isinstance(failure, TransportError) for failure in failures):
            # There was no connection to ask, or none is left.
            self._credentials.update(checked)
            failures = []
        for link in links:
            link.hurry()
        if failures:
            raise failures[0]

    def _move(self, state: ClientState) -> None:
        # `close` may be called again, and while `open` starts the sinks.
        if self._state is not ClientState.CLOSED:
            self._state = moved(CLIENT_TRANSITIONS, self._state, state)

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

    def report(
        self,
        *,
        on_report: Callable[[Report], object] | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        rules: Iterable[AlertRule] = (),
        **options: Any,
    ) -> Reporter:
        """Reports from now on: a line in the log for each period, and alerts.

            client.report(every=10, slow_handler=1.0, alert_success=0.99)

        A report has rates, durations with percentiles, shares of success, and the memory and CPU time of the process.
        A further call replaces the reports of the call before. They end with the client. To read numbers now, use
        `metrics`; to hand them to a monitoring system, `MonitoringSettings(sinks=...)`.

        Args:
            on_report: Called with each `Report`; it may be async. What it raises is logged once.
            on_alert: Called with each `Alert`, once when it begins and once when it is over; it may be async.
            rules: Your own alert rules, beside those of the alert options.
            **options: `every` for `report_every` (10 s where the settings say nothing), `queues` for `report_queues`,
                and `slow_handler` and the alerts of `MonitoringSettings`, over those of the settings.

        Returns:
            The reporter; its `last` is the last report.

        Raises:
            ConfigurationError: An option is unknown or out of range, two rules have one name, or a listener is not
                callable.
            ConnectionClosed: The client was closed.
        """
        # Here, because most scripts need none of it.
        from leveret.monitoring.alerts import rules_for
        from leveret.monitoring.reporter import Reporter

        if self._state is ClientState.CLOSED:
            raise ConnectionClosed("the client is closed", reply_code=REPLY_SUCCESS)
        for short in ("every", "queues"):
            if short in options:
                options[f"report_{short}"] = options.pop(short)
        settings = self._defaults.monitoring.replace(**options)
        reporter = Reporter(
            self.settings.client_name,
            settings.report_every or _REPORT_EVERY,
            self._monitor.snapshot,
            self.queue_depth,
            queues=settings.report_queues,
            rules=[*rules_for(settings), *rules],
            on_report=on_report,
            on_alert=on_alert,
        )
        if self._reporter is not None:
            self._reporter.stop()
        self._reporter = reporter
        for part in (self, *self._dedicated.values()):
            part.report_slow_handlers(settings.slow_handler)
        return reporter

    async def queue_depth(self, queue: str) -> QueueDepth:
        """Asks the broker how many messages of a queue are ready, and how many consumers it has (queue.declare-ok).

        Args:
            queue: The queue.

        Returns:
            The counts at the time of the answer. Messages that are delivered and not acknowledged are not counted.

        Raises:
            NotFound: There is no such queue.
            OperationTimeout: The broker did not answer within `operation_timeout`.
            LeveretError: What `Client.channel` raises.
        """
        from leveret.monitoring.report import QueueDepth

        async with (
            one_deadline(self.settings.operation_timeout, f"asking for the depth of queue {queue!r}"),
            self.channels.acquire() as channel,
        ):
            declared = await channel.queue_declare(queue, passive=True)
        return QueueDepth(declared.message_count or 0, declared.consumer_count or 0)

    def health(self) -> Health:
        """Returns whether the client is ready and live, and why not, without a round trip."""
        from leveret.client.health import health_of

        links = dict(self._links_by_purpose)
        links |= {name: dedicated.publishing_link for name, dedicated in self._dedicated.items()}
        consumers = [consumer for part in (self, *self._dedicated.values()) for consumer in part.consumers]
        return health_of(
            links,
            consumers,
            asyncio.get_running_loop().time(),
            opened_at=self._opened_at,
            is_closed=self._state is ClientState.CLOSED,
            alerts=() if self._reporter is None else self._reporter.firing,
        )

    # ------------------------------------------------------------------ connections of their own

    def dedicated_connection(self, name: str, max_channels: int | None = None) -> Opening[DedicatedConnection]:
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

        what = f"dedicated_connection({name!r})"

        def forget() -> None:
            self._dedicated.pop(name, None)

        async def opened() -> DedicatedConnection:
            from leveret.client.dedicated_connection import DedicatedConnection

            if name in self._dedicated:
                raise ConfigurationError(
                    f"this client has a dedicated connection named {name!r} already", option="name"
                )
            if self._state is ClientState.CLOSED:
                raise ConnectionClosed("the client is closed", reply_code=REPLY_SUCCESS)
            all_settings = self._defaults.replace(connection=settings)
            dedicated = DedicatedConnection(
                all_settings, self.registry, self._monitor, self._restorer, self._credentials, forget
            )
            dedicated.report_slow_handlers(self._slow_handler)
            # Noted before it is open: its name is taken from now on, and closing the client closes it.
            self._dedicated[name] = dedicated
            try:
                await dedicated.publishing_link.within(settings.connect_timeout, "connect_timeout", what)
            except BaseException:
                await dedicated.close()
                raise
            self._monitor.add(dedicated.publishing_link, "connection", name, dedicated.publishing_link.meter)
            return dedicated

        return Opening(opened, what)


def _with_argument(settings: ConnectionSettings, option: str, value: object, argument: str) -> ConnectionSettings:
    """Sets an option that a call knows by another name, which is the one that errors say."""
    try:
        return settings.replace(**{option: value})
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(option, argument), option=argument) from None


def check_connection_options(options: Mapping[str, object], taker: Callable[..., object]) -> None:
    """Checks the names of options of connections.

    Args:
        options: The options.
        taker: The function or class that took them: an unknown one may be a misspelt argument of it.

    Raises:
        ConfigurationError: A name is unknown.
    """
    rules = rules_of(ConnectionSettings)
    if not rules.keys() >= options.keys():
        refuse_unknown(options, (*rules, *arguments_of(taker)))


def connection_settings(
    target: str | ConnectionSettings | Settings | None, options: Mapping[str, Any]
) -> ConnectionSettings:
    """Returns the settings of connections that `connect` makes of a target and single options.

    Raises:
        ConfigurationError: As `connect`.
    """
    if target is None:
        return ConnectionSettings.from_env().replace(**options)
    if isinstance(target, str):
        return ConnectionSettings.from_url(target, **options)
    if isinstance(target, ConnectionSettings):
        return target.replace(**options)
    if isinstance(target, Settings):
        return target.connection.replace(**options)
    raise ConfigurationError(
        f"connect takes a URL, ConnectionSettings or Settings, not {type(target).__name__}", option="target"
    )


def connect(
    target: str | ConnectionSettings | Settings | None = None,
    *,
    wait: float | None = None,
    credentials: CredentialProvider | None = None,
    plugins: PluginRegistry | PluginSettings | None = None,
    monitoring: MonitoringSettings | None = None,
    **options: Any,
) -> Opening[Client]:
    """Connects to a broker.

        async with leveret.connect("amqp://localhost", wait=30) as client: ...

    Args:
        target: An AMQP URL such as `amqps://user:password@a,b/vhost?heartbeat=20`, or `ConnectionSettings`, or None
            for the environment's `LEVERET_*` variables and the defaults. `Settings`, for example from
            `leveret.settings.load`, say everything, with the options that producers and consumers begin with; the
            environment is not asked then.
        wait: Seconds to go on while the broker is not there, or refuses the login or the virtual host, 0 to 86400; the
            log says that it waits. None: what the target says, which by default is to try once.
        credentials: A function without arguments, async or plain, that returns `(username, password)`; it is asked at
            each connect. None: what the target says, by default its `username` and `password`.
        plugins: A registry to share between clients, or which installed plugins to load; by default what the `Settings`
            or `LEVERET_PLUGINS_ALLOW` and `LEVERET_PLUGINS_BLOCK` say, or else all.
        monitoring: Which metrics sinks to start; by default what the `Settings` or `LEVERET_MONITORING_SINKS` say, or
            else none.
        **options: Single options of `ConnectionSettings`, over those of the target.

    Returns:
        Something to use with `async with`, which closes the client, or to `await`.

    Raises:
        ConfigurationError: A URL part or option is unknown or out of range; it is named.
        And on entering or awaiting, what `Connection.open` and `PluginRegistry.shared` raise, and `PluginError` when a
        metrics sink cannot be started.
    """
    check_connection_options(options, connect)
    given = {"wait": wait, "credentials": credentials}
    options |= {name: value for name, value in given.items() if value is not None}
    connection = connection_settings(target, options)
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
        return await Client(settings, registry or PluginRegistry.shared(settings.plugins)).open()

    return Opening(opened, "connect(...)")
