"""An application of consumers: handlers that are registered once, and a process that keeps them running."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import logging
import os
import random
import signal
import sys
import threading
import types
import typing
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.client.client import Client, connect
from leveret.connection.connection import may_mend
from leveret.errors import (
    ConfigurationError,
    ConnectionClosed,
    EncodeFailed,
    LeveretError,
    OperationTimeout,
    PluginError,
    PreconditionFailed,
    WrongLoopError,
    printable,
)
from leveret.settings import ConnectionSettings, ConsumerSettings, Settings
from leveret.transport.frame_transport import run as run_loop
from leveret.wire.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Self

    from leveret.consuming.consumer import Consumer
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import MonitoringSettings, PluginSettings
    from leveret.topology.topology import Topology

__all__ = ["App", "Backoff", "Registration", "Signals", "exit_within", "run_process"]

logger = logging.getLogger("leveret.app")

H = TypeVar("H", bound="Callable[..., Any]")

#: Seconds that the first attempt to start a consumer again, or to connect, is delayed at most; then twice as many, up
#: to the second figure. The delay is a random part of that, so that the consumers of a broker that restarts do not come
#: all at once.
_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 30.0
#: 0.5 s doubled this often is longer than the longest delay.
_MAX_DOUBLINGS: Final = 10
#: Seconds beyond the drain in which consumers close their channels, and tasks that were cancelled end.
_GRACE: Final = 2.0
#: Seconds that closing a client may take by its own limits: `confirm_timeout`, `close_timeout` and the sinks'.
_CLOSING: Final = 20.0
#: Seconds from a second signal to the end of the process, for acknowledgements that are ready.
_ABORT: Final = 1.0
#: Seconds that a process which has ended its work waits for threads that do not.
_STUCK_THREADS: Final = 2.0
#: A day; what is longer is a mistake in the unit.
_MAX_SECONDS: Final = 86_400.0

#: Says that a consumer's model is the annotation of its handler's first parameter.
_INFERRED: Final = object()


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler and what it consumes.

    Attributes:
        queue: The queue.
        handler: The function that was decorated.
        model: What values are made into; None for plain values.
        settings: All options at once; None for those of the app's target.
        options: Single options, over those of `settings`.
    """

    queue: str
    handler: Callable[..., Any]
    model: Any
    settings: ConsumerSettings | None
    options: dict[str, Any]


@dataclass(slots=True)
class _Post:
    """A registration at work: its consumer now, and what those before it counted."""

    registration: Registration
    consumer: Consumer[Any] | None = None
    restarts: int = 0
    gone: Counter[str] = field(default_factory=Counter)

    def make(self, client: Client) -> Consumer[Any]:
        it = self.registration
        consumer: Consumer[Any] = client.consumer(it.queue, it.model, it.settings, **it.options)
        self.consumer = consumer
        return consumer

    def counters(self) -> Counter[str]:
        counted = Counter(self.gone)
        if self.consumer is not None:
            counted.update(self.consumer.counters())
        return counted

    async def keep_running(self, client: Client, stopping: asyncio.Event) -> None:
        """Starts the consumer again whenever it ends, until the app stops; raises what no attempt can mend."""
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while not stopping.is_set():
            consumer = self.consumer or self.make(client)
            started = loop.time()
            reason: object = "it ended by itself"
            try:
                await consumer.run(self.registration.handler)
            except LeveretError as error:
                if not _may_mend(error):
                    raise
                reason = error
            finally:
                self._forget(consumer)
            if stopping.is_set():
                return
            backoff.ran_for(loop.time() - started)
            delay = backoff.delay()
            self.restarts += 1
            logger.warning(
                "consumer of queue %r: %s; it is started again in %.1f s", self.registration.queue, reason, delay
            )
            await _set_within(stopping, delay)

    def _forget(self, consumer: Consumer[Any]) -> None:
        counted = consumer.counters()
        counted["unsettled"] = 0  # they went back to the queue
        self.gone.update(counted)
        self.consumer = None


@dataclass(slots=True)
class _Serving:
    """One run of an app."""

    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event
    posts: list[_Post]
    client: Client | None = None
    started: bool = False


class App:
    """Handlers for queues, and the process that runs them.

    Each process has one client, one event loop and a consumer for each handler. A consumer that ends because its
    connection was lost, because the broker cancelled it or because its queue is not there (yet), is started again after
    a random delay that grows from half a second to half a minute. What no attempt can mend ends the app: wrong options
    or credentials, a certificate that is refused, a topology that contradicts what exists.

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
        if name is not None:
            connection_options.setdefault("client_name", name)
        self.name = name
        self.drain_timeout = drain_timeout
        self.hook_timeout = _seconds("hook_timeout", hook_timeout)
        self.topology: Topology | None = None
        self._connect = functools.partial(connect, target, plugins=plugins, monitoring=monitoring, **connection_options)
        if target is None:
            # The environment is read when the app runs: a module is often imported before it is complete.
            ConnectionSettings().replace(**connection_options)
        else:
            self._connect()
        self._defaults = target.consumer if isinstance(target, Settings) else ConsumerSettings()
        self._registrations: list[Registration] = []
        self._on_startup: list[Callable[[Client], object]] = []
        self._on_shutdown: list[Callable[[Client], object]] = []
        self._serving: _Serving | None = None
        self._last_counters: dict[str, int] = {}

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
        self, queue: str, *, model: Any = _INFERRED, settings: ConsumerSettings | None = None, **options: Any
    ) -> Callable[[H], H]:
        """Registers the decorated function as the handler of a queue; the function stays as it is.

            @app.consumer("billing", prefetch=50, concurrency=8)
            async def bill(order: Order, message: leveret.Message) -> None: ...

        Several handlers on one queue share its messages, each with a consumer and a prefetch of its own.

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
                message, or it is registered for this queue already. What only the plugins know, such as whether a
                serializer exists, is checked when the app starts.
        """
        name: object = queue
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= 255:
            raise ConfigurationError("queue is the name of a queue, 1 to 255 bytes", option="queue")
        try:
            _check_options(self._defaults if settings is None else settings, options)
        except ConfigurationError as error:
            raise ConfigurationError(f"consumer of queue {queue!r}: {error}", option=error.option) from None

        def register(handler: H) -> H:
            _check_handler(handler, queue)
            if any(it.queue == queue and it.handler == handler for it in self._registrations):
                raise ConfigurationError(
                    f"{_name_of(handler)} is registered for queue {queue!r} already; `concurrency` runs it several "
                    "times at once",
                    option="handler",
                )
            wanted = _annotated_model(handler) if model is _INFERRED else model
            self._registrations.append(Registration(queue, handler, wanted, settings, dict(options)))
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
        self._on_startup.append(_callable(hook, "on_startup"))
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
        self._on_shutdown.append(_callable(hook, "on_shutdown"))
        return hook

    # ------------------------------------------------------------------ while it runs

    @property
    def client(self) -> Client:
        """The client of the running app, for handlers and hooks.

        Raises:
            ConnectionClosed: The app is not running.
        """
        if self._serving is None or self._serving.client is None:
            raise ConnectionClosed("the app is not running: it has a client from its start-up hooks to its shutdown")
        return self._serving.client

    def counters(self) -> dict[str, int]:
        """What its consumers counted since `serve` began, those that were started again included.

        Returns:
            The sums of `Consumer.counters`, and `restarts`: how often a consumer was started again. After the end they
            are the last ones.
        """
        if self._serving is None:
            return dict(self._last_counters)
        total: Counter[str] = Counter()
        for post in self._serving.posts:
            total.update(post.counters())
            total["restarts"] += post.restarts
        return dict(total)

    def stop(self) -> None:
        """Stops the running app as a first signal does; may be called from handlers, hooks and other threads."""
        serving = self._serving
        if serving is not None:
            serving.loop.call_soon_threadsafe(serving.stopping.set)

    @property
    def longest_shutdown(self) -> float:
        """Seconds from a stop to the end, at most, when no plain function blocks the event loop."""
        return self.drain_timeout + _GRACE + len(self._on_shutdown) * self.hook_timeout + _CLOSING

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
            AuthenticationError, TLSVerificationError, ConnectionClosed, PluginError: What no attempt can mend.
            PreconditionFailed: The topology contradicts what exists.
            OperationTimeout: A start-up hook took longer than `hook_timeout` seconds.
            Exception: What a start-up hook raised.
        """
        if self._serving is not None:
            raise ConfigurationError("the app is running already")
        if not self._registrations:
            raise ConfigurationError("the app has no consumers; register handlers with @app.consumer(queue)")
        serving = self._serving = _Serving(
            asyncio.get_running_loop(), asyncio.Event(), [_Post(it) for it in self._registrations]
        )
        # The task that runs the app, and what stops it: from outside, and `App.stop`.
        working = asyncio.create_task(self._work(serving))
        watching = None if stop is None else asyncio.create_task(stop.wait())
        try:
            if watching is not None:
                await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
                serving.stopping.set()
            return await working
        finally:
            await _cancelled([working] if watching is None else [working, watching], self.longest_shutdown)
            self._last_counters = self.counters()
            self._serving = None

    def run(self) -> None:
        """Runs the app as the program: until SIGINT or SIGTERM, which drain it, on uvloop where it is installed.

        A second signal ends the process at once, with status 130 or 143; what was not acknowledged is delivered again.
        What no attempt can mend ends it with one line and status 1.

        Raises:
            SystemExit: See above; its cause is the error.
            ConfigurationError: It was not called in the main thread, where signals arrive; `serve` can be.
            Exception: What a start-up hook raised.
        """
        _check_main_thread()
        try:
            run_process(self)
        except LeveretError as error:
            raise SystemExit(f"{self.name or 'leveret'}: {printable(str(error), 1000)}") from error

    # ------------------------------------------------------------------ its way from start to end

    async def _work(self, serving: _Serving) -> bool:
        try:
            if not await _unless(serving.stopping, self._start(serving)):
                return True  # stopped before it began to consume
            return await self._consume(serving)
        finally:
            if serving.client is not None:
                await self._shut_down(serving, serving.client)

    async def _start(self, serving: _Serving) -> None:
        client = await self._connected(serving)
        for hook in self._on_startup:
            await self._call(hook, client)
        serving.started = True

    async def _connected(self, serving: _Serving) -> Client:
        """Connects and declares, again and again until it succeeds; who waits for it sets the deadline."""
        backoff = Backoff()
        while True:
            try:
                if serving.client is None:
                    serving.client = await self._connect()
                if self.topology is not None:
                    await serving.client.declare(self.topology)
                return serving.client
            except LeveretError as error:
                if not _may_mend(error) or isinstance(error, PreconditionFailed):
                    raise
                delay = backoff.delay()
                logger.warning("%s: cannot start: %s; it is tried again in %.1f s", self.name or "app", error, delay)
            await asyncio.sleep(delay)

    async def _consume(self, serving: _Serving) -> bool:
        client, stopping = self.client, serving.stopping
        for post in serving.posts:
            post.make(client)  # before any of them takes a message: what is wrong with one shall end the app then
        tasks = [asyncio.create_task(post.keep_running(client, stopping)) for post in serving.posts]
        waiting = asyncio.create_task(stopping.wait())
        whole = False
        try:
            # It has no deadline: this is the app's whole life. A consumer's task ends before only when it failed.
            await asyncio.wait((*tasks, waiting), return_when=asyncio.FIRST_COMPLETED)
            stopping.set()
            whole = await self._drain(serving.posts, tasks)
        finally:
            await _cancelled([*tasks, waiting], _GRACE)
        errors = [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())]
        for other in errors[1:]:
            logger.error("another consumer failed: %s", other)
        if errors:
            raise errors[0]
        return whole

    async def _drain(self, posts: list[_Post], tasks: list[asyncio.Task[None]]) -> bool:
        deadline = asyncio.get_running_loop().time() + self.drain_timeout
        drained = [post.consumer.drain(self.drain_timeout) for post in posts if post.consumer is not None]
        whole = all(await asyncio.gather(*drained))
        left = deadline - asyncio.get_running_loop().time()
        _, late = await asyncio.wait(tasks, timeout=max(0.0, left) + _GRACE)
        if late or not whole:
            logger.warning(
                "handlers still ran %g s after the stop; what they did not finish is delivered again",
                self.drain_timeout,
            )
        return whole and not late

    async def _shut_down(self, serving: _Serving, client: Client) -> None:
        try:
            if serving.started:
                for hook in reversed(self._on_shutdown):
                    try:
                        await self._call(hook, client)
                    except Exception:
                        logger.exception("shutdown hook %s failed", _name_of(hook))
        finally:
            await client.close()

    async def _call(self, hook: Callable[[Client], object], client: Client) -> None:
        result = hook(client)
        if inspect.isawaitable(result):
            # Not TimeoutError itself, which the hook may raise for reasons of its own.
            deadline = asyncio.timeout(self.hook_timeout)
            try:
                async with deadline:
                    await result
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                raise OperationTimeout(f"hook {_name_of(hook)} took longer than {self.hook_timeout:g} s") from error


# ---------------------------------------------------------------------- registration


def _check_options(settings: object, options: dict[str, Any]) -> None:
    if not isinstance(settings, ConsumerSettings):
        raise ConfigurationError(
            f"settings is of type {type(settings).__name__}, not ConsumerSettings", option="settings"
        )
    # What `Client.consumer` takes beside the settings' options is checked by it, when the app starts.
    parameters = inspect.signature(Client.consumer).parameters.values()
    others = {it.name for it in parameters if it.kind is inspect.Parameter.KEYWORD_ONLY}
    settings.replace(**{name: value for name, value in options.items() if name not in others})


def _check_handler(handler: object, queue: str) -> None:
    if not callable(handler):
        raise ConfigurationError(
            f"consumer of queue {queue!r}: the handler is a {type(handler).__name__}, not a function", option="handler"
        )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # of some functions in C nobody knows it
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigurationError(
            f"consumer of queue {queue!r}: {_name_of(handler)} must take (value, message): {error}", option="handler"
        ) from None


def _annotated_model(handler: Callable[..., Any]) -> Any:
    """The annotation of the first parameter; None when it says nothing, or nobody knows what."""
    try:
        first = next(iter(inspect.signature(handler).parameters.values()))
        inner: Any = handler
        while isinstance(inner, functools.partial):
            inner = inner.func
        inner = inspect.unwrap(inner if inspect.isroutine(inner) else type(inner).__call__)
        # Only this one: the others may be names that are there for type checkers only.
        alone = types.SimpleNamespace(__annotations__={first.name: first.annotation})
        model = typing.get_type_hints(alone, inner.__globals__, include_extras=True)[first.name]
    except Exception:
        # An annotation is any expression, and fails as one.
        return None
    nothing = (inspect.Parameter.empty, Any, object, type(None), Message)
    return None if isinstance(model, TypeVar) or any(model is it for it in nothing) else model


def _callable(hook: H, what: str) -> H:
    candidate: object = hook
    if not callable(candidate):
        raise ConfigurationError(f"{what} takes a function, not a {type(hook).__name__}", option=what)
    return hook


def _name_of(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _seconds(option: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_SECONDS:
        return float(value)
    raise ConfigurationError(f"{option} must be a number of seconds above 0 and up to 86400", option=option)


# ---------------------------------------------------------------------- supervision


class Backoff:
    """Random delays under a limit that doubles, which is forgotten after a time without failures."""

    def __init__(self) -> None:
        self._failures = 0

    @property
    def longest(self) -> float:
        """The limit of the next delay, in seconds."""
        return min(_FIRST_DELAY * 2.0 ** min(self._failures, _MAX_DOUBLINGS), _LONGEST_DELAY)

    def ran_for(self, seconds: float) -> None:
        """Notes how long it went well before it failed."""
        # What fails again right after it was started is in the same row.
        if seconds > self.longest:
            self._failures = 0

    def delay(self) -> float:
        """Seconds to wait before the next attempt; doubles the limit."""
        delay = random.uniform(0, self.longest)  # noqa: S311 - it keeps no secret
        self._failures += 1
        return delay


def _may_mend(error: LeveretError) -> bool:
    """Whether another attempt may succeed where one failed with this error."""
    return may_mend(error) and not isinstance(error, (PluginError, EncodeFailed, WrongLoopError))


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Runs work to its end; false when the app was stopped before, and the work cancelled."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stopping.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        tasks[0].result()
        return True
    finally:
        await _cancelled(tasks, _GRACE)


async def _cancelled(tasks: list[Any], timeout: float) -> None:
    """Cancels tasks and waits for their ends. One that does not end by then is left to itself: it has had its time."""
    for task in tasks:
        task.cancel()
    done, left = await asyncio.wait(tasks, timeout=timeout)
    for task in done:
        if not task.cancelled():
            task.exception()  # looked at here: who asked for it may have been cancelled
    for task in left:
        logger.error("%r did not end %g s after it was cancelled", task.get_name(), timeout)


# ---------------------------------------------------------------------- the process


class Signals:
    """SIGINT and SIGTERM, for as long as the context lasts: the first stops, a second one aborts.

    These are handlers of Python and not of the event loop, because a second signal has to arrive while a handler keeps
    the loop from turning. SIGINT stays ignored where it was, as in what a shell started with `&`.

    Attributes:
        first: The number of the first signal, or 0.
        second: The number of the second one, or 0.
    """

    def __init__(self) -> None:
        self.first = 0
        self.second = 0
        self._before: dict[int, Any] = {}
        self._stop: Callable[[], object] | None = None
        self._abort: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def attach(self, stop: Callable[[], object], abort: Callable[[], object]) -> None:
        """Says what to call in the running event loop, which is done at once for what came before.

        Args:
            stop: For the first signal.
            abort: For the second one.
        """
        loop = asyncio.get_running_loop()

        def call(function: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: what was to stop has ended
                loop.call_soon_threadsafe(function)

        self._stop, self._abort = functools.partial(call, stop), functools.partial(call, abort)
        if self.first:
            stop()
        if self.second:
            abort()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if not self.first:
            self.first = number
            if self._stop is not None:
                self._stop()
        elif not self.second:
            self.second = number
            # Sooner or later than what is called in the loop: handlers may not let themselves be cancelled.
            exit_within(_ABORT, 128 + number)
            if self._abort is not None:
                self._abort()


def exit_within(seconds: float, status: int) -> None:
    """Ends the process, if it has not ended by then: threads that do not end would keep it alive.

    It uses SIGALRM and no thread, because it is called in a signal's handler.

    Args:
        seconds: When.
        status: The exit status.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # it may be this stream's own write that was interrupted
                stream.flush()
        os._exit(status)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # Called once all threads have ended. From then on the interpreter takes its signal handlers away, and the alarm
    # would kill the process with a status of its own.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def run_process(
    app: App,
    beside: Callable[[App, asyncio.Event], Coroutine[Any, Any, None]] | None = None,
    *,
    last: bool = False,
) -> bool:
    """Runs an app with signals, as `App.run` and `leveret run` do.

    Args:
        app: The app.
        beside: Runs in the same loop, from before the app connects until it has ended; the event stops the app.
        last: True when the process has nothing to do afterwards: threads of handlers that were cut off then keep it
            alive for a few seconds only.

    Returns:
        Whether every handler that had begun could finish.

    Raises:
        SystemExit: A second signal came; the status is 128 and its number.
        Exception: What `App.serve` raises.
    """
    _check_main_thread()

    async def main() -> bool:
        stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        signals.attach(stop.set, task.cancel)
        companion = None if beside is None else asyncio.create_task(beside(app, stop))
        status = 1
        try:
            whole = await app.serve(stop)
            status = 0
        finally:
            if last and not signals.second:
                # Closing the loop waits for the threads of its executor, and the interpreter for all.
                exit_within(_STUCK_THREADS, status)
            if companion is not None:
                await _cancelled([companion], _GRACE)
                if companion.done() and not companion.cancelled() and (error := companion.exception()) is not None:
                    logger.error("%s", error, exc_info=error)
        return whole

    with Signals() as signals:
        try:
            return run_loop(main())
        except asyncio.CancelledError:
            if not signals.second:
                raise
            raise SystemExit(128 + signals.second) from None


def _check_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("signals arrive in the main thread only; elsewhere use `await app.serve()`")
