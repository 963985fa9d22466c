"""The client: the first object that an application holds, with its two connections, and what `connect` does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
from typing import TYPE_CHECKING, Any, Final

from leveret.client.base import ClientBase
from leveret.client.dedicated_connection import DedicatedConnection
from leveret.client.opening import Opening, check_connection_options
from leveret.connection.link import Link
from leveret.errors import ConfigurationError, ConnectionClosed
from leveret.monitoring.monitor import Monitor
from leveret.monitoring.sinks import Sinks
from leveret.plugins.registry import PluginRegistry
from leveret.protocol.transitions import moved
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Settings,
)
from leveret.wire.numbers import REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from leveret.plugins.interfaces import Sample

__all__ = ["Client", "ClientState", "connect"]


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
    publishing connection is opened by `connect`, the other with the first consumer.

    When a connection is lost, calls that wait on it end with a typed error. With `auto_recovery` producers wait for the
    next connection and go on; consumers go on with `resubscribe`, and end with the error without it.

    Attributes:
        settings: What it was made with.
        registry: The plugins it uses.
        publishing_link: Gives the connection that publishes, and recovers it.
        consuming_link: Gives the connection that consumes, and recovers it.
    """

    def __init__(self, settings: Settings, registry: PluginRegistry) -> None:
        name = settings.connection.client_name
        super().__init__(
            settings,
            registry,
            Monitor(name),
            Link(settings.connection, f"{name} (publish)", registry),
            Link(settings.connection, f"{name} (consume)", registry),
        )
        self._monitor.add(self.publishing_link, "connection", "publish", self.publishing_link.meter)
        self._monitor.add(self.consuming_link, "connection", "consume", self.consuming_link.meter)
        self._sinks = Sinks(registry, settings.monitoring)
        self._dedicated: dict[str, DedicatedConnection] = {}
        self._opening = asyncio.Lock()
        self._state = ClientState.NEW

    def __repr__(self) -> str:
        return f"<Client {self.settings.redacted_url}>"

    # ------------------------------------------------------------------ life

    async def open(self) -> Client:
        """Opens the publishing connection and starts the metrics sinks; `connect` does it. Again, it does nothing.

        Raises:
            ConnectionClosed: The client was closed.
            LeveretError: What `Connection.open` raises.
            PluginError: A metrics sink could not be started.
        """
        async with self._opening:
            await self.publishing_link()
            if self._state is ClientState.NEW:
                try:
                    await self._sinks.start(self._monitor)
                except BaseException:
                    await self.close()
                    raise
                self._move(ClientState.OPEN)
        return self

    async def close(self) -> None:
        """Flushes and closes the producers, closes the consumers and then all connections; never hangs.

        What cannot be confirmed within `confirm_timeout` seconds ends UNKNOWN; what consumers did not finish goes
        back to its queue.
        """
        self._move(ClientState.CLOSED)
        ending = contextlib.AsyncExitStack()
        ending.push_async_callback(self._sinks.close)
        for dedicated in list(self._dedicated.values()):
            ending.push_async_callback(dedicated.close)
        await self._close(ending)

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

        def forget() -> None:
            self._dedicated.pop(name, None)

        async def opened() -> DedicatedConnection:
            if name in self._dedicated:
                raise ConfigurationError(
                    f"this client has a dedicated connection named {name!r} already", option="name"
                )
            if self._state is ClientState.CLOSED:
                raise ConnectionClosed("the client is closed", reply_code=REPLY_SUCCESS)
            all_settings = dataclasses.replace(self._defaults, connection=settings)
            dedicated = DedicatedConnection(all_settings, self.registry, self._monitor, forget)
            # Noted before it is open: its name is taken from now on, and closing the client closes it.
            self._dedicated[name] = dedicated
            try:
                await dedicated.publishing_link()
            except BaseException:
                await dedicated.close()
                raise
            self._monitor.add(dedicated.publishing_link, "connection", name, dedicated.publishing_link.meter)
            return dedicated

        return Opening(opened, f"dedicated_connection({name!r})")


def _with_argument(settings: ConnectionSettings, option: str, value: object, argument: str) -> ConnectionSettings:
    """Sets an option that a call knows by another name, which is the one that errors say."""
    try:
        return settings.replace(**{option: value})
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(option, argument), option=argument) from None


def connect(
    target: str | ConnectionSettings | Settings | None = None,
    *,
    plugins: PluginRegistry | PluginSettings | None = None,
    monitoring: MonitoringSettings | None = None,
    **options: Any,
) -> Opening[Client]:
    """Connects to a broker.

    Args:
        target: An AMQP URL such as `amqps://user:password@a,b/vhost?heartbeat=20`, or `ConnectionSettings`, or None
            for the environment's `LEVERET_*` variables and the defaults. `Settings`, for example from
            `leveret.settings.load`, say everything, with the options that producers and consumers begin with; the
            environment is not asked then.
        plugins: A registry to share between clients, or which installed plugins to load; by default what the `Settings`
            or `LEVERET_PLUGINS_ALLOW` and `LEVERET_PLUGINS_BLOCK` say, or else all.
        monitoring: Which metrics sinks to start; by default what the `Settings` or `LEVERET_MONITORING_SINKS` say, or
            else none.
        **options: Single options of `ConnectionSettings`, over those of the target.

    Returns:
        Something to use with `async with`, which closes the client, or to `await`.

    Raises:
        ConfigurationError: A URL part or option is unknown or out of range; it is named.
        And on entering or awaiting, what `Connection.open` and `PluginRegistry.load` raise, and `PluginError` when a
        metrics sink cannot be started.
    """
    check_connection_options(options, connect)
    if target is None:
        connection = ConnectionSettings.from_env().replace(**options)
    elif isinstance(target, str):
        connection = ConnectionSettings.from_url(target, **options)
    elif isinstance(target, ConnectionSettings):
        connection = target.replace(**options)
    elif isinstance(target, Settings):
        connection = target.connection.replace(**options)
    else:
        raise ConfigurationError(
            f"connect takes a URL, ConnectionSettings or Settings, not {type(target).__name__}", option="target"
        )
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
        return await Client(settings, registry or PluginRegistry.load(settings.plugins)).open()

    return Opening(opened, "connect(...)")
