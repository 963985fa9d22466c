"""The reporter of a client: makes a report each period, logs it and tells who wants to know."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from leveret.monitoring.alerts import Alert, AlertRule, Alerts
from leveret.monitoring.listener import Listener
from leveret.monitoring.report import QueueDepth, Report, Totals
from leveret.monitoring.usage import UsageMeter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from leveret.plugins.interfaces import Sample

__all__ = ["Reporter"]

logger = logging.getLogger("leveret.monitoring")


class Reporter:
    """Makes a report of a client each period, logs it, applies the alert rules and calls the listeners.

    Args:
        client: The client's name.
        every: Seconds between two reports.
        snapshot: Returns the client's metrics.
        depth: Asks the broker how many messages and consumers a queue has.
        queues: The queues whose depth is reported.
        rules: The alert rules.
        on_report: Called with each report; it may be async.
        on_alert: Called with each alert; it may be async.

    Raises:
        ConfigurationError: Two rules have one name, or a listener is not callable.
    """

    def __init__(
        self,
        client: str,
        every: float,
        snapshot: Callable[[], Iterable[Sample]],
        depth: Callable[[str], Awaitable[QueueDepth]],
        *,
        queues: Iterable[str] = (),
        rules: Iterable[AlertRule] = (),
        on_report: Callable[[Report], object] | None = None,
        on_alert: Callable[[Alert], object] | None = None,
    ) -> None:
        self._client = client
        self._every = every
        self._snapshot = snapshot
        self._depth = depth
        self._queues = tuple(queues)
        self._alerts = Alerts(rules)
        self._on_report = Listener("on_report", on_report)
        self._on_alert = Listener("on_alert", on_alert)
        self._logged: set[str] = set()
        self._stopped = False
        self._usage = UsageMeter()  # behind what may raise: it registers a callback
        self._before, self._since = Totals(snapshot()), time.monotonic()
        self._last: Report | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"leveret report of {client}")

    @property
    def last(self) -> Report | None:
        """The last report, or None before the first."""
        return self._last

    @property
    def firing(self) -> tuple[str, ...]:
        """The names of the alert rules that fire now."""
        return self._alerts.firing

    def stop(self, caller: asyncio.Task[Any] | None = None) -> None:
        """Ends the reports, and cancels async listeners that are at work, but not one that has called this."""
        self._stopped = True
        self._usage.close()
        self._task.cancel()
        for listener in (self._on_report, self._on_alert):
            listener.stop(caller)

    async def close(self, timeout: float, caller: asyncio.Task[Any] | None = None) -> None:
        """Does what `stop` does, and waits up to `timeout` seconds until the listeners have ended."""
        self.stop(caller)
        listeners = (it.task for it in (self._on_report, self._on_alert) if it.task is not None)
        _, late = await asyncio.wait([self._task, *(it for it in listeners if it is not caller)], timeout=timeout)
        if late:
            logger.warning(
                "%s: %d listeners of reports did not end %.1f s after they were cancelled",
                *(self._client, len(late), timeout),
            )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._every
        while True:
            try:
                await asyncio.sleep(max(0.0, due - loop.time()))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._stopped or task is None:
                    raise
                # A listener or rule has cancelled the task that called it.
                task.uncancel()
                self._once("cancelled", "a listener or rule of %s cancelled the reports, which go on", self._client)
                continue
            # A loop that was blocked for several periods gets one report, not several at once.
            due = max(due + self._every, loop.time())
            try:
                report = await self._report()
            except Exception:
                self._once("report", "cannot report on %s (logged once)", self._client)
                continue
            logger.info("%s", report, extra={"leveret_report": report.as_dict()})
            self._on_report.tell(report)
            self._alert(report)

    async def _report(self) -> Report:
        depths = await asyncio.gather(*map(self._depth_of, self._queues))
        now, totals = time.monotonic(), Totals(self._snapshot())
        report = Report.between(
            self._client,
            max(now - self._since, 1e-9),
            self._before,
            totals,
            self._usage.read(),
            dict(zip(self._queues, depths, strict=True)),
            self._last,
        )
        self._before, self._since, self._last = totals, now, report
        return report

    async def _depth_of(self, queue: str) -> QueueDepth | None:
        try:
            # Less than a period: a blocked broker does not answer, and the report comes all the same.
            async with asyncio.timeout(self._every / 2):
                return await self._depth(queue)
        except Exception as error:
            reason = str(error) or type(error).__name__
            self._once(f"queue {queue}", "cannot ask for queue %r: %s (logged once)", queue, reason, traceback=False)
            return None

    def _alert(self, report: Report) -> None:
        for alert in self._alerts.apply(report):
            logger.log(
                logging.WARNING if alert.firing else logging.INFO,
                "%s: %s",
                self._client,
                alert,
                extra={"leveret_alert": {"rule": alert.rule, "firing": alert.firing, "seconds": alert.seconds}},
            )
            self._on_alert.tell(alert)

    def _once(self, key: str, text: str, *args: object, traceback: bool = True) -> None:
        if key not in self._logged:
            self._logged.add(key)
            logger.warning(text, *args, exc_info=traceback)
