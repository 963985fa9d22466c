"""Checks what the user may do, by trying it.

Retry and parking queues of `--queue` are tried under their own names, without making them. RabbitMQ looks at the rights
before it looks at the arguments (rabbit_channel.erl: queue.declare, basic.consume), so a request with a nonsensical
argument is refused with 403 for want of a right, and otherwise with 406. So no message is taken, and no queue is there
for a moment that a running consumer could use and lose messages in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.cli.doctor.arrivals import Arrivals
from leveret.cli.doctor.broker import is_embedded
from leveret.cli.doctor.finding import count, failed, ok, skipped, some, warning
from leveret.cli.doctor.visit import RABBITMQ, Writing
from leveret.consuming.failing.error_policy import Retry
from leveret.consuming.failing.means import SHARED_PARKING, Means, means_for
from leveret.consuming.failing.retry_queues import parking_queue, queue_arguments, retry_queue
from leveret.errors import (
    AccessRefused,
    ChannelClosed,
    MessageReturned,
    NotFound,
    OperationTimeout,
    PreconditionFailed,
    PublishError,
    ResourceLocked,
    printable,
)
from leveret.topology.declared import Declared
from leveret.wire.numbers import ACCESS_REFUSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit
    from leveret.connection.channel import Channel

__all__ = ["alarms", "parking", "permissions", "queue", "retries"]

#: A value that no argument of these may have.
_NONSENSE: Final = "leveret doctor"
_NO_WRITE: Final = "no right to write to amq.default, the default exchange"
_DOCS: Final = "See docs/errors.md, Rights."


async def alarms(visit: Visit) -> Finding:
    """Publishes a message that no queue takes, and sees whether the broker blocks publishers."""
    producer = await visit.producer()
    connection = visit.logged_in.connection
    # RabbitMQ says that it blocks when the first message comes, perhaps after confirming it; never the second.
    for _ in range(2):
        try:
            await producer.publish(b"", visit.new_name())
        except MessageReturned:
            continue
        except PublishError as error:
            if getattr(error, "reply_code", 0) == ACCESS_REFUSED:
                visit.writing = Writing.MISSING
                return skipped("not known: the user may not publish to the default exchange")
            if connection.blocked is None:
                raise
            break
    if (reason := connection.blocked) is not None:
        advice = "Free memory or disk on the broker, or raise its limits (rabbitmqctl status names the alarm)."
        return failed(f"the broker blocks publishers: {reason}", advice)
    visit.writing = Writing.GRANTED
    return ok("none: the broker takes messages")


async def permissions(visit: Visit) -> Finding:
    """Declares a queue of its own, consumes from it, and says whether the default exchange may be published to."""
    names = [visit.new_name()]
    if visit.queue is not None and means_for(visit.queue, Declared()) is Means.QUEUES:
        # Rights are given for names. The user of a consumer has them for its retry queues, if for any.
        names.append(retry_queue(visit.queue, visit.new_number()))
    missing = []
    for name in names:
        right = await _open_work(visit, name)
        if right is None:
            break
        missing.append(f"{right} {name!r}")
    can_work = len(missing) < len(names)
    texts = [f"may declare and consume {names[len(missing)]!r}"] if can_work else []
    texts += [f"may not {text}" for text in missing]
    if visit.writing is Writing.GRANTED:
        texts.append("may publish to the default exchange")
    elif visit.writing is Writing.MISSING:
        texts.append("may not publish to the default exchange (write on amq.default)")
    if can_work and visit.writing is not Writing.MISSING:
        return ok("; ".join(texts))
    advice = "Retries and parking need these rights, and so does publishing to a queue by its name."
    if visit.queue is None:
        advice += " Rights are given for names: say --queue NAME to try those of your queue."
    return warning("; ".join(texts), advice)


async def _open_work(visit: Visit, name: str) -> str | None:
    """Declares an exclusive queue and consumes from it; returns what the user may not do, or None."""
    channel = await visit.channel()
    arrivals = Arrivals()
    right = "declare"
    try:
        # It ends with its connection, however this process ends.
        await channel.queue_declare(name, durable=False, exclusive=True)
        right = "consume"
        await channel.basic_consume(name, arrivals, consumer_tag="leveret-doctor", no_ack=True)
    except AccessRefused:
        return right
    visit.work = channel, name, arrivals
    return None


async def queue(visit: Visit) -> Finding:
    """Looks at the queue of `--queue`, and tries the right to consume from it without taking a message."""
    name = visit.queue
    if name is None:
        return skipped("no --queue was given")
    shown = repr(printable(name, 128))
    advice = f"Grant the user the right to read {shown} (rabbitmqctl set_permissions)."
    try:
        channel = await visit.channel()
        declared = await channel.queue_declare(name, passive=True)
        await channel.close()
    except NotFound:
        return failed(f"{shown} does not exist in this virtual host", "Declare it, or check its name.")
    except ResourceLocked:
        return failed(f"{shown} is exclusive to another connection", "Only that connection may use it.")
    except AccessRefused as error:
        return failed(f"{shown}: {error.reply_text}", advice)
    messages, consumers = declared.message_count or 0, declared.consumer_count or 0
    text = f"{shown} has {count(messages, 'message')} and {count(consumers, 'consumer')}"
    if is_embedded(visit):
        return ok(f"{text}; the embedded broker knows no permissions")
    if visit.product != RABBITMQ:
        return warning(f"{text}; the right to consume was not tried", "Only with RabbitMQ it is known how to try that.")

    async def consume(channel: Channel) -> None:
        await channel.basic_qos(1)
        await channel.basic_consume(
            name, Arrivals(), consumer_tag="leveret-doctor", arguments={"x-priority": _NONSENSE}
        )

    if await _is_refused(visit, consume):
        return failed(f"{text}; the user may not consume from it", advice)
    return ok(f"{text}; may consume")


async def retries(visit: Visit) -> Finding:
    """Tries the rights that retry queues need: configure and read on them, and write on the default exchange."""
    answer = _not_tried(visit)
    if answer is not None:
        return answer
    assert visit.queue is not None
    if means_for(visit.queue, Declared()) is Means.HERE:
        return skipped("the queue has none, for its name: its consumers hold failed messages until the next attempt")
    missing: list[str] = []
    names = [retry_queue(visit.queue, round(delay * 1000)) for delay in Retry().delays]
    for name, delay in zip(names, Retry().delays, strict=True):
        arguments = queue_arguments(visit.queue, visit.server_properties, round(delay * 1000))
        missing += await _lacking(visit, name, arguments)
    if visit.writing is Writing.MISSING:
        missing.append(_NO_WRITE)
    if missing:
        advice = f"{_what_to_grant(missing)} Until then consumers hold failed messages themselves. {_DOCS}"
        return failed(some(missing), advice)
    return ok(f"may declare and use {some([printable(name, 128) for name in names])}")


async def parking(visit: Visit) -> Finding:
    """Tries the rights that parking needs: configure on the parking queues, and write on the default exchange."""
    answer = _not_tried(visit)
    if answer is not None:
        return answer
    assert visit.queue is not None
    arguments = queue_arguments(visit.queue, visit.server_properties, None)
    own, shared = parking_queue(visit.queue), SHARED_PARKING
    is_transient = means_for(visit.queue, Declared()) is Means.HERE
    missing = {name: await _lacking(visit, name, arguments) for name in ((shared,) if is_transient else (own, shared))}
    if visit.writing is Writing.MISSING:
        missing[shared].append(_NO_WRITE)
    lacking = [text for texts in missing.values() for text in texts]
    if not lacking:
        return ok(f"may declare and use {some([printable(name, 128) for name in missing])}")
    advice = f"{_what_to_grant(lacking)} Until then consumers hold what they cannot park. {_DOCS}"
    if missing.get(own) == [] and visit.writing is not Writing.MISSING:
        return warning(some(lacking), f"{advice} {shared!r} is for messages of transient queues only.")
    return failed(some(lacking), advice)


def _what_to_grant(lacking: list[str]) -> str:
    if all(text.startswith("no right") for text in lacking):
        return "Grant the user these rights (rabbitmqctl set_permissions)."
    return "Grant the rights that are missing, and delete queues with other arguments when they are empty."


def _not_tried(visit: Visit) -> Finding | None:
    """Returns why rights by name are not tried, or None."""
    if visit.queue is None:
        return skipped("rights are given for names, and no --queue was given")
    if is_embedded(visit):
        return ok("the embedded broker knows no permissions")
    if visit.product != RABBITMQ:
        return skipped("only with RabbitMQ it is known how to try a right without using it")
    return None


async def _lacking(visit: Visit, name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Returns what stands in the way of declaring a queue and using it as Leveret does."""
    shown = repr(printable(name, 128))

    async def declare(channel: Channel) -> None:
        await channel.queue_declare(name, arguments={"x-message-ttl": _NONSENSE})

    async def declare_with_exchange(channel: Channel) -> None:
        await channel.queue_declare(name, arguments={"x-message-ttl": _NONSENSE, "x-dead-letter-exchange": ""})

    if await _is_refused(visit, declare):
        return [f"no right to configure {shown}"]
    # RabbitMQ asks for the right to read a queue with a dead-letter exchange, when that is declared anew.
    has_exchange = "x-dead-letter-exchange" in arguments
    if has_exchange and visit.writing is not Writing.MISSING and await _is_refused(visit, declare_with_exchange):
        return [f"no right to read {shown}"]
    return await _differing(visit, name, arguments)


async def _differing(visit: Visit, name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Returns how a queue that exists differs from what Leveret declares."""
    try:
        channel = await visit.channel()
        await channel.queue_declare(name, passive=True)
        # It exists, so this changes nothing.
        await channel.queue_declare(name, arguments=arguments)
        await channel.close()
    except NotFound:
        return []
    except PreconditionFailed as error:
        return [f"{printable(name, 128)!r} exists with another {error.argument or 'declaration'}"]
    except ChannelClosed as error:
        return [f"{printable(name, 128)!r}: {error.reply_text}"]
    return []


async def _is_refused(visit: Visit, request: Callable[[Channel], Awaitable[None]]) -> bool:
    """Sends a request that the broker refuses in any case; returns whether it does so for want of a right."""
    channel = await visit.channel()
    try:
        await request(channel)
    except AccessRefused:
        return True
    except OperationTimeout:
        await channel.close()
        raise
    except ChannelClosed:
        return False
    # It was taken, so the right is there.
    await channel.close()
    return False
