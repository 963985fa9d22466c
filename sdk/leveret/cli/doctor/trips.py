"""Checks that need messages: how long they take, whether retries come back, and the broker's clock."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from leveret.cli.doctor.finding import failed, milliseconds, ok, skipped, warning
from leveret.cli.doctor.visit import KEPT, Writing
from leveret.consuming.failing.retry_queues import queue_arguments, retry_queue
from leveret.errors import ChannelClosed

if TYPE_CHECKING:
    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit
    from leveret.wire.message import Message

__all__ = ["clock", "retry_trip", "round_trip"]

#: Messages of the round trip.
_MESSAGES: Final = 20
_BODY: Final = b"leveret doctor"
#: Milliseconds that a message waits in the retry queue.
_WAIT: Final = 200
#: Seconds by which clocks may differ without a word.
_MOST_SKEW: Final = 1.0
_NO_QUEUE: Final = "the user may not make a queue of its own for it, or not publish to it"


def _can_work(visit: Visit) -> bool:
    return visit.work is not None and visit.writing is Writing.GRANTED


async def round_trip(visit: Visit) -> Finding:
    """Publishes messages one by one, and measures until each is confirmed and until it arrives."""
    if not _can_work(visit):
        return skipped(_NO_QUEUE)
    assert visit.work is not None
    _, name, arrivals = visit.work
    confirmed: list[float] = []
    consumed: list[float] = []
    producer = await visit.producer()
    for number in range(1, _MESSAGES + 1):
        before, begun = time.time(), time.perf_counter()
        await producer.publish(_BODY, name)
        confirmed.append(time.perf_counter() - begun)
        try:
            async with asyncio.timeout(visit.step):
                arrived, message = await arrivals.next()
        except TimeoutError:
            return failed(f"message {number} was confirmed, and did not arrive within {visit.step:g} s")
        consumed.append(arrived - begun)
        _note_stamp(visit, message, before, time.time())
    visit.confirm_p50 = median(confirmed)

    def of(times: list[float]) -> str:
        return f"p50 {milliseconds(median(times))}, longest {milliseconds(max(times))}"

    return ok(
        f"{_MESSAGES} messages one by one: publish to confirm {of(confirmed)}; publish to consume {of(consumed)}",
        figures={
            "publish_to_confirm_p50_ms": median(confirmed) * 1000,
            "publish_to_confirm_max_ms": max(confirmed) * 1000,
            "publish_to_consume_p50_ms": median(consumed) * 1000,
            "publish_to_consume_max_ms": max(consumed) * 1000,
        },
    )


async def retry_trip(visit: Visit) -> Finding:
    """Sends a message through a retry queue of its own, from where it has to come back."""
    if not _can_work(visit):
        return skipped(_NO_QUEUE)
    assert visit.work is not None
    _, name, arrivals = visit.work
    # Beside the queue where it comes back to: names that begin like that are those that the user has rights for.
    waiting = retry_queue(name.rpartition(".retry.")[0] or name, visit.new_number())
    arguments = {**queue_arguments(name, visit.server_properties, _WAIT), "x-expires": KEPT * 1000}
    advice = "Failed messages are held by their consumers where retry queues do not work. See docs/errors.md."
    # What is broken off on the way is deleted at the end of the visit.
    visit.making(waiting)
    try:
        channel = await visit.channel()
        await channel.queue_declare(waiting, arguments=arguments)
        await channel.close()
    except ChannelClosed as error:
        visit.not_made(waiting)
        return failed(f"no quorum queue could be declared: {error.reply_text}", advice)
    producer = await visit.producer()
    before, begun = time.time(), time.perf_counter()
    await producer.publish(_BODY, waiting)
    try:
        async with asyncio.timeout(visit.step):
            arrived, message = await arrivals.next()
    except TimeoutError:
        finding = failed(f"a message did not come back from its retry queue within {visit.step:g} s", advice)
    else:
        _note_death(visit, message, before + _WAIT / 1000, time.time())
        took = milliseconds(arrived - begun)
        finding = ok(f"a message waited {_WAIT} ms in a quorum queue and came back after {took}")
    await visit.delete(waiting)
    return finding


def _note_stamp(visit: Visit, message: Message, before: float, after: float) -> None:
    """Notes a time that the broker has put into a message, which was published without one."""
    exact: Any = message.headers.get("timestamp_in_ms")
    if type(exact) is int:
        visit.stamps.append((exact / 1000, 0.001, before, after))
    elif isinstance(message.properties.timestamp, datetime):
        visit.stamps.append((message.properties.timestamp.timestamp(), 1.0, before, after))


def _note_death(visit: Visit, message: Message, before: float, after: float) -> None:
    """Notes the time at which the broker dead-lettered a message, which every RabbitMQ writes into `x-death`."""
    deaths: Any = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        when = deaths[0].get("time")
        if isinstance(when, datetime):
            visit.stamps.append((when.timestamp(), 1.0, before, after))


async def clock(visit: Visit) -> Finding:
    """Compares the broker's clock with this host's, by the times that it has put into messages."""
    if not visit.stamps:
        return skipped("the broker told no time: AMQP has none, and no message of this examination was dead-lettered")
    # The broker's clock was ahead by at least `least`, and by less than `most`.
    least = max(told - after for told, _, _, after in visit.stamps)
    most = min(told + exact - before for told, exact, before, _ in visit.stamps)
    ahead, doubt = (least + most) / 2, abs(most - least) / 2
    figures = {"ahead_s": ahead, "uncertainty_s": doubt}
    if least <= 0 <= most:
        return ok(f"no difference to this host's was seen, to {doubt:.2g} s", figures=figures)
    text = f"{abs(ahead):.3g} s {'ahead of' if ahead > 0 else 'behind'} this host's, give or take {doubt:.2g} s"
    if max(least, -most) <= _MOST_SKEW:
        return ok(text, figures=figures)
    advice = "Set both clocks by NTP: certificates, tokens and durations across hosts depend on them."
    return warning(text, advice, figures)
