"""Handlers are coroutines, functions or awaitables; one that is cancelled, hangs or is slow harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, ends, running, until
from tests.support.loops import every_loop
from tests.support.unconnected import worker_of

import leveret
from leveret.errors import WrongLoopError
from leveret.wire.message import Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_a_plain_function_runs_in_a_thread_and_its_result_counts(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    threads: set[str] = set()
    seen: list[int] = []

    def handler(value: int, message: leveret.Message) -> bool:
        time.sleep(0.005)
        threads.add(threading.current_thread().name)
        assert message.routing_key == queues.work
        with pytest.raises(WrongLoopError):
            message.ack()
        seen.append(value)
        if len(seen) == 20:
            consumer._loop.call_soon_threadsafe(consumer.stop)
        return value != 7

    await consumer.run(handler)
    assert sorted(seen) == list(range(20))
    assert threading.current_thread().name not in threads
    assert 1 < len(threads) <= 4
    assert await queues.dead_letters(1) == [7]
    assert await queues.remaining() == []


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_handler_is_cancelled_and_has_failed_when_it_takes_too_long(
    queues: Queues, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("hangs", *range(5))
    consumer = queues.client.consumer(
        queues.work, processing_timeout=0.2, concurrency=concurrency, on_error=leveret.Requeue()
    )
    ended: list[object] = []

    async def handler(value: object, message: leveret.Message) -> None:
        try:
            if value == "hangs":
                await asyncio.Event().wait()
        finally:
            ended.append(value)
            if len(ended) == 7:
                consumer.stop()

    await consumer.run(handler)
    assert Counter(ended) == Counter([*range(5), "hangs", "hangs"])
    assert await queues.dead_letters(1) == ["hangs"]
    assert await queues.remaining() == []
    counters = consumer.counters()
    assert (counters["handler_errors"], counters["acked"]) == (2, 5)
    assert "processing_timeout of 0.2 s" in caplog.text


async def test_a_handler_that_hides_its_cancellation_does_not_keep_run_from_ending(queues: Queues) -> None:
    await queues.publish(1, 2, 3)
    consumer = queues.client.consumer(queues.work)
    began = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.create_task(consumer.run(handler))
    await began.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
    assert await queues.remaining() == [2, 3]


async def test_the_consumer_goes_on_when_a_handler_returns_nonsense(queues: Queues, program_errors: list[str]) -> None:
    await queues.publish("nonsense", "good")
    consumer = queues.client.consumer(queues.work, on_error=leveret.Requeue())

    async def handler(value: str, message: leveret.Message) -> Any:
        if message.redelivered:
            consumer.stop()
        return "ok" if value == "nonsense" else None

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["nonsense"]
    assert len(program_errors) == 2


class Service:
    """Handlers of all kinds that belong to a class."""

    seen: list[Any] = []  # noqa: RUF012 - cleared by the test

    async def method(self, value: Any, message: leveret.Message) -> None:
        self.seen.append(value)

    def plain_method(self, value: Any, message: leveret.Message) -> None:
        self.seen.append(value)

    @staticmethod
    async def static(value: Any, message: leveret.Message) -> None:
        Service.seen.append(value)

    @classmethod
    async def of_class(cls, value: Any, message: leveret.Message) -> None:
        cls.seen.append(value)

    async def __call__(self, value: Any, message: leveret.Message) -> None:
        self.seen.append(value)

    async def with_a_tool(self, tool: int, value: Any, message: leveret.Message) -> None:
        self.seen.append(value)


@pytest.mark.parametrize(
    "handler",
    [
        Service().method,
        Service().plain_method,
        Service.static,
        vars(Service)["static"],
        Service.of_class,
        Service(),
        functools.partial(Service()),
        functools.partial(Service().with_a_tool, 1),
    ],
    ids=["method", "plain", "static", "static in the class", "of the class", "object", "partial object", "partial"],
)
async def test_methods_are_handlers(queues: Queues, handler: Any) -> None:
    await queues.publish(1, 2)
    Service.seen.clear()
    consumer = queues.client.consumer(queues.work, on_error=leveret.Stop())
    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["acked"] == 2 or task.done())
    assert Service.seen == [1, 2]


async def test_the_consumer_goes_on_when_a_handler_cancels_itself(queues: Queues) -> None:
    await queues.publish("cancelled", "good")
    consumer = queues.client.consumer(queues.work, on_error=leveret.Requeue())

    async def handler(value: str, message: leveret.Message) -> None:
        if message.redelivered:
            consumer.stop()
        if value == "cancelled":
            raise asyncio.CancelledError

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["cancelled"]


async def a_timeout_of_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def a_timeout_that_it_lets_pass() -> None:
    async with asyncio.timeout(0.01):
        await asyncio.Event().wait()


async def a_group_of_tasks_that_fails() -> None:
    async def fail() -> None:
        raise ValueError

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.Event().wait()


async def a_task_that_was_cancelled() -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_later(0.01, task.cancel)
    await task


async def a_cancelled_task_that_it_expects() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await a_task_that_was_cancelled()


async def a_cancellation_that_it_takes_back() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(1)
    task.uncancel()


@every_loop
@pytest.mark.parametrize(
    "what",
    [
        a_timeout_of_its_own,
        a_timeout_that_it_lets_pass,
        a_group_of_tasks_that_fails,
        a_task_that_was_cancelled,
        a_cancelled_task_that_it_expects,
        a_cancellation_that_it_takes_back,
    ],
)
async def test_the_consumer_goes_on_when_a_cancellation_was_its_handlers_own(
    queues: Queues, what: Callable[[], Awaitable[None]]
) -> None:
    await queues.publish(*range(4))
    consumer = queues.client.consumer(queues.work)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if value < 2 and not message.redelivered:
            await what()

    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["acked"] == 4)
        assert not task.done()
    assert sorted(set(seen)) == list(range(4))
    assert await queues.remaining() == []


async def keeps_it() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def raises_something_else() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("not what was asked for") from None


async def takes_its_time() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)


async def waits_for_something_that_is_cancelled_too() -> None:
    await asyncio.ensure_future(asyncio.Event().wait())


@every_loop
@pytest.mark.parametrize("batches", [False, True], ids=["messages", "batches"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "what", [keeps_it, raises_something_else, takes_its_time, waits_for_something_that_is_cancelled_too]
)
async def test_run_ends_when_it_is_cancelled_whatever_its_handler_makes_of_that(
    queues: Queues, what: Callable[[], Awaitable[None]], times: int, batches: bool
) -> None:
    await queues.publish(1)
    began = asyncio.Event()

    async def handler(value: Any, message: Any) -> None:
        began.set()
        message.ack()  # so that it does not come again
        await what()

    made = queues.client.queue(queues.work)
    runs = made.batches(size=1).run(handler) if batches else made.consume(handler)
    task = asyncio.create_task(runs)
    await began.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await ends(task)
    assert task.cancelled()
    assert await queues.remaining() == []


@pytest.mark.parametrize("how", ["while it cleans up", "at once"])
async def test_run_ends_when_it_is_cancelled_and_its_handler_took_too_long(queues: Queues, how: str) -> None:
    await queues.publish(1)
    consumer = queues.client.consumer(queues.work, processing_timeout=0.1)
    cleaning = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await asyncio.sleep(0.5)

    async with running(consumer, handler) as task:
        if how == "while it cleans up":
            await cleaning.wait()
            task.cancel()
        else:
            await until(lambda: consumer.health().working == 1)
            (worker,) = consumer._workers._workers
            worker.time_out()
            task.cancel()
        await ends(task)
        assert task.cancelled()
    assert consumer.counters()["handler_errors"] == 0


async def test_a_handlers_own_timeout_counts_when_both_pass_at_once(queues: Queues) -> None:
    await queues.publish(1, 2)
    consumer = queues.client.consumer(queues.work, processing_timeout=60)
    seen: list[object] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60) as limit:
                    (worker,) = consumer._workers._workers
                    limit.reschedule(0)
                    asyncio.get_running_loop().call_later(0, worker.time_out)
                    await asyncio.Event().wait()
        seen.append(value)

    async with running(consumer, handler) as task:
        await until(lambda: 2 in seen)
        assert not task.done()


class Plain:
    """An awaitable whose iterator knows nothing but `__next__`."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def __await__(self) -> Iterator[Any]:
        return iter([*self.future.__await__()] if self.future.done() else [None, None, None])


@every_loop
async def test_a_handler_may_return_anything_that_can_be_awaited(queues: Queues) -> None:
    await queues.publish(*range(3))
    consumer = queues.client.consumer(queues.work)
    loop = asyncio.get_running_loop()

    class Handler:
        async def __call__(self, value: int, message: leveret.Message) -> None: ...

    class Odd(Handler):
        def __call__(self, value: int, message: leveret.Message) -> Any:
            if value == 0:
                future: asyncio.Future[None] = loop.create_future()
                loop.call_soon(future.set_result, None)
                return future
            return Plain(loop.create_future()) if value == 1 else asyncio.sleep(0)

    Odd.__call__._is_coroutine = True  # type: ignore[attr-defined]
    handler = Odd()
    handler._is_coroutine = True  # type: ignore[attr-defined]
    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 3)


async def test_run_ends_when_it_is_cancelled_in_an_awaitable_that_cannot_be_told(queues: Queues) -> None:
    await queues.publish(1)
    consumer = queues.client.consumer(queues.work)

    class Endless:
        def __await__(self) -> Iterator[None]:
            return iter(lambda: None, 1)

    class Handler:
        _is_coroutine = True

        def __call__(self, value: int, message: leveret.Message) -> Any:
            return Endless()

    async with running(consumer, Handler()) as task:
        await until(lambda: consumer.health().working == 1)
        task.cancel()
        await ends(task)
        assert task.cancelled()
    assert consumer.counters()["handler_errors"] == 0
    assert await queues.remaining() == [1]


async def test_the_consumer_goes_on_when_a_library_cancels_its_task_and_never_takes_that_back(queues: Queues) -> None:
    await queues.publish(*range(4))
    consumer = queues.client.consumer(queues.work)

    async def handler(value: int, message: leveret.Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "each message begins anew"
        asyncio.get_running_loop().call_soon(task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 4)


async def test_no_message_fails_untried_when_a_plain_function_hangs(queues: Queues) -> None:
    await queues.publish("hangs", 1, 2)
    consumer = queues.client.consumer(queues.work, processing_timeout=0.1)
    go = threading.Event()
    seen: list[object] = []

    def handler(value: object, message: leveret.Message) -> None:
        seen.append(value)
        if value == "hangs":
            go.wait(20)

    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["handler_errors"] == 1)
        await asyncio.sleep(0.5)
        assert seen == ["hangs"]
        assert consumer.counters()["handler_errors"] == 1
        assert not task.done()
        go.set()
        await until(lambda: consumer.counters()["acked"] == 3)
    assert await queues.remaining() == []


async def test_run_ends_at_once_when_it_is_cancelled_and_a_plain_function_hangs(queues: Queues) -> None:
    await queues.publish("hangs")
    consumer = queues.client.consumer(queues.work, processing_timeout=0.1)
    go = threading.Event()

    def handler(value: object, message: leveret.Message) -> None:
        go.wait(20)

    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["handler_errors"] == 1)
        task.cancel()
        await ends(task)
    go.set()
    async with asyncio.timeout(5):
        while not await queues.ready():  # its channel is closed, but not waited for
            pass
    assert await queues.remaining() == ["hangs"]


@pytest.mark.parametrize("kind", [GeneratorExit, KeyboardInterrupt, SystemExit, StopIteration, StopAsyncIteration])
async def test_what_a_handler_raises_ends_its_message_or_run_and_nothing_hangs(
    queues: Queues, kind: type[BaseException]
) -> None:
    await queues.publish(1, 2)
    consumer = queues.client.consumer(queues.work, concurrency=2)

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 1 and not message.redelivered:
            raise kind

    if issubclass(kind, Exception):
        async with running(consumer, handler):
            await until(lambda: consumer.counters()["acked"] == 2)
        return
    # A task that raises KeyboardInterrupt ends the loop, and the test with it: the worker is asked without one.
    worker = worker_of(consumer, handler, asyncio.current_task())
    message = await anext(consumer)
    consumer._put_back([message])
    with pytest.raises(kind):
        next(worker)
    assert consumer.health().working == 0
    await consumer.close()
    await queues.client.purge(queues.work)


async def test_run_ends_when_one_of_its_workers_cannot_go_on(queues: Queues) -> None:
    class Fatal(GeneratorExit):
        pass

    await queues.publish(1, 2)
    consumer = queues.client.consumer(queues.work, concurrency=2)
    began = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 2:
            await began.wait()
            raise Fatal
        with contextlib.suppress(asyncio.CancelledError):
            began.set()
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as ended:
        async with asyncio.timeout(5):
            await consumer.run(handler)
    assert ended.group_contains(Fatal)
    assert await queues.remaining() == [2]


@pytest.mark.parametrize("how", ["returns", "waits", "raises", "times out", "undecodable"])
async def test_nothing_is_kept_of_messages_that_are_done(queues: Queues, how: str) -> None:
    count = 20 if how == "times out" else 2000
    model: Any = str if how == "undecodable" else int
    consumer = queues.client.consumer(
        queues.work, model, concurrency=4, processing_timeout=0.05 if how == "times out" else None,
        on_error={Exception: leveret.Drop()},
    )  # fmt: skip
    handlers: weakref.WeakSet[Any] = weakref.WeakSet()

    class Local:
        pass

    async def handler(value: int, message: leveret.Message) -> None:
        local = Local()
        handlers.add(local)
        if how == "waits":
            await asyncio.sleep(0)
        elif how == "raises":
            raise ValueError(message)
        elif how == "times out":
            await asyncio.Event().wait()

    logging.getLogger("leveret.consuming").setLevel(logging.CRITICAL)
    try:
        async with running(consumer, handler):
            await queues.publish(*range(count))
            await until(lambda: consumer.counters()["acked"] + consumer.counters()["dead_lettered"] == count)
            await asyncio.sleep(0.01)
            gc.collect()
            left = sum(isinstance(each, Message) for each in gc.get_objects())
            # The last one of each worker may be a local of the loop's last calls.
            assert (left, len(handlers)) <= (8, 8)
            assert consumer._idle_count == 4
    finally:
        logging.getLogger("leveret.consuming").setLevel(logging.NOTSET)
    await queues.client.purge(queues.dead)
