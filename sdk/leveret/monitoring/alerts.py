"""Alerts: rules over reports, each of which fires once and is over once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leveret.monitoring.report import Report
    from leveret.settings import MonitoringSettings

__all__ = ["Alert", "AlertRule", "Alerts", "rules_for"]


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Says when something is wrong.

    Attributes:
        name: Its name, unique among the rules of a client.
        check: Returns what is wrong, in a few words; None when nothing is.
    """

    name: str
    check: Callable[[Report], str | None]


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule has begun to fire, or its alert is over.

    Attributes:
        rule: The rule's name.
        firing: True when it begins, False when it is over.
        text: What is wrong or was, last.
        seconds: How long it has been firing: 0 at its beginning.
        report: The report that it was told by.
    """

    rule: str
    firing: bool
    text: str
    seconds: float
    report: Report

    def __str__(self) -> str:
        if self.firing:
            return f"alert {self.rule}: {self.text}"
        return f"alert {self.rule} is over after {self.seconds:.0f} s; the last was: {self.text}"


class Alerts:
    """Applies rules to one report after the other.

    Args:
        rules: The rules.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self._rules = tuple(rules)
        self._firing: dict[str, tuple[float, str]] = {}

    @property
    def firing(self) -> tuple[str, ...]:
        """The names of the rules that fire now."""
        return tuple(self._firing)

    def apply(self, report: Report) -> list[Alert]:
        """Returns the alerts that begin or end with this report."""
        told: list[Alert] = []
        now = time.monotonic()
        for rule in self._rules:
            text = rule.check(report)
            begun = self._firing.get(rule.name)
            if text is not None:
                self._firing[rule.name] = (now if begun is None else begun[0], text)
                if begun is None:
                    told.append(Alert(rule.name, True, text, 0.0, report))
            elif begun is not None:
                del self._firing[rule.name]
                told.append(Alert(rule.name, False, begun[1], now - begun[0], report))
        return told


def rules_for(settings: MonitoringSettings) -> list[AlertRule]:
    """Returns the rules of the thresholds that are set."""
    rules: list[AlertRule] = []

    def add(name: str, limit: float | None, check: Callable[[Report, float], str | None]) -> None:
        if limit is not None:
            rules.append(AlertRule(name, lambda report: check(report, limit)))

    add("publish_success", settings.alert_success, _publish_success)
    add("consume_success", settings.alert_success, _consume_success)
    add("confirm_p99", settings.alert_confirm_p99, _confirm_p99)
    add("handler_p99", settings.alert_handler_p99, _handler_p99)
    add("silence", settings.alert_silence, _silence)
    add("blocked", settings.alert_blocked, _blocked)
    add("parked", settings.alert_parked, _parked)
    add("queue_depth", settings.alert_queue_depth, _queue_depth)
    return rules


def _publish_success(report: Report, limit: float) -> str | None:
    return _success("publishings", report.published.success, limit)


def _consume_success(report: Report, limit: float) -> str | None:
    return _success("deliveries", report.consumed.success, limit)


def _success(what: str, share: float | None, limit: float) -> str | None:
    if share is None or share >= limit:
        return None
    return f"{100 * share:.4g} % of the {what} succeeded; alert_success is {100 * limit:g} %"


def _confirm_p99(report: Report, limit: float) -> str | None:
    seconds = report.published.duration.percentile(99)
    if seconds <= limit:
        return None
    return f"of 100 confirms one took {seconds:.3g} s or longer; alert_confirm_p99 is {limit:g} s"


def _handler_p99(report: Report, limit: float) -> str | None:
    seconds = report.handling.percentile(99)
    if seconds <= limit:
        return None
    return f"of 100 handlers one took {seconds:.3g} s or longer; alert_handler_p99 is {limit:g} s"


def _silence(report: Report, limit: float) -> str | None:
    if report.silent < limit:
        return None
    return f"no delivery for {report.silent:.0f} s; alert_silence is {limit:g} s"


def _blocked(report: Report, limit: float) -> str | None:
    if not report.blocked or report.blocked_for < limit:
        return None
    return f"the broker has blocked publishings for {report.blocked_for:.0f} s; alert_blocked is {limit:g} s"


def _parked(report: Report, limit: float) -> str | None:
    if report.parked < limit:
        return None
    return f"{report.parked} deliveries were parked in {report.seconds:.0f} s; alert_parked is {limit:g}"


def _queue_depth(report: Report, limit: float) -> str | None:
    deep = [
        f"{name!r} has {depth.messages}" for name, depth in report.queues.items() if depth and depth.messages > limit
    ]
    return f"ready messages: {', '.join(deep)}; alert_queue_depth is {limit:g}" if deep else None
