"""Workers that wait for a message: they go on inside the read that brings it, and as their task."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from tests.corpus import frames
from tests.support.unconnected import Transport, begin, made, worker_of

from leveret.consuming.worker import Worker
from leveret.wire.reader import FrameReader
from leveret.wire.runs import SettlementRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leveret.consuming.consumer import Consumer
    from leveret.wire.message import Message

Handler = Callable[[Any, Any], Awaitable[object]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


def deliver(consumer: Consumer[Any], *tags: int) -> None:
    """Gives the consumer messages as one read, outside of any task, as a loop does."""
    parsed = frames.run_of(FrameReader().feed(b"".join(frames.delivery(1, tag, b"body") for tag in tags)))
    consumer._loop.call_soon(consumer.delivered, parsed)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def at_work(consumer: Consumer[Any], handler: Handler, count: int = 1) -> list[asyncio.Task[None]]:
    """Tasks of workers that wait for a message."""

    async def work() -> None:
        await worker_of(consumer, handler, asyncio.current_task())

    tasks = [asyncio.create_task(work()) for _ in range(count)]
    await turns()
    return tasks


async def ended(consumer: Consumer[Any], *tasks: asyncio.Task[None]) -> list[object]:
    consumer.stop()
    async with asyncio.timeout(5):
        return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_handler_runs_in_its_workers_task_and_context(run: Any) -> None:
    seen = contextvars.ContextVar("seen", default=0)

    async def play() -> None:
        consumer = made()
        found: list[tuple[object, object, int]] = []

        async def handler(value: bytes, message: Message) -> None:
            found.append((asyncio.current_task(), asyncio.get_running_loop(), seen.get()))
            seen.set(message.delivery_tag)

        [task] = await at_work(consumer, handler)
        for tag in (1, 2, 3):
            deliver(consumer, tag)
            await turns()
            assert len(found) == tag
        loop = asyncio.get_running_loop()
        assert found == [(task, loop, 0), (task, loop, 1), (task, loop, 2)]
        assert asyncio.current_task() is not task
        assert await ended(consumer, task) == [None]

    run(play())


def test_a_handler_that_waits_is_waited_for_by_its_task(run: Any) -> None:
    async def play() -> None:
        consumer = made()
        go: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        results: list[str] = []

        async def handler(value: bytes, message: Message) -> None:
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                results.append(await go)

        [task] = await at_work(consumer, handler)
        deliver(consumer, 1)
        await turns(10)
        assert consumer.health().working == 1
        go.set_result("done")
        await turns(10)
        deliver(consumer, 2)
        await turns(10)
        assert results == ["done", "done"]
        assert await ended(consumer, task) == [None]

    run(play())


async def sleeps() -> None:
    await asyncio.sleep(0)


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


async def waits_for_a_task() -> None:
    await asyncio.create_task(asyncio.sleep(60))


async def waits_for_what_is_done() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    await asyncio.wait([done])
    await asyncio.sleep(0)


@pytest.mark.parametrize("then", [sleeps, waits, waits_for_a_task, waits_for_what_is_done])
def test_a_handler_that_cancels_its_own_task_is_cancelled_where_it_next_waits(
    run: Any, then: Callable[[], Awaitable[None]]
) -> None:
    async def alone() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await then()
        except asyncio.CancelledError:
            return "cancelled"
        return "returned"

    async def play() -> None:
        consumer = made()
        results: list[str] = []

        async def handler(value: bytes, message: Message) -> None:
            results.append(await alone() if message.delivery_tag == 1 else "next")

        # What it is in a task of asyncio's own.
        assert await asyncio.create_task(alone()) == "cancelled"
        [task] = await at_work(consumer, handler)
        deliver(consumer, 1)
        await turns(20)
        deliver(consumer, 2)
        await turns(20)
        assert results == ["cancelled", "next"]
        assert await ended(consumer, task) == [None]

    run(play())


@pytest.mark.parametrize("takes_back", [False, True])
def test_a_worker_goes_on_when_its_handler_cancels_its_task_and_waits_for_nothing(run: Any, takes_back: bool) -> None:
    async def play() -> None:
        consumer = made()
        handled: list[int] = []

        async def handler(value: bytes, message: Message) -> None:
            handled.append(message.delivery_tag)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if takes_back:
                task.uncancel()

        [task] = await at_work(consumer, handler)
        for tag in (1, 2, 3):
            deliver(consumer, tag)
            await turns(20)
        deliver(consumer, 4, 5)
        await turns(20)
        assert handled == [1, 2, 3, 4, 5]
        assert task.cancelling() == 0
        assert await ended(consumer, task) == [None]

    run(play())


def test_a_cancellation_that_a_handler_takes_back_is_as_in_any_task(run: Any) -> None:
    async def alone() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("first")
        task.cancel("second")
        task.uncancel()
        task.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            return f"cancelled: {error}"
        return "returned"

    async def play() -> None:
        consumer = made()
        results: list[str] = []

        async def handler(value: bytes, message: Message) -> None:
            results.append(await alone())

        [task] = await at_work(consumer, handler)
        deliver(consumer, 1)
        await turns(20)
        # From Python 3.13 on it is gone.
        assert results == [await asyncio.create_task(alone())]
        assert await ended(consumer, task) == [None]

    run(play())


def test_a_cancellation_keeps_its_message(run: Any) -> None:
    async def play() -> None:
        consumer = made()
        texts: list[str] = []

        async def handler(value: bytes, message: Message) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel("why")
            try:
                await (waits() if message.delivery_tag == 1 else sleeps())
            except asyncio.CancelledError as error:
                texts.append(str(error))
                task.uncancel()

        [task] = await at_work(consumer, handler)
        for tag in (1, 2):
            deliver(consumer, tag)
            await turns(20)
        assert texts == ["why", "why"]
        assert await ended(consumer, task) == [None]

    run(play())


def test_no_message_is_left_when_a_worker_is_cancelled_before_it_resumes(run: Any) -> None:
    async def play() -> None:
        consumer = made(concurrency=2)
        tasks: list[asyncio.Task[None]] = []
        handled: list[int] = []
        go = asyncio.Event()

        async def handler(value: bytes, message: Message) -> None:
            handled.append(message.delivery_tag)
            if message.delivery_tag == 1:
                # Another worker is woken now, because this one waits; before it resumes it is cancelled.
                [other] = [task for task in tasks if task is not asyncio.current_task()]
                asyncio.get_running_loop().call_soon(other.cancel)
                await go.wait()

        tasks += await at_work(consumer, handler, 2)
        deliver(consumer, 1, 2)
        await turns(10)
        assert handled == [1, 2]
        go.set()
        await turns(10)
        assert await ended(consumer, *tasks) == [None, None]

    run(play())


def test_no_message_is_left_when_a_worker_is_cancelled_between_its_turns(run: Any) -> None:
    async def play() -> None:
        consumer = made(concurrency=2, prefetch=2000)
        tasks: list[asyncio.Task[None]] = []
        busy: set[asyncio.Task[Any] | None] = set()
        handled: list[int] = []

        async def handler(value: bytes, message: Message) -> None:
            busy.add(asyncio.current_task())
            handled.append(message.delivery_tag)

        tasks += await at_work(consumer, handler, 2)
        deliver(consumer, *range(1, 301))
        await asyncio.sleep(0)
        assert len(handled) == 256
        [task] = busy
        assert task is not None
        task.cancel()
        await turns(20)
        assert handled == [*range(1, 301)]
        assert await ended(consumer, *tasks) == [None, None]

    run(play())


def test_a_worker_that_is_to_end_leaves_its_messages_to_another(run: Any) -> None:
    async def play() -> None:
        consumer = made(concurrency=2, prefetch=2000)
        busy: set[asyncio.Task[Any] | None] = set()
        handled: list[int] = []

        class Ending:
            """Ends any worker that is cancelled."""

            def ends(self, task: asyncio.Task[Any]) -> bool:
                return True

            def failed(self, message: Message, error: BaseException | None) -> None:
                raise AssertionError("no handler fails")

        async def handler(value: bytes, message: Message) -> None:
            busy.add(asyncio.current_task())
            handled.append(message.delivery_tag)

        async def work() -> None:
            task: Any = asyncio.current_task()
            await Worker(consumer, consumer._acks, consumer._failures, Ending(), handler, task, True, True)

        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await turns()
        deliver(consumer, *range(1, 301))
        await asyncio.sleep(0)
        assert len(handled) == 256
        [task] = busy
        assert task is not None
        task.cancel()
        await turns(20)
        assert handled == [*range(1, 301)]
        assert task.cancelled()
        assert await ended(consumer, *(each for each in tasks if each is not task)) == [None]

    run(play())


def test_a_worker_goes_on_when_the_last_handler_of_its_turn_cancels_its_task(run: Any) -> None:
    async def play() -> None:
        consumer = made(prefetch=2000)
        handled: list[int] = []

        async def handler(value: bytes, message: Message) -> None:
            handled.append(message.delivery_tag)
            task = asyncio.current_task()
            assert task is not None
            if message.delivery_tag == 256:
                task.cancel()

        [task] = await at_work(consumer, handler)
        deliver(consumer, *range(1, 301))
        await turns(20)
        assert handled == [*range(1, 301)]
        assert await ended(consumer, task) == [None]

    run(play())


def test_the_time_without_messages_counts_for_none(run: Any) -> None:
    async def play() -> None:
        consumer = made()
        times: list[tuple[float, float]] = []

        async def handler(value: bytes, message: Message) -> None:
            assert message.waiting_time is not None
            assert message.handler_time is not None
            times.append((message.waiting_time, message.handler_time))

        [task] = await at_work(consumer, handler)
        for tag in (1, 2, 3):
            deliver(consumer, tag)
            await turns()
            await asyncio.sleep(0.05)
        assert all(waiting >= 0 and handling >= 0 for waiting, handling in times)
        assert [waiting + handling < 0.05 for waiting, handling in times] == [True] * 3
        assert consumer.meter.handler_time.highest < 50_000_000
        await ended(consumer, task)

    run(play())


def test_an_error_that_ends_a_worker_is_its_tasks(run: Any) -> None:
    async def play() -> None:
        consumer = made()

        async def handler(value: bytes, message: Message) -> None:
            raise GeneratorExit if message.delivery_tag == 2 else ValueError("an ordinary one")

        [task] = await at_work(consumer, handler)
        deliver(consumer, 1)
        await turns(10)
        assert not task.done()
        deliver(consumer, 2)
        await turns(10)
        with pytest.raises(GeneratorExit):
            task.result()

    run(play())


def test_a_read_that_comes_inside_another_task_wakes_the_worker(run: Any) -> None:
    async def play() -> None:
        consumer = made()
        handled: list[asyncio.Task[Any] | None] = []

        async def handler(value: bytes, message: Message) -> None:
            handled.append(asyncio.current_task())

        [task] = await at_work(consumer, handler)
        consumer.delivered(frames.run_of(FrameReader().feed(frames.delivery(1, 1, b"body"))))
        assert not handled
        await turns()
        assert handled == [task]
        await ended(consumer, task)

    run(play())


def test_a_worker_lets_others_run_when_reads_bring_many(run: Any) -> None:
    async def play() -> None:
        consumer = made(prefetch=2000)
        handled = 0

        async def handler(value: bytes, message: Message) -> None:
            nonlocal handled
            handled += 1

        [task] = await at_work(consumer, handler)
        deliver(consumer, *range(1, 1001))
        await asyncio.sleep(0)
        assert handled == 256
        await turns(10)
        assert handled == 1000
        await ended(consumer, task)

    run(play())


def test_a_worker_is_freed_with_its_task(run: Any) -> None:
    def workers() -> int:
        return sum(type(each) is Worker for each in gc.get_objects())

    async def play() -> None:
        consumer = made()

        async def handler(value: bytes, message: Message) -> None:
            pass

        before = workers()
        [task] = await at_work(consumer, handler)
        deliver(consumer, 1)
        await turns()
        assert workers() == before + 1
        task.cancel()
        await ended(consumer, task)
        del task
        assert workers() == before

    gc.collect()
    gc.disable()
    try:
        run(play())
    finally:
        gc.enable()


class Clock:
    """An event loop's timers, which the test lets fire."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Clock:
        self.timers.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.timers.clear()


def test_consumers_of_a_connection_share_the_timer_of_their_acknowledgements() -> None:
    async def play() -> None:
        clock = Clock()
        transport = Transport(clock)  # type: ignore[arg-type]
        consumers = [made(ack_delay=0.25) for _ in range(3)]
        tasks: list[asyncio.Task[None]] = []

        async def handler(value: bytes, message: Message) -> None:
            pass

        for consumer in consumers:
            begin(consumer, transport)
            [task] = await at_work(consumer, handler)
            deliver(consumer, 1)
            await turns()
            assert transport.out.take() == b""
            tasks.append(task)
        [(delay, fire)] = clock.timers
        assert delay == 0.25
        fire()
        runs = FrameReader(server=True).feed(transport.out.take())
        assert [list(run) for run in runs if isinstance(run, SettlementRun)] == [[(1, False, False, False)] * 3]
        for consumer, task in zip(consumers, tasks, strict=True):
            await ended(consumer, task)

    asyncio.run(play())
