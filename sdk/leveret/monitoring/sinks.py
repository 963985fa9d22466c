"""Starts and closes the metrics sinks of a client, each in a thread and with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from leveret.errors import PluginError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.monitoring.monitor import Monitor
    from leveret.plugins.interfaces import MetricsSink
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.settings import MonitoringSettings

__all__ = ["Sinks"]

logger = logging.getLogger("leveret.monitoring")


class Sinks:
    """The metrics sinks of one client.

    Args:
        registry: The registry that has the sinks.
        settings: Settings that name the sinks to start.

    Raises:
        ConfigurationError: A sink does not exist.
        PluginError: A plugin failed to make a sink.
    """

    def __init__(self, registry: PluginRegistry, settings: MonitoringSettings) -> None:
        self._timeout = settings.sink_timeout
        self._sinks: list[tuple[MetricsSink, Provided]] = [registry.make_sink(name) for name in settings.sinks]
        self._locks: dict[str, threading.Lock] = {}
        self._started: list[tuple[MetricsSink, Provided]] = []

    def __bool__(self) -> bool:
        """True while sinks are started."""
        return bool(self._started)

    async def start(self, monitor: Monitor) -> None:
        """Starts all sinks.

        Raises:
            PluginError: A sink raised, or did not return within `sink_timeout`.
        """
        for sink, provided in self._sinks:
            self._started.append((sink, provided))
            self._locks[provided.name] = threading.Lock()
            error = await self._call(provided, "start", sink.start, monitor)
            if error is not None:
                raise error

    async def close(self, timeout: float) -> None:
        """Closes all sinks that were started, side by side. Errors are logged; one that hangs keeps its daemon thread.

        Args:
            timeout: Seconds for all of them at most; `sink_timeout` when that is less.
        """
        started, self._started = self._started, []
        closing = (self._call(provided, "close", sink.close, timeout=timeout) for sink, provided in reversed(started))
        for error in await asyncio.gather(*closing):
            if error is not None:
                logger.warning("%s", error)

    async def _call(
        self,
        provided: Provided,
        what: str,
        function: Callable[..., object],
        *arguments: object,
        timeout: float = float("inf"),
    ) -> PluginError | None:
        """Calls a sink in a daemon thread, so that one that hangs blocks neither the event loop nor the exit.

        Returns:
            The error; None when the call succeeded.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BaseException | None] = loop.create_future()

        def finish(error: BaseException | None) -> None:
            if not future.done():
                future.set_result(error)

        lock = self._locks[provided.name]

        def work() -> None:
            error: BaseException | None = None
            try:
                # Close waits for a start that is still running.
                with lock:
                    function(*arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits for the result
                loop.call_soon_threadsafe(finish, error)

        threading.Thread(target=work, name=f"leveret metrics sink {provided.name}", daemon=True).start()
        who = f"the metrics sink {provided.name!r} of {provided.origin}"
        seconds, limit = self._timeout, f"sink_timeout of {self._timeout:g} s"
        if timeout < seconds:
            seconds, limit = timeout, f"the {timeout:.3g} s that were left of close_timeout"
        try:
            async with asyncio.timeout(seconds):
                error = await future
        except TimeoutError:
            text = f"{who} did not {what} within {limit}"
        else:
            if error is None:
                return None
            text = f"{who} failed to {what}: {type(error).__name__}: {printable(str(error))}"
        return PluginError(text, plugin=provided.plugin, distribution=provided.distribution)
