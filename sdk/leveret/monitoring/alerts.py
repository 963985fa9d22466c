"""Alerts: rules over reports, each of which fires once and is over once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from leveret.errors import ConfigurationError
from leveret.settings.functions import plain_function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leveret.monitoring.report import Report
    from leveret.plugins.distributions import Distribution
    from leveret.settings import MonitoringSettings

__all__ = ["Alert", "AlertRule", "Alerts", "rules_for"]

logger = logging.getLogger("leveret.monitoring")


@dataclass(frozen=True, slots=True)
class AlertRule:
    """A condition that reports are checked for.

    Attributes:
        name: The rule's name, unique among the rules of a client.
        check: A plain function, called with each `Report`. It returns what is wrong, in a few words, or None when all
            is well, or `AlertRule.UNKNOWN` when the report does not tell: then an alert that fires goes on.

    Raises:
        ConfigurationError: `name` is no text, or `check` is no plain function.
    """

    #: What `check` returns when a report does not tell whether all is well.
    UNKNOWN: ClassVar = "unknown"

    name: str
    check: Callable[[Report], str | None]

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"the name of an alert rule is a text, not {name!r:.80}", option="name")
        plain_function("check", self.check, "for each report")


@dataclass(frozen=True, slots=True)
class Alert:
    """The beginning or the end of an alert.

    Attributes:
        rule: The rule's name.
        firing: True at the beginning, False at the end.
        text: The text of the rule; at the end, its last one.
        seconds: Seconds since the beginning; 0 at the beginning.
        report: The report that the rule was applied to.
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
    """Applies rules to one report after the other. A rule that raises is logged once, and keeps its state.

    Args:
        rules: The rules.

    Raises:
        ConfigurationError: Two rules have one name.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        try:
            self._rules = tuple(rules)
        except TypeError:
            raise ConfigurationError(f"rules is a list of AlertRule, not {rules!r:.80}", option="rules") from None
        for rule in self._rules:
            given: object = rule
            if not isinstance(given, AlertRule):
                raise ConfigurationError(f"rules has a {type(given).__name__}, not an AlertRule", option="rules")
        names = Counter(rule.name for rule in self._rules)
        for name, count in names.items():
            if count > 1:
                raise ConfigurationError(f"{count} alert rules are named {name!r}", option="rules")
        self._failed: set[str] = set()
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
            text = self._checked(rule, report)
            if text == AlertRule.UNKNOWN:
                continue
            begun = self._firing.get(rule.name)
            if text is not None:
                self._firing[rule.name] = (now if begun is None else begun[0], text)
                if begun is None:
                    told.append(Alert(rule.name, True, text, 0.0, report))
            elif begun is not None:
                del self._firing[rule.name]
                told.append(Alert(rule.name, False, begun[1], now - begun[0], report))
        return told

    def _checked(self, rule: AlertRule, report: Report) -> str | None:
        try:
            text: object = rule.check(report)
            if text is not None and not isinstance(text, str):
                raise TypeError(f"it returned a {type(text).__name__}, not a text or None")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            # A CancelledError, too: it is the rule's own, and must not end the reports.
            if rule.name not in self._failed:
                self._failed.add(rule.name)
                logger.warning("the alert rule %r failed (logged once)", rule.name, exc_info=True)
            return AlertRule.UNKNOWN
        return text


def rules_for(settings: MonitoringSettings) -> list[AlertRule]:
    """Returns the rules of the alert options that are set.

    Raises:
        ConfigurationError: `alert_queue_depth` is set, and `report_queues` names no queue.
    """
    if settings.alert_queue_depth is not None and not settings.report_queues:
        raise ConfigurationError("alert_queue_depth needs report_queues", option="alert_queue_depth")
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
    if share is None:
        return AlertRule.UNKNOWN
    if share >= limit:
        return None
    return f"{100 * share:.4g} % of the {what} succeeded; alert_success is {100 * limit:g} %"


def _confirm_p99(report: Report, limit: float) -> str | None:
    return _p99("confirms", report.published.duration, "alert_confirm_p99", limit)


def _handler_p99(report: Report, limit: float) -> str | None:
    return _p99("handlers", report.handling, "alert_handler_p99", limit)


def _p99(what: str, durations: Distribution, option: str, limit: float) -> str | None:
    if not durations:
        return AlertRule.UNKNOWN
    seconds = durations.percentile(99)
    return f"the 99th percentile of {what} is {seconds:.3g} s; {option} is {limit:g} s" if seconds > limit else None


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
    if not deep:
        known = any(depth is not None for depth in report.queues.values())
        return None if known or not report.queues else AlertRule.UNKNOWN
    return f"ready messages: {', '.join(deep)}; alert_queue_depth is {limit:g}"
