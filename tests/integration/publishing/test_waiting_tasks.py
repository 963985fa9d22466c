"""Tasks that await `publish`: woken together, cancelled alone, each in its own context."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import EncodeFailed, MessageReturned, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from leveret import Receipt
    from leveret.publishing.producer import Producer
    from leveret.publishing.publishing import Publishing


@pytest.fixture
async def producer() -> AsyncIterator[Producer]:
    async with (
        EmbeddedBroker() as broker,
        leveret.connect(broker.url) as client,
        client.producer(max_outstanding=1000) as producer,
    ):
        await client.declare(Topology().queue("q"))
        await producer.publish("the first with a routing key goes the long way", "q")
        yield producer


async def test_each_task_goes_on_in_its_own_context(producer: Producer) -> None:
    name = contextvars.ContextVar[int]("name")

    async def publish(number: int) -> tuple[int, int]:
        name.set(number)
        receipt = await producer.publish(number, "q")
        assert asyncio.current_task() is not None
        return name.get(), receipt.delivery_tag

    found = await asyncio.gather(*map(publish, range(500)))
    assert [number for number, _ in found] == list(range(500))
    assert sorted(tag for _, tag in found) == list(range(2, 502))


async def test_a_task_that_is_cancelled_does_not_end_the_wait_of_the_others(producer: Producer) -> None:
    tasks = [asyncio.create_task(producer.publish(number, "q")) for number in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel("enough")
    tasks[7].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [asyncio.CancelledError if i in (3, 7) else leveret.Receipt for i in range(10)]
    # gather makes errors of its own; the task's own has the words.
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await tasks[3]
    await producer.flush()
    assert producer.counters()["confirmed"] == 11, "what was written is not taken back"


async def test_a_wait_has_a_deadline(producer: Producer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await producer.publish(1, "q")
    assert (await producer.publish(2, "q")).delivery_tag == 3


async def test_tasks_in_pure_python_wait_as_well(producer: Producer) -> None:
    task: Any = asyncio.tasks._PyTask(producer.publish(1, "q"), loop=asyncio.get_running_loop())  # type: ignore[attr-defined]
    assert (await task).delivery_tag == 2


async def test_it_is_sent_at_once_when_nothing_is_in_flight(producer: Producer) -> None:
    connection = producer._connection
    before = connection.sent_bytes
    first = producer.publish(1, "q")
    waiter = first.send(None)
    sent = connection.sent_bytes
    assert sent > before, "before anything else had a turn"
    second = producer.publish(2, "q")
    second.send(None)
    assert connection.sent_bytes == sent, "this one shares a write with those that may follow"
    assert asyncio.isfuture(waiter)
    first.close()
    second.close()
    await producer.flush()


async def test_a_task_has_gone_on_when_the_read_of_its_confirm_ends(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = producer.settled
    published: list[int] = []
    seen: list[list[int]] = []

    def settled(run: Any) -> None:
        settle(run)
        seen.append(published.copy())

    async def publish() -> None:
        await producer.publish(1, "q")
        published.append(1)

    monkeypatch.setattr(producer, "settled", settled)
    await asyncio.create_task(publish())
    assert seen == [[1]]


async def test_a_handler_has_ended_when_the_read_of_its_message_ends(producer: Producer) -> None:
    handled: list[str] = []
    seen: list[list[str]] = []
    begun = asyncio.Event()
    async with leveret.connect(producer._connection.settings) as client:
        consumer = client.consumer("q", str)
        delivered = consumer.delivered

        def deliver(run: Any) -> None:
            delivered(run)
            seen.append(handled.copy())

        async def handler(value: str, message: leveret.Message) -> None:
            handled.append(value)
            begun.set()
            if value == "the second":
                consumer.stop()

        running = asyncio.create_task(consumer.run(handler))
        await begun.wait()  # the first delivery may come before a task waits for it
        consumer.delivered = deliver  # type: ignore[method-assign]
        await producer.publish("the second", "q")
        async with asyncio.timeout(5):
            await running
    assert seen == [[*handled[:-1], "the second"]]


async def test_what_a_task_uses_of_a_future(producer: Producer) -> None:
    publishing = producer.publish(1, "q")
    assert publishing.get_loop() is asyncio.get_running_loop()
    assert (publishing.done(), publishing.cancelled()) == (False, False)
    for ask in publishing.result, publishing.exception:
        with pytest.raises(asyncio.InvalidStateError, match="no outcome yet"):
            ask()
    called: list[object] = []
    publishing.add_done_callback(print)
    publishing.add_done_callback(called.append)
    assert publishing.remove_done_callback(print) == 1
    assert publishing.remove_done_callback(print) == 0
    assert publishing.remove_done_callback(called.append) == 1
    await producer.flush()
    assert publishing.done()
    assert publishing.exception() is None
    assert not publishing.cancel(), "it is done"
    publishing.add_done_callback(called.append)
    assert called == [], "no task wakes another inside its own call"
    await asyncio.sleep(0)
    assert called == [publishing]
    assert publishing.result().delivery_tag == 2


async def test_a_task_goes_on_later_when_another_one_did_the_read(producer: Producer) -> None:
    waiting = asyncio.create_task(producer.publish(1, "q"))
    await asyncio.sleep(0)
    # A program that drives the transport itself, from a task.
    producer._connection.transport.pause_reading()
    confirm = frames.method(producer._channel.number, 60, 80, b"\0\0\0\0\0\0\0\2\0")  # type: ignore[union-attr]
    memoryview(producer._connection.transport.get_buffer(len(confirm)))[: len(confirm)] = confirm
    producer._connection.transport.buffer_updated(len(confirm))
    assert not waiting.done(), "this task has not let others run"
    async with asyncio.timeout(5):
        assert (await waiting).delivery_tag == 2
    producer._connection.transport.resume_reading()


async def one_await(publishing: Publishing[Receipt]) -> Receipt:
    return await publishing


async def gathered(publishing: Publishing[Receipt]) -> Receipt:
    (receipt,) = await asyncio.gather(publishing)
    return receipt


async def shielded(publishing: Publishing[Receipt]) -> Receipt:
    return await asyncio.shield(publishing)


async def in_a_time(publishing: Publishing[Receipt]) -> Receipt:
    return await asyncio.wait_for(publishing, 5)


async def in_a_task(publishing: Publishing[Receipt]) -> Receipt:
    return await asyncio.create_task(publishing)


async def in_a_group(publishing: Publishing[Receipt]) -> Receipt:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(publishing)
    return task.result()


async def as_completed(publishing: Publishing[Receipt]) -> Receipt:
    (first,) = asyncio.as_completed([publishing])
    return await first


WAYS = [one_await, gathered, shielded, in_a_time, in_a_task, in_a_group, as_completed]


@pytest.mark.parametrize("way", WAYS)
async def test_a_publishing_is_awaited_in_every_way(producer: Producer, way: Callable[..., Awaitable[Receipt]]) -> None:
    assert (await way(producer.publish(1, "q"))).delivery_tag == 2
    ended = producer.publish(2, "q")
    await producer.flush()
    assert (await way(ended)).delivery_tag == 3, "it may be over before it is awaited"
    assert (await way(ended)).delivery_tag == 3, "and be awaited again"


@pytest.mark.parametrize("way", WAYS)
async def test_its_error_is_raised_where_it_is_awaited(
    producer: Producer, way: Callable[..., Awaitable[Receipt]]
) -> None:
    refusals: list[tuple[Any, str, Any, type[Exception]]] = [
        (object(), "q", {}, EncodeFailed),
        (1, "no such queue", {}, MessageReturned),
        (1, "q", {"priority": 256}, EncodeFailed),
    ]
    for value, routing_key, options, kind in refusals:
        refused = False
        try:
            await way(producer.publish(value, routing_key, **options))
        except* kind:  # a group of tasks raises a group of errors
            refused = True
        assert refused
    await producer.flush()


async def test_many_tasks_may_await_one_publishing(producer: Producer) -> None:
    publishing = producer.publish(1, "q")
    receipts = await asyncio.gather(*(one_await(publishing) for _ in range(3)), publishing)
    assert [receipt.delivery_tag for receipt in receipts] == [2] * 4


async def test_what_is_never_awaited_is_published_and_its_failure_is_told_by_flush(producer: Producer) -> None:
    producer.publish(1, "q")
    await producer.flush()
    assert producer.counters()["confirmed"] == 2
    producer.publish(1, "no such queue")
    producer.publish(object(), "q")
    with pytest.raises(leveret.PublishError, match="2 publishings that were not awaited failed"):
        await producer.flush()
    asked_for = producer.publish(object(), "q")
    assert isinstance(asked_for.exception(), EncodeFailed)
    await producer.flush()


async def test_asyncio_wait_takes_it_in_a_task_only(producer: Producer) -> None:
    publishing = producer.publish(1, "q")
    with pytest.raises(TypeError):
        await asyncio.wait([publishing])  # type: ignore[type-var]
    done, _ = await asyncio.wait([asyncio.ensure_future(producer.flush()), asyncio.create_task(publishing)])
    assert len(done) == 2


async def test_a_callback_that_raises_disturbs_no_other(producer: Producer) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("of a callback")

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    publishing = producer.publish(1, "q")
    publishing.add_done_callback(fail)
    assert (await publishing).delivery_tag == 2
    await asyncio.sleep(0)
    assert told == ["of a callback"]


def test_the_others_wake_when_one_ends_the_program() -> None:
    loop = asyncio.new_event_loop()
    done: list[int] = []

    async def publish(producer: Producer, number: int) -> None:
        await producer.publish(number, "q")
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)

    async def main() -> None:
        async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client, client.producer() as producer:
            await client.declare(Topology().queue("q"))
            await producer.publish("the first goes the long way", "q")
            tasks = [asyncio.create_task(publish(producer, number)) for number in range(5)]
            await asyncio.wait(tasks)
            assert isinstance(tasks[2].exception(), KeyboardInterrupt)

    try:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        # A program that goes on nevertheless finds everything as it should be.
        loop.run_until_complete(task)
    finally:
        loop.close()
    assert sorted(done) == [0, 1, 3, 4]


async def test_it_is_refused_in_the_child_of_a_fork(producer: Producer) -> None:
    read, write = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on it warns of other threads, which others leave behind; the child needs no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            producer.publish_nowait(2, "q")
        except WrongLoopError:
            said = b"refused"
        finally:
            os.write(write, said)
            os._exit(0)
    assert await asyncio.to_thread(os.read, read, 100) == b"refused"
    await asyncio.to_thread(os.waitpid, child, 0)
    os.close(read)
    os.close(write)
    assert (await producer.publish(3, "q")).delivery_tag == 2


def test_it_is_refused_when_its_loop_does_not_run() -> None:
    async def other() -> None:
        with pytest.raises(WrongLoopError):
            producer.publish_nowait(2, "q")

    async def opened() -> Producer:
        client = await stack.enter_async_context(leveret.connect(broker.url))
        await client.declare(leveret.Topology().queue("q"))
        producer = await stack.enter_async_context(client.producer())
        await producer.publish(1, "q")
        producer.publish_nowait(1, "q")
        await producer.flush()
        return producer

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        stack = contextlib.AsyncExitStack()
        broker = loop.run_until_complete(stack.enter_async_context(EmbeddedBroker()))
        producer = loop.run_until_complete(opened())
        with pytest.raises(WrongLoopError):
            producer.publish_nowait(2, "q")
        asyncio.run(other())
        assert producer.counters()["published"] == 2
        loop.run_until_complete(stack.aclose())
