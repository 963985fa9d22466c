"""Which losses end a consumer, and when a missing queue does."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.connection.link import Link
from leveret.consuming.losses import LossRules, is_outage, typed
from leveret.errors import (
    AccessRefused,
    ChannelClosed,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    ConsumerCancelled,
    DeliveryTimeout,
    EncodeFailed,
    LeveretError,
    NotFound,
    OperationTimeout,
    PreconditionFailed,
    ResourceLocked,
)
from leveret.plugins.registry import PluginRegistry
from leveret.settings import ConnectionSettings, ConsumerSettings

MISSING = NotFound("gone", reply_code=404, reply_text="NOT_FOUND - no queue 'q' in vhost '/'")
#: What RabbitMQ says when a queue exists and its node is away.
AWAY = NotFound("away", reply_code=404, reply_text="NOT_FOUND - home node 'r@h' of durable queue 'q' is down")
LATE = PreconditionFailed(
    "late",
    reply_code=406,
    reply_text="PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1000 ms.",
)
LOSSES = [
    ConnectionLost("reset"),
    ChannelClosed("closed", reply_code=320),
    MISSING,
    AWAY,
    LATE,
    OperationTimeout("late"),
]


def rules(*, auto_recovery: bool = True, **options: Any) -> LossRules:
    link = Link(ConnectionSettings(auto_recovery=auto_recovery), "rules", PluginRegistry.from_plugins())
    return LossRules(ConsumerSettings(**options), link)


@pytest.mark.parametrize(
    "error", [*LOSSES, ConsumerCancelled("cancelled"), AccessRefused("403"), ResourceLocked("405")]
)
def test_a_consumer_goes_on_after_every_loss_by_default(error: LeveretError) -> None:
    assert rules().go_on_after(error)
    assert not rules(auto_recovery=False).go_on_after(error)


def test_a_consumer_ends_when_its_client_was_closed_meanwhile() -> None:
    error = ConnectionLost("reset")
    assert rules(auto_recovery=False).end_after(error, "q", 0.0) is error


@pytest.mark.parametrize("error", [ConfigurationError("wrong"), EncodeFailed("too long")])
def test_a_consumer_ends_when_no_attempt_can_succeed(error: LeveretError) -> None:
    assert not rules().go_on_after(error)
    assert rules().end_after(error, "q", 0.0) is error


def test_only_a_cancelled_consumer_ends_when_cancelling_is_to_stop_it() -> None:
    stopping = rules(on_cancel="stop")
    assert not stopping.go_on_after(ConsumerCancelled("cancelled"))
    assert all(stopping.go_on_after(error) for error in LOSSES)


def test_a_queue_that_stays_missing_ends_the_consumer_in_time() -> None:
    rule = rules(queue_missing_timeout=60.0)
    assert rule.delay(30.0, 0.0) == 30.0
    assert rule.end_after(MISSING, "q", 100.0) is None
    assert rule.delay(30.0, 110.0) == 30.0
    assert rule.delay(30.0, 145.0) == 15.0, "the last attempt is made when the time is up"
    assert rule.delay(30.0, 999.0) == 0.0
    assert rule.end_after(MISSING, "q", 159.0) is None
    ended = rule.end_after(MISSING, "q", 160.0)
    assert isinstance(ended, NotFound)
    assert (ended.reply_code, ended.reply_text, ended.__cause__) == (404, MISSING.reply_text, MISSING)
    assert "'q'" in str(ended)
    assert "queue_missing_timeout of 60 s" in str(ended)


@pytest.mark.parametrize("between", [ConnectionLost("reset"), AWAY, None], ids=["connection", "node", "subscribed"])
def test_the_time_begins_anew_when_something_else_came_between(between: LeveretError | None) -> None:
    rule = rules(queue_missing_timeout=60.0)
    assert rule.end_after(MISSING, "q", 0.0) is None
    if between is None:
        rule.subscribed()
    else:
        assert rule.end_after(between, "q", 59.0) is None
    assert rule.end_after(MISSING, "q", 100.0) is None
    assert rule.end_after(MISSING, "q", 159.0) is None
    assert rule.end_after(MISSING, "q", 160.0) is not None


def test_a_queue_whose_node_is_away_is_waited_for_without_a_limit() -> None:
    rule = rules(queue_missing_timeout=0.0)
    assert [rule.end_after(AWAY, "q", now) for now in (0.0, 1e3, 1e6)] == [None] * 3
    assert rule.end_after(MISSING, "q", 0.0) is not None


def test_a_name_that_the_server_chose_is_not_tried_again() -> None:
    assert rules().end_after(MISSING, "amq.gen-abc", 0.0) is MISSING
    assert rules().end_after(ConnectionLost("reset"), "amq.gen-abc", 0.0) is None


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (ConnectionLost("reset"), True),
        (ConnectFailed("refused"), True),
        (OperationTimeout("late"), True),
        (AWAY, True),
        (MISSING, False),
        (AccessRefused("no right", reply_code=403), False),
        (ResourceLocked("exclusive", reply_code=405), False),
        (ConfigurationError("wrong"), False),
    ],
    ids=["reset", "unreachable", "silent", "node_away", "missing", "refused", "locked", "wrong"],
)
def test_a_consumer_that_is_started_waits_for_what_passes_by_itself(error: LeveretError, waits: bool) -> None:
    assert is_outage(error) is waits


def test_a_channel_closed_for_a_late_acknowledgement_has_an_error_of_its_own() -> None:
    late = typed(LATE, "q")
    assert isinstance(late, DeliveryTimeout)
    assert late.__cause__ is LATE
    assert (late.reply_code, "'q'" in str(late)) == (406, True)
    other = PreconditionFailed("unknown delivery tag", reply_code=406, reply_text="unknown delivery tag 7")
    assert typed(other, "q") is other
    assert typed(MISSING, "q") is MISSING
