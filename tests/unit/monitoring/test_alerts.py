"""Alert rules over reports: each fires once and is over once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import leveret
from leveret.errors import ConfigurationError
from leveret.monitoring.alerts import AlertRule, Alerts, rules_for
from leveret.monitoring.histogram import Histogram
from leveret.monitoring.report import QueueDepth, Report, Totals
from leveret.monitoring.usage import ProcessUsage

QUIET = Report.between("c", 1.0, Totals(), Totals(), ProcessUsage(None, 0.0, 0, 0.0), {}, None)


def report(**changes: Any) -> Report:
    return dataclasses.replace(QUIET, **changes)


def slow(seconds: float) -> Any:
    histogram = Histogram()
    histogram.record(int(seconds * 1e9))
    return histogram.read()


@pytest.mark.parametrize(
    ("options", "good", "bad", "rule"),
    [
        (
            {"alert_success": 0.99},
            {"published": dataclasses.replace(QUIET.published, success=0.99)},
            {"published": dataclasses.replace(QUIET.published, success=0.98)},
            "publish_success",
        ),
        (
            {"alert_success": 0.99},
            {"consumed": dataclasses.replace(QUIET.consumed, success=1.0)},
            {"consumed": dataclasses.replace(QUIET.consumed, success=0.5)},
            "consume_success",
        ),
        (
            {"alert_confirm_p99": 0.5},
            {"published": dataclasses.replace(QUIET.published, duration=slow(0.4))},
            {"published": dataclasses.replace(QUIET.published, duration=slow(0.6))},
            "confirm_p99",
        ),
        ({"alert_handler_p99": 0.5}, {"handling": slow(0.4)}, {"handling": slow(0.6)}, "handler_p99"),
        ({"alert_silence": 30}, {"silent": 29.0}, {"silent": 30.0}, "silence"),
        (
            {"alert_blocked": 10},
            {"blocked": 1, "blocked_for": 9.0},
            {"blocked": 1, "blocked_for": 10.0},
            "blocked",
        ),
        ({"alert_parked": 5}, {"parked": 4}, {"parked": 5}, "parked"),
        (
            {"alert_queue_depth": 100, "report_queues": ["q", "gone"]},
            {"queues": {"q": QueueDepth(100, 1), "gone": None}},
            {"queues": {"q": QueueDepth(101, 1), "gone": None}},
            "queue_depth",
        ),
    ],
)
def test_each_threshold_fires_once_beyond_it_and_is_over_once(
    options: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], rule: str
) -> None:
    alerts = Alerts(rules_for(leveret.MonitoringSettings(**options)))
    assert alerts.apply(report(**good)) == []
    (begun,) = alerts.apply(report(**bad))
    assert (begun.rule, begun.firing, alerts.firing) == (rule, True, (rule,))
    assert str(begun).startswith(f"alert {rule}: ")
    assert alerts.apply(report(**bad)) == []
    (over,) = alerts.apply(report(**good))
    assert (over.rule, over.firing, over.text, alerts.firing) == (rule, False, begun.text, ())
    assert "is over after 0 s" in str(over)
    assert alerts.apply(report(**good)) == []


@pytest.mark.parametrize(
    ("options", "bad", "unknown"),
    [
        (
            {"alert_success": 0.99},
            {"published": dataclasses.replace(QUIET.published, success=0.5)},
            {"published": QUIET.published},
        ),
        ({"alert_handler_p99": 0.5}, {"handling": slow(0.6)}, {}),
        (
            {"alert_queue_depth": 100, "report_queues": ["q"]},
            {"queues": {"q": QueueDepth(101, 1)}},
            {"queues": {"q": None}},
        ),
    ],
)
def test_an_alert_goes_on_while_nothing_tells_that_all_is_well(
    options: dict[str, Any], bad: dict[str, Any], unknown: dict[str, Any]
) -> None:
    alerts = Alerts(rules_for(leveret.MonitoringSettings(**options)))
    assert len(alerts.apply(report(**bad))) == 1
    assert alerts.apply(report(**unknown)) == []
    assert len(alerts.firing) == 1


def test_a_rule_of_one_s_own_may_not_know() -> None:
    answers = ["bad", AlertRule.UNKNOWN, None]
    alerts = Alerts([AlertRule("mine", lambda it: answers.pop(0))])
    assert [len(alerts.apply(report())) for _ in range(3)] == [1, 0, 1]


async def wait_for_it(it: Report) -> str | None:
    return None


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("", len, "the name of an alert rule is a text"),
        (None, len, "the name of an alert rule is a text"),
        ("mine", None, "check is a NoneType, not a function"),
        ("mine", wait_for_it, "check is the `async def` function"),
    ],
)
def test_a_rule_that_could_never_be_applied_is_refused(name: Any, check: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        AlertRule(name, check)


@pytest.mark.parametrize("rules", [5, AlertRule("mine", lambda it: None), [object()]])
def test_what_is_no_list_of_rules_is_refused(rules: Any) -> None:
    with pytest.raises(ConfigurationError, match="rules") as refusal:
        Alerts(rules)
    assert refusal.value.option == "rules"


def test_a_rule_that_returns_something_else_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    answer: Any = 7
    alerts = Alerts([AlertRule("mine", lambda it: answer)])
    assert alerts.apply(report()) == alerts.apply(report()) == []
    assert len(caplog.records) == 1


def test_without_thresholds_there_are_no_rules() -> None:
    assert rules_for(leveret.MonitoringSettings()) == []


def test_a_depth_without_queues_would_never_fire_and_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="alert_queue_depth needs report_queues"):
        rules_for(leveret.MonitoringSettings(alert_queue_depth=1))


def test_two_rules_of_one_name_are_refused() -> None:
    rule = AlertRule("lost", lambda it: None)
    with pytest.raises(ConfigurationError, match="2 alert rules are named 'lost'") as refusal:
        Alerts([rule, rule])
    assert refusal.value.option == "rules"


def test_a_rule_that_raises_is_logged_once_and_the_others_are_applied(caplog: pytest.LogCaptureFixture) -> None:
    def fail(it: Report) -> str | None:
        raise ValueError

    alerts = Alerts([AlertRule("fails", fail), AlertRule("lost", lambda it: "lost" if it.lost else None)])
    assert [(it.rule, it.firing) for it in alerts.apply(report(lost=1))] == [("lost", True)]
    assert [(it.rule, it.firing) for it in alerts.apply(report())] == [("lost", False)]
    assert [record.getMessage() for record in caplog.records] == ["the alert rule 'fails' failed (logged once)"]


@pytest.mark.parametrize(
    ("options", "reports"),
    [
        ({}, False),
        ({"sinks": ["prometheus"], "slow_handler": 1.0}, False),
        ({"report_every": 5}, True),
        ({"report_queues": ["q"]}, True),
        ({"alert_silence": 60}, True),
    ],
)
def test_an_option_that_needs_reports_begins_them(options: dict[str, Any], reports: bool) -> None:
    assert leveret.MonitoringSettings(**options).reports is reports


def test_a_rule_of_one_s_own_is_applied() -> None:
    alerts = Alerts([AlertRule("lost", lambda it: f"{it.lost} connections were lost" if it.lost else None)])
    assert [str(alert) for alert in alerts.apply(report(lost=2))] == ["alert lost: 2 connections were lost"]


def test_silence_and_blocking_add_up_over_reports_and_end() -> None:
    def following(last: Report | None, **numbers: int) -> Report:
        totals = Totals()
        totals._values.update(numbers)
        return Report.between("c", 10.0, Totals(), totals, ProcessUsage(None, 0.0, 0, 0.0), {}, last)

    first = following(None, consumers_expected=1, connections_blocked=1)
    second = following(first, consumers_expected=1, connections_blocked=1)
    assert (first.silent, second.silent, first.blocked_for, second.blocked_for) == (10, 20, 10, 20)
    third = following(second, consumers_expected=1, deliveries=1)
    assert (third.silent, third.blocked_for) == (0, 0)
    assert following(second).silent == 0, "no consumer is to get anything"
