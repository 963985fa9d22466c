"""One run of an app: start-up, consumers that are started again whenever they end, drain and shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConsumerCancelled, LeveretError, PreconditionFailed
from leveret.monitoring.health import Health
from leveret.protocol.recovery import Backoff, Prospect, SparseLog, prospect_of
from leveret.protocol.transitions import moved
from leveret.runtime.tasks import cancel_all, done_before, one_deadline, set_within
from leveret.settings.functions import name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from leveret.app.app import App
    from leveret.app.checks import HealthCheck
    from leveret.app.registration import Registration
    from leveret.client.client import Client
    from leveret.consuming.consumer import Consumer

__all__ = ["GRACE", "AppRun", "RunState", "SupervisedConsumer", "restart_backoff"]

logger = logging.getLogger("leveret.app")

#: Bounds in seconds of the first and of the longest delay before a consumer or process is started again.
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
#: Seconds beyond the drain in which consumers close their channels, and tasks that were cancelled end.
GRACE: Final = 2.0


def restart_backoff() -> Backoff:
    """Makes the delays before something that has ended is started again."""
    return Backoff(FIRST_DELAY, LONGEST_DELAY)


class SupervisedConsumer:
    """A registration at work: its consumer now, and the counters of the consumers before it.

    Args:
        registration: The handler and its queue.

    Attributes:
        registration: See above.
        consumer: The consumer that runs, or runs next.
        restarts: How often a consumer was started again.
    """

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self.consumer: Consumer[Any] | None = None
        self.restarts = 0
        self._ended: Counter[str] = Counter()

    def make(self, client: Client) -> Consumer[Any]:
        """Makes the next consumer.

        Raises:
            ConfigurationError, PluginError: What `Client.consumer` raises.
        """
        it = self.registration
        consumer: Consumer[Any] = client.consumer(it.queue, it.model, it.settings, **it.options)
        self.consumer = consumer
        return consumer

    def counters(self) -> Counter[str]:
        """Adds up what all consumers of the registration have counted."""
        counted = Counter(self._ended)
        if self.consumer is not None:
            counted.update(self.consumer.counters())
        return counted

    async def keep_running(self, client: Client, stopping: asyncio.Event) -> None:
        """Runs the consumer, and starts another one whenever it ends, until the app stops.

        The consumer itself goes on after a loss. Another one is needed where its queue does not exist, or has been
        missing for `queue_missing_timeout`.

        Raises:
            LeveretError: An error that no further attempt would mend, or after which the settings say that the consumer
                ends: `auto_recovery=False`, `on_cancel="stop"`.
        """
        backoff = client.consuming_link.new_backoff()
        loop = asyncio.get_running_loop()
        while not stopping.is_set():
            consumer = self.consumer or self.make(client)
            started = loop.time()
            reason: object = "it ended by itself"
            prospect = Prospect.SOON
            try:
                await consumer.run(self.registration.handler)
            except LeveretError as error:
                prospect = prospect_of(error)
                if prospect is Prospect.NEVER or self._ends_with(error, consumer, client):
                    raise
                reason = error
            finally:
                self._forget(consumer)
            if stopping.is_set():
                return
            backoff.ran_for(loop.time() - started)
            delay = backoff.delay(prospect)
            self.restarts += 1
            logger.warning(
                "consumer of queue %r: %s; it is started again in %.1f s", self.registration.queue, reason, delay
            )
            await set_within(stopping, delay)
            backoff.count_attempt()

    @staticmethod
    def _ends_with(error: LeveretError, consumer: Consumer[Any], client: Client) -> bool:
        if isinstance(error, ConsumerCancelled) and consumer.settings.on_cancel == "stop":
            return True
        return not client.settings.auto_recovery

    def _forget(self, consumer: Consumer[Any]) -> None:
        counted = consumer.counters()
        counted["unsettled"] = 0  # they went back to the queue
        self._ended.update(counted)
        self.consumer = None


class RunState(enum.Enum):
    """The stage of a run."""

    STARTING = "connects, declares the topology and calls the start-up hooks"
    CONSUMING = "consumes"
    DRAINING = "lets running handlers finish"
    ENDING = "calls the shutdown hooks and closes the client"


#: Which state may follow which. Shutdown hooks are called only after a start-up that was complete.
RUN_TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = {
    RunState.STARTING: frozenset({RunState.CONSUMING, RunState.ENDING}),
    RunState.CONSUMING: frozenset({RunState.DRAINING, RunState.ENDING}),
    RunState.DRAINING: frozenset({RunState.ENDING}),
    RunState.ENDING: frozenset(),
}


class AppRun:
    """One run of an app, in the event loop that it was made in.

    Args:
        app: The app; its timeouts and topology are read when they are needed.
        connect: Makes an open client.
        on_startup: Called with the client, in this order, before any consumer starts.
        on_shutdown: Called with the client, the last first, when the consumers have ended.
        checks: Checks of the app's own, which are part of its health while it consumes.

    Attributes:
        loop: The event loop.
        stopping: Stops the run when it is set.
        consumers: The app's registrations at work.
        client: The client, from the connection to the broker until the end.
        state: Where the run stands.
    """

    def __init__(
        self,
        app: App,
        connect: Callable[[], Awaitable[Client]],
        on_startup: Sequence[Callable[[Client], object]],
        on_shutdown: Sequence[Callable[[Client], object]],
        checks: Sequence[HealthCheck] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.consumers = [SupervisedConsumer(it) for it in app.registrations]
        self.client: Client | None = None
        self.state = RunState.STARTING
        self._app = app
        self._name = app.name or "app"
        # Why it could not start, the last time.
        self._failure: str | None = None
        self._connect = connect
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._checks = checks

    def counters(self) -> dict[str, int]:
        """Adds up what all consumers have counted, and their restarts."""
        total: Counter[str] = Counter()
        for consumer in self.consumers:
            total.update(consumer.counters())
            total["restarts"] += consumer.restarts
        return dict(total)

    def health(self) -> Health:
        """Returns the health of its client, of consumers that are between two starts, and of the app's own checks."""
        if self.client is None:
            why = ("the app is not connected yet",)
            return Health(ready=False, live=True, reasons=why, last_error=self._failure)
        health = self.client.health()
        reasons = health.reasons
        expected = health.consumers_expected
        if self.state is RunState.CONSUMING:
            absent = [it.registration.queue for it in self.consumers if it.consumer is None]
            reasons += tuple(f"the consumer of queue {queue!r} is started again later" for queue in absent)
            reasons += tuple(it.problem for it in self._checks if it.problem is not None)
            expected += len(absent)
        else:
            reasons = (f"the app {self.state.value}", *reasons)
        return dataclasses.replace(health, ready=not reasons, reasons=reasons, consumers_expected=expected)

    async def work(self) -> bool:
        """Goes the whole way, from the connection to the shutdown.

        Returns:
            Whether every handler that had begun could finish.
        """
        try:
            if not await done_before(self.stopping, self._start(), GRACE):
                return True  # stopped before it began to consume
            return await self._consume()
        finally:
            if self.client is not None:
                await self._shut_down(self.client)

    def _move(self, state: RunState) -> None:
        self.state = moved(RUN_TRANSITIONS, self.state, state)

    async def _start(self) -> None:
        client = await self._connected()
        logger.info("%s: connected to %s", self._name, client.settings.redacted_url)
        for hook in self._on_startup:
            await self._call(hook, client)
        self._move(RunState.CONSUMING)

    async def _connected(self) -> Client:
        """Connects and declares, again and again until it succeeds. The caller sets the deadline.

        Before the first connection a refused login ends the app, after the time that `wait` gives it; later it does
        not. The log has the first failure, each with another reason, and one in ten seconds.
        """
        app, backoff, sparse = self._app, restart_backoff(), SparseLog()
        while True:
            try:
                if self.client is None:
                    self.client = await self._connect()
                if app.topology is not None:
                    await self.client.declare(app.topology)
                return self.client
            except LeveretError as error:
                prospect = prospect_of(error)
                refused = prospect is Prospect.LATER and self.client is None
                if prospect is Prospect.NEVER or refused or isinstance(error, PreconditionFailed):
                    raise
                self._failure = str(error)
                delay = backoff.delay(prospect)
                if sparse.is_due(error, self.loop.time()):
                    logger.warning(
                        "%s: cannot start, and goes on trying (next in %.1f s): %s", self._name, delay, error
                    )
            await asyncio.sleep(delay)
            backoff.count_attempt()

    async def _consume(self) -> bool:
        client, stopping = self.client, self.stopping
        assert client is not None
        for consumer in self.consumers:
            # Before any of them takes a message, so that wrong options end the app then.
            settings = consumer.make(client).settings
            logger.info(
                "%s: consumes queue %r with %d workers, prefetch %s",
                *(self._name, consumer.registration.queue, settings.concurrency, settings.prefetch),
            )
        tasks = [asyncio.create_task(consumer.keep_running(client, stopping)) for consumer in self.consumers]
        waiting = asyncio.create_task(stopping.wait())
        checking = [asyncio.create_task(check.keep(client)) for check in self._checks]
        whole = False
        try:
            # No deadline: this is the app's whole life. A consumer's task ends earlier only when it failed.
            await asyncio.wait((*tasks, waiting), return_when=asyncio.FIRST_COMPLETED)
            stopping.set()
            self._move(RunState.DRAINING)
            whole = await self._drain(tasks)
        finally:
            await cancel_all([*tasks, waiting, *checking], GRACE)
        errors = [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())]
        for other in errors[1:]:
            logger.error("another consumer failed: %s", other)
        if errors:
            raise errors[0]
        return whole

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> bool:
        timeout = self._app.drain_timeout
        logger.info("%s: takes no more messages; handlers have %g s to finish", self._name, timeout)
        deadline = self.loop.time() + timeout
        drained = [it.consumer.drain(timeout) for it in self.consumers if it.consumer is not None]
        whole = all(await asyncio.gather(*drained))
        left = deadline - self.loop.time()
        _, late = await asyncio.wait(tasks, timeout=max(0.0, left) + GRACE)
        if late or not whole:
            logger.warning(
                "handlers still ran %g s after the stop; what they did not finish is delivered again", timeout
            )
        return whole and not late

    async def _shut_down(self, client: Client) -> None:
        started = self.state is not RunState.STARTING
        self._move(RunState.ENDING)
        try:
            if started:
                for hook in reversed(self._on_shutdown):
                    try:
                        await self._call(hook, client)
                    except Exception:
                        logger.exception("shutdown hook %s failed", name_of(hook))
        finally:
            await client.close()
            logger.info("%s: stopped", self._name)

    async def _call(self, hook: Callable[[Client], object], client: Client) -> None:
        result = hook(client)
        if inspect.isawaitable(result):
            async with one_deadline(self._app.hook_timeout, f"hook {name_of(hook)}"):
                await result
