"""An application of consumers: handlers that are registered once, and a process that keeps them running."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.app.checks import HealthCheck
from leveret.app.process import check_main_thread
from leveret.app.registration import (
    INFERRED,
    Registration,
    annotated_model,
    check_options,
    check_shared_queue,
    checked_hook,
)
from leveret.app.supervision import GRACE, AppRun
from leveret.client.client import Client, check_connection_options, connect, connection_settings
from leveret.consuming.handlers import check_handler
from leveret.errors import ConfigurationError, ConnectionClosed, LeveretError, OperationTimeout, printable
from leveret.monitoring.health import Health
from leveret.monitoring.logs import process_index
from leveret.runtime.tasks import cancel_all
from leveret.settings import ConnectionSettings, ConsumerSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.interfaces import Sample
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import MonitoringSettings, PluginSettings
    from leveret.topology.topology import Topology

__all__ = ["App"]

H = TypeVar("H", bound="Callable[..., Any]")

#: A day; what is longer is a mistake in the unit.
_MAX_SECONDS: Final = 86_400.0
#: Seconds between two looks at whether an app is ready.
_READY_EVERY: Final = 0.02


class App:
    """Handlers for queues, and the process that runs them.

    Each process has one client, one event loop and a consumer for each handler. A broker that is not there is waited
    for. A consumer that ends because its connection was lost, because the broker cancelled it or because its queue is
    not there (yet), is started again after a random delay that grows from half a second to half a minute. What no
    attempt can mend ends the app: wrong options, a certificate that is refused, a topology that contradicts what
    exists; and credentials or a virtual host that the first connection is refused for, unless `wait` seconds have not
    passed. Once the app was connected, refused ones are tried again, seldom.

    Handlers are called as `handler(value, message)`, and their results mean what they mean to `Consumer.run`.

    Args:
        target: What `leveret.connect` takes: a URL, settings, or None for the environment.
        name: Shown in the broker's management tools (`client_name`) and in logs; None leaves what the target says.
        drain_timeout: Seconds that running handlers get when the app stops, above 0 and up to 86400.
        hook_timeout: Seconds that each start-up and shutdown hook gets, likewise.
        plugins: As for `leveret.connect`.
        monitoring: As for `leveret.connect`.
        **connection_options: Single options of `ConnectionSettings`, over those of the target.

    Attributes:
        name: See above.
        drain_timeout: See above; it may be changed until the app stops.
        hook_timeout: See above.
        topology: What is declared before the consumers start, or None.

    Raises:
        ConfigurationError: An option is unknown or out of range; it is named.

    Example:
        >>> app = App("amqp://localhost", name="shop")
        >>> @app.consumer("billing", prefetch=20)
        ... async def bill(order: dict, message) -> None: ...
        >>> app.registrations[0].queue, app.registrations[0].model
        ('billing', <class 'dict'>)
    """

    def __init__(
        self,
        target: str | ConnectionSettings | Settings | None = None,
        *,
        name: str | None = None,
        drain_timeout: float = 30.0,
        hook_timeout: float = 60.0,
        plugins: PluginRegistry | PluginSettings | None = None,
        monitoring: MonitoringSettings | None = None,
        **connection_options: Any,
    ) -> None:
        check_connection_options(connection_options, App)
        if name is not None:
            connection_options.setdefault("client_name", name)
        self.name = name
        self.drain_timeout = drain_timeout
        self.hook_timeout = _seconds("hook_timeout", hook_timeout)
        self.topology: Topology | None = None
        self._connect = functools.partial(connect, target, plugins=plugins, monitoring=monitoring, **connection_options)
        self._connection_settings = functools.partial(connection_settings, target, connection_options)
        if target is None:
            # The environment is read when the app runs: a module is often imported before it is complete.
            ConnectionSettings().replace(**connection_options)
        else:
            self._connect().drop()
        self._defaults = target.consumer if isinstance(target, Settings) else ConsumerSettings()
        self._registrations: list[Registration] = []
        self._on_startup: list[Callable[[Client], object]] = []
        self._on_shutdown: list[Callable[[Client], object]] = []
        self._checks: list[tuple[Callable[[Client], object], float, float]] = []
        self._run: AppRun | None = None
        self._last_counters: dict[str, int] = {}
        # How many runs have ended.
        self._ended = 0

    def __repr__(self) -> str:
        queues = ", ".join(sorted({it.queue for it in self._registrations}))
        return f"<App {self.name or 'leveret'} consuming {queues or 'nothing'}>"

    # ------------------------------------------------------------------ what it does

    @property
    def drain_timeout(self) -> float:
        """Seconds that running handlers get when the app stops."""
        return self._drain_timeout

    @drain_timeout.setter
    def drain_timeout(self, seconds: float) -> None:
        self._drain_timeout = _seconds("drain_timeout", seconds)

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The handlers, in the order of their registration."""
        return tuple(self._registrations)

    def consumer(
        self, queue: str, *, model: Any = INFERRED, settings: ConsumerSettings | None = None, **options: Any
    ) -> Callable[[H], H]:
        """Registers the decorated function as the handler of a queue; the function stays as it is.

            @app.consumer("billing", prefetch=50, concurrency=8)
            async def bill(order: Order, message: leveret.Message) -> None: ...

        Several handlers on one queue share its messages, each with a consumer and a prefetch of its own. They must have
        one model, because each gets messages of any kind that is in the queue. Methods of an object can be handlers:
        `app.consumer("billing")(billing.handle)`.

        Args:
            queue: The queue, 1 to 255 bytes.
            model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values. When it is
                not given it is the annotation of the handler's first parameter. An annotation that is absent, `Any`
                or `object`, or cannot be resolved (a class that is local to a function, or imported for type checkers
                only) means plain values, without an error.
            settings: All options at once; those of the app's target by default.
            **options: What `Client.consumer` takes, over `settings`: `prefetch`, `concurrency` and so on.

        Returns:
            The decorator.

        Raises:
            ConfigurationError: An option is unknown or out of range, the handler cannot be called with a value and a
                message, it is registered for this queue already, or another handler of the queue has another model,
                `serializer` or `accept`. What only the plugins know, such as whether a
                serializer exists, is checked when the app starts.
        """
        name: object = queue
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= 255:
            raise ConfigurationError("queue is the name of a queue, 1 to 255 bytes", option="queue")
        try:
            check_options(self._defaults if settings is None else settings, options)
        except ConfigurationError as error:
            raise ConfigurationError(f"consumer of queue {queue!r}: {error}", option=error.option) from None

        def register(handler: H) -> H:
            check_handler(handler, queue)
            wanted = annotated_model(handler) if model is INFERRED else model
            registration = Registration(queue, handler, wanted, settings, dict(options))
            check_shared_queue(registration, self._registrations)
            self._registrations.append(registration)
            return handler

        return register

    def on_startup(self, hook: H) -> H:
        """Registers a function that is called with the client after the topology was declared, before any consumer.

        Hooks are called in the order of their registration. An async one is awaited for up to `hook_timeout` seconds; a
        plain one is called in the event loop, and must not block. When one raises, the app ends with that error.

        Args:
            hook: `async def hook(client)` or `def hook(client)`.

        Returns:
            The function.
        """
        self._on_startup.append(checked_hook(hook, "on_startup"))
        return hook

    def on_shutdown(self, hook: H) -> H:
        """Registers a function that is called with the client after the consumers have ended, before it is closed.

        Hooks are called in the reverse order of their registration, and only when the start-up was complete. Otherwise
        as with `on_startup`, except that one that raises is logged and the others are called.

        Args:
            hook: `async def hook(client)` or `def hook(client)`.

        Returns:
            The function.
        """
        self._on_shutdown.append(checked_hook(hook, "on_shutdown"))
        return hook

    def health_check(self, *, every: float = 10.0, timeout: float = 5.0) -> Callable[[H], H]:
        """Registers a function whose answer is part of the app's health, as the decorator `@app.health_check()`.

            @app.health_check(every=15)
            async def database(client: leveret.Client) -> str | None: ...

        It is called with the client while the app consumes. It returns None, or in a few words what is wrong; what it
        raises is wrong, too. While something is wrong, the app is not ready. A plain function is called in a thread.

        Args:
            every: Seconds between two calls, above 0 and up to 86400.
            timeout: Seconds for a call, likewise; an async function is cancelled then.

        Returns:
            The decorator.

        Raises:
            ConfigurationError: A time is out of range, or it is not a function.
        """
        every, timeout = _seconds("every", every), _seconds("timeout", timeout)

        def register(function: H) -> H:
            self._checks.append((checked_hook(function, "health_check"), every, timeout))
            return function

        return register

    # ------------------------------------------------------------------ while it runs

    @property
    def client(self) -> Client:
        """The client of the running app, for handlers and hooks.

        Raises:
            ConnectionClosed: The app is not running.
        """
        if self._run is None or self._run.client is None:
            raise ConnectionClosed("the app is not running: it has a client from its start-up hooks to its shutdown")
        return self._run.client

    def counters(self) -> dict[str, int]:
        """Adds up what the consumers counted since `serve` began, those that were started again included.

        Returns:
            The sums of `Consumer.counters`, and `restarts`: how often a consumer was started again. After the end they
            are the last ones.
        """
        return dict(self._last_counters) if self._run is None else self._run.counters()

    def health(self) -> Health:
        """Returns whether the running app is ready and live, and why not, without a round trip; see `Client.health`.

        An app that is not running is neither. To be called in its event loop.
        """
        if self._run is None:
            return Health(ready=False, live=False, reasons=("the app is not running",))
        return self._run.health()

    def metrics(self) -> list[Sample]:
        """Returns everything that the running app's client has counted; see `Client.metrics`. Empty when it has none.

        Any thread may call it.
        """
        run = self._run
        return [] if run is None or run.client is None else run.client.metrics()

    @property
    def process_index(self) -> int:
        """The number of this process among those of `leveret run --processes N`: 0 to N - 1, and 0 elsewhere.

        It is what the environment variable `LEVERET_PROCESS` says, for work that one of several processes shall do.
        """
        return process_index()

    async def ready(self, timeout: float = 30.0) -> None:
        """Waits until the app is ready: it is connected, and each of its consumers gets deliveries; for tests.

        Args:
            timeout: Seconds to wait at most, above 0.

        Raises:
            OperationTimeout: It was not ready in time; the text says why.
            ConnectionClosed: The app has ended meanwhile.
        """
        began, ended = asyncio.get_running_loop().time(), self._ended
        while not (health := self.health()).ready:
            if self._ended > ended:
                raise ConnectionClosed("the app has ended before it was ready")
            if asyncio.get_running_loop().time() - began >= timeout:
                raise OperationTimeout(f"the app was not ready within {timeout:g} s: {'; '.join(health.reasons)}")
            # Health is computed when it is asked for, so that nothing is noted for those who do not ask.
            await asyncio.sleep(_READY_EVERY)

    def stop(self) -> None:
        """Stops the running app as a first signal does; may be called from handlers, hooks and other threads."""
        run = self._run
        if run is not None:
            run.loop.call_soon_threadsafe(run.stopping.set)

    @property
    def longest_shutdown(self) -> float:
        """Seconds from a stop to the end, at most, when no plain function blocks the event loop."""
        try:
            closing = self._connection_settings().close_timeout
        except ConfigurationError:  # of the environment: the app will not run
            closing = 0.0
        return self.drain_timeout + GRACE + len(self._on_shutdown) * self.hook_timeout + closing + GRACE

    async def serve(self, stop: asyncio.Event | None = None) -> bool:
        """Runs the app in the event loop that is there, until it is stopped; it handles no signals.

        It connects, again and again when the broker is not there, declares the topology, calls the start-up hooks and
        runs the consumers. When it is stopped they take no more messages, give back those that no handler has begun,
        and finish the others within `drain_timeout` seconds. When it is cancelled, handlers are cancelled too.

        Args:
            stop: Stops the app when it is set; `App.stop` does the same.

        Returns:
            Whether every handler that had begun could finish.

        Raises:
            ConfigurationError: The app has no consumers or is running already, or an option was wrong.
            TLSVerificationError, PluginError: What no attempt can mend.
            AuthenticationError, ConnectionClosed: The first connection was refused, for `wait` seconds if given.
            PreconditionFailed: The topology contradicts what exists.
            OperationTimeout: A start-up hook took longer than `hook_timeout` seconds.
            Exception: What a start-up hook raised.
        """
        if self._run is not None:
            raise ConfigurationError("the app is running already")
        if not self._registrations:
            raise ConfigurationError("the app has no consumers; register handlers with @app.consumer(queue)")
        run = self._run = AppRun(
            self, self._connect, self._on_startup, self._on_shutdown, [HealthCheck(*it) for it in self._checks]
        )
        # The task that runs the app, and one that stops it when `stop` is set.
        working = asyncio.create_task(run.work())
        watching = None if stop is None else asyncio.create_task(stop.wait())
        try:
            if watching is not None:
                await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
                run.stopping.set()
            return await working
        finally:
            await cancel_all([working] if watching is None else [working, watching], self.longest_shutdown)
            self._last_counters = self.counters()
            self._run = None
            self._ended += 1

    def run(self, *, health: str | None = None) -> None:
        """Runs the app as the program: until SIGINT or SIGTERM, which drain it, on uvloop where it is installed.

        A second signal ends the process at once, with status 130 or 143; what was not acknowledged is delivered again.
        What no attempt can mend ends it with one line and status 1.

        Args:
            health: `HOST:PORT` to serve `/live`, `/ready`, `/health` and `/metrics` on, from a thread; None serves
                nothing. `leveret run --health` does the same for several processes.

        Raises:
            SystemExit: See above; its cause is the error.
            ConfigurationError: It was not called in the main thread, where signals arrive; `serve` can be. Or `health`
                is no address.
            Exception: What a start-up hook raised.
        """
        from leveret.app.watching import watch_process

        check_main_thread()
        try:
            watch_process(self, self.name or "leveret", health)
        except LeveretError as error:
            raise SystemExit(f"{self.name or 'leveret'}: {printable(str(error), 1000)}") from error


def _seconds(option: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_SECONDS:
        return float(value)
    raise ConfigurationError(f"{option} must be a number of seconds above 0 and up to 86400", option=option)
