"""Reports, alerts and slow handlers of a client, and its health."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until

import leveret
from leveret.errors import ConfigurationError, ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.broker import EmbeddedBroker
    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def client(embedded: EmbeddedBroker) -> AsyncIterator[leveret.Client]:
    async with leveret.connect(embedded.url, client_name="billing") as connected:
        await connected.declare(leveret.Topology().queue("orders"))
        yield connected


async def test_a_report_has_rates_durations_success_and_the_process(
    broker: Broker, name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leveret.monitoring")
    queue = name("orders")
    reports: list[leveret.Report] = []
    async with leveret.connect(broker.url, client_name="billing") as client:
        await client.declare(leveret.Topology().queue(queue))
        client.report(every=0.3, queues=[queue], on_report=reports.append)

        async def handle(value: int, message: leveret.Message) -> bool:
            await asyncio.sleep(0.003)  # uvloop counts in milliseconds, and may be early
            return value % 10 > 0  # every tenth is refused, and so parked

        async with client.producer() as producer, running(client.consumer(queue), handle):
            await producer.publish_batch(range(100), queue)
            await until(lambda: sum(report.parked for report in reports) == 10)
            await until(lambda: sum(report.consumed.duration.count for report in reports) >= 100)
        at_work = [report for report in reports if report.consumed.count]
        assert sum(report.published.count for report in reports) >= 100
        assert sum(report.handling.count for report in reports) == 100
        first = at_work[0]
        assert first.published.rate == pytest.approx(first.published.count / first.seconds)
        assert first.published.success == 1.0
        assert 0 < first.published.duration.percentile(50) < 30
        assert 0.001 <= first.handling.percentile(50) < 5
        successes = [report.consumed.success for report in reports if report.consumed.success is not None]
        assert 0 <= min(successes) < 1
        assert (first.received, first.sent) > (0, 0)
        assert (first.prefetch, first.connections, first.consumers_expected, first.consumers_live) == (100, 2, 1, 1)
        assert first.process.rss is not None
        assert first.process.rss > 10_000_000
        assert first.process.cpu > 0
        depth = reports[-1].queues[queue]
        assert depth is not None
        assert depth.messages == 0
    record = next(record for record in caplog.records if "published 1" in record.getMessage())
    structured: Any = vars(record)["leveret_report"]
    assert structured["client"] == "billing"
    assert structured["published"]["duration"]["p99"] > 0
    assert "MB/s in" in record.getMessage()


async def test_an_alert_is_told_once_when_it_begins_and_once_when_it_is_over(
    client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leveret.monitoring")
    alerts: list[leveret.Alert] = []

    async def note(alert: leveret.Alert) -> None:
        await asyncio.sleep(0)
        alerts.append(alert)

    reporter = client.report(every=0.1, alert_silence=0.2, on_alert=note)
    async with client.producer() as producer, running(client.consumer("orders"), lambda value, message: None):
        await until(lambda: alerts)
        assert client.health().alerts == reporter.firing == ("silence",)
        await producer.publish(1, "orders")
        await until(lambda: len(alerts) >= 2)
    assert [alert.firing for alert in alerts[:2]] == [True, False]
    assert any(record.levelno == logging.WARNING and "no delivery for" in record.message for record in caplog.records)


async def test_a_slow_handler_is_reported_with_queue_handler_and_message_id(
    client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    before = client.consumer("orders", prefetch=1)
    client.report(every=10, slow_handler=0.05)

    async def charge(value: float, message: leveret.Message) -> None:
        await asyncio.sleep(value)

    async with client.producer() as producer, running(before, charge):
        await producer.publish(0.0, "orders", message_id="quick")
        await producer.publish(0.06, "orders", message_id="slow")
        await until(lambda: before.counters()["acked"] == 2)
    (text,) = [record.getMessage() for record in caplog.records if "took" in record.getMessage()]
    assert text.startswith("queue 'orders': the handler ")
    assert re.search(r"charge took \d+\.\d+ s", text)
    assert text.endswith("for message 'slow'")


async def test_a_handler_that_does_not_end_is_reported_once(
    client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = client.consumer("orders")
    client.report(every=10, slow_handler=0.05)
    go_on = asyncio.Event()

    async def hang(value: int, message: leveret.Message) -> None:
        await go_on.wait()

    def said() -> list[str]:
        return [text for text in caplog.messages if "has been at work" in text]

    async with client.producer() as producer, running(consumer, hang):
        await producer.publish(1, "orders", message_id="endless")
        await until(said)
        await asyncio.sleep(1.2)
        go_on.set()
        await until(lambda: consumer.counters()["acked"] == 1)
    (text,) = said()
    assert re.search(r"queue 'orders': the handler \S*hang has been at work for \S+ s on message 'endless'", text)


async def test_publishings_that_were_never_written_are_failures(proxy: FaultProxy) -> None:
    async with leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        reports: list[leveret.Report] = []
        alerts: list[leveret.Alert] = []
        client.report(every=0.2, on_report=reports.append, on_alert=alerts.append, alert_success=0.9)
        async with client.producer(publish_timeout=0.3) as producer:
            proxy.refuse()
            proxy.reset()
            for _ in range(3):
                with pytest.raises(leveret.PublishError):
                    await producer.publish(1, "orders", mandatory=False)
            await until(lambda: alerts)
            assert producer.counters()["not_sent"] + producer.counters()["unknown"] == 3
            assert alerts[0].rule == "publish_success"
            assert min(it.published.success for it in reports if it.published.success is not None) < 0.9
            proxy.accept()
            await producer.publish(1, "orders", mandatory=False)


async def test_a_service_that_only_consumes_is_ready_again_after_an_outage(proxy: FaultProxy) -> None:
    async with leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        await client.declare(leveret.Topology().queue("orders"))
        async with running(client.consumer("orders"), lambda value, message: None):
            await until(lambda: client.health().consumers_live == 1)
            lost = client.metrics
            proxy.reset()
            await until(lambda: sum(it.value for it in lost() if it.metric.name == "connections_lost") == 2)
            await until(lambda: client.health().ready)
            assert client.health().connections["publish"].startswith("lost, and made again when it is needed: ")


async def test_a_listener_may_close_the_client(embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    client = await leveret.connect(embedded.url)
    closed = asyncio.Event()

    async def close(report: leveret.Report) -> None:
        await client.close()
        closed.set()

    client.report(every=0.1, on_report=close)
    async with asyncio.timeout(10):
        await closed.wait()
    assert client.health().reasons[0] == "the client is closed"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class NativePanic(BaseException):
    """What some libraries in native code raise."""


def raise_cancelled(report: leveret.Report) -> None:
    raise asyncio.CancelledError


def raise_panic(report: leveret.Report) -> None:
    raise NativePanic


def cancel_the_task(report: leveret.Report) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@pytest.mark.parametrize("as_rule", [True, False])
@pytest.mark.parametrize("function", [raise_cancelled, raise_panic, cancel_the_task])
async def test_no_callback_ends_the_reports(
    client: leveret.Client, caplog: pytest.LogCaptureFixture, function: Any, as_rule: bool
) -> None:
    options: dict[str, Any] = {"rules": [leveret.AlertRule("mine", function)]} if as_rule else {"on_report": function}
    reporter = client.report(every=0.1, **options)
    await until(lambda: reporter.last is not None)
    first = reporter.last
    await until(lambda: reporter.last is not first and caplog.records)
    second = reporter.last
    await until(lambda: reporter.last is not second)
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize("plain", [True, False])
async def test_what_a_handler_raises_is_the_failure_of_its_message(client: leveret.Client, plain: bool) -> None:
    consumer = client.consumer("orders", on_error=leveret.Park())
    error = StopIteration() if plain else NativePanic()

    def raise_plainly(value: int, message: leveret.Message) -> None:
        raise error

    async def raise_in_the_loop(value: int, message: leveret.Message) -> None:
        raise error

    async with client.producer() as producer, running(consumer, raise_plainly if plain else raise_in_the_loop):
        await producer.publish(1, "orders")
        await until(lambda: consumer.counters()["parked"] == 1)
        assert consumer.counters()["handler_errors"] == 1


async def test_settings_begin_the_reports_and_the_call_replaces_them(
    embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leveret.monitoring")
    monitoring = leveret.MonitoringSettings(report_every=0.1)
    async with leveret.connect(embedded.url, client_name="billing", monitoring=monitoring) as client:
        await until(lambda: "billing, 0.1 s: no messages" in caplog.text)
        reporter = client.report(every=60)
        caplog.clear()
        await asyncio.sleep(0.3)
        assert reporter.last is None
        assert not caplog.records


async def test_reports_that_are_replaced_leave_nothing_at_work(client: leveret.Client) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(report: leveret.Report) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client.report(every=0.1, on_report=hang)
    async with asyncio.timeout(10):
        await begun.wait()
    client.report(every=60)
    async with asyncio.timeout(5):
        await cancelled.wait()


async def test_a_listener_that_does_not_let_itself_be_cancelled_does_not_keep_the_client_open(
    embedded: EmbeddedBroker,
) -> None:
    go_on = asyncio.Event()

    async def stubborn(report: leveret.Report) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    client = await leveret.connect(embedded.url, close_timeout=0.5)
    reporter = client.report(every=0.1, on_report=stubborn)
    await until(lambda: reporter.last is not None)
    async with asyncio.timeout(5):
        await client.close()
    go_on.set()


async def test_callbacks_that_raise_or_hang_and_rules_that_fail_disturb_nothing(
    client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(report: leveret.Report) -> None:
        await asyncio.Event().wait()

    def fail(report: leveret.Report) -> str | None:
        raise ValueError

    rules = [leveret.AlertRule("fails", fail)]
    reporter = client.report(every=0.1, queues=["missing"], rules=rules, on_report=hang)
    async with client.producer() as producer:
        for number in range(20):
            await producer.publish(number, "orders")
            await asyncio.sleep(0.02)
    await until(lambda: reporter.last is not None and reporter.last.published.count >= 0)
    assert reporter.last is not None
    assert reporter.last.queues == {"missing": None}
    texts = [record.getMessage() for record in caplog.records if record.name == "leveret.monitoring"]
    assert len([text for text in texts if "the alert rule 'fails' failed" in text]) == 1
    assert len([text for text in texts if "cannot ask for queue 'missing'" in text]) == 1


@pytest.mark.parametrize(
    ("options", "wrong"), [({"every": 0}, "report_every"), ({"evry": 1}, "evry"), ({"on_alert": 5}, "on_alert")]
)
async def test_wrong_options_are_refused(client: leveret.Client, options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        client.report(**options)
    assert refusal.value.option == wrong


async def test_a_closed_client_reports_nothing(client: leveret.Client) -> None:
    await client.close()
    with pytest.raises(ConnectionClosed):
        client.report()


# ---------------------------------------------------------------------- durations


async def test_each_delivery_is_timed_once_however_it_is_settled(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish_batch(range(4), "orders")
    async with client.consumer("orders") as consumer:
        async for message in consumer:
            if message.value == 0:
                message.ack()
            elif message.value == 1:
                await message.park()
            elif message.value == 2:
                message.dead_letter()
            else:
                message.ack()
                message.ack()
                break
        settled = consumer.meter.settled_time
        await until(lambda: settled.count == 4)
        await asyncio.sleep(0.05)
        assert settled.count == 4


@pytest.mark.parametrize("ack", ["coalesced", "each"])
@pytest.mark.parametrize("own", ["ack", "park", "dead_letter", None])
async def test_a_delivery_that_its_handler_settles_itself_is_timed_once(
    client: leveret.Client, ack: str, own: str | None
) -> None:
    async with client.producer() as producer:
        await producer.publish_batch(range(10), "orders")

    async def handle(value: int, message: leveret.Message) -> None:
        if own is not None:
            await getattr(message, own)()

    consumer = client.consumer("orders", ack=ack)
    settled = consumer.meter.settled_time
    async with running(consumer, handle):
        await until(lambda: settled.count >= 10)
        await asyncio.sleep(0.05)
        assert settled.count == consumer.meter.handler_time.count == 10


async def test_a_message_that_was_fetched_is_timed(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish(1, "orders")
    async with client.consumer("orders") as consumer:
        message = await consumer.get()
        assert message is not None
        await asyncio.sleep(0.02)
        message.ack()
        assert 0.015 <= consumer.meter.settled_time.read().highest < 30


async def test_failed_handlers_are_timed_and_cancelled_ones_are_not(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish_batch(range(3), "orders")

    async def handle(value: int, message: leveret.Message) -> None:
        if value == 1:
            raise ValueError
        if value == 2:
            await asyncio.sleep(60)

    consumer = client.consumer("orders", on_error=leveret.Drop())
    async with running(consumer, handle):
        await until(lambda: consumer.meter.handler_time.count == 2)
        await asyncio.sleep(0.02)
        consumer.stop()
        assert consumer.meter.waiting_time.count == 3
    await consumer.close()
    assert consumer.meter.handler_time.count == 2


# ---------------------------------------------------------------------- health


async def test_a_client_is_ready_while_it_is_connected_and_its_consumers_get_deliveries(client: leveret.Client) -> None:
    health = client.health()
    assert (health.ready, health.live, health.reasons, health.connections) == (True, True, (), {"publish": "open"})
    async with running(client.consumer("orders"), lambda value, message: None):
        await until(lambda: client.health().consumers_live == 1)
        assert client.health().ready
        assert client.health().connections == {"publish": "open", "consume": "open"}
        assert client.health().delivery_age is None
    await client.close()
    closed = client.health()
    assert (closed.ready, closed.live) == (False, False)
    assert closed.reasons[0] == "the client is closed"
    assert str(closed).startswith("not live: the client is closed")


async def publish_one(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish(1, "missing", mandatory=False)


async def test_a_client_without_a_connection_is_live_and_not_ready_and_says_why(proxy: FaultProxy) -> None:
    async with leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        assert client.health().ready
        proxy.refuse()
        proxy.reset()
        publishing = asyncio.create_task(publish_one(client))
        await until(lambda: not client.health().ready)
        health = client.health()
        assert health.live
        assert health.connections["publish"].startswith("lost: ")
        assert health.last_error
        proxy.accept()
        await publishing
        await until(lambda: client.health().ready)
