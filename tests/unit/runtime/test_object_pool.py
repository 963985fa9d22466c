"""The pool of users' objects: it lends, resets and keeps them, from tasks and threads, and never waits or corrupts."""

from __future__ import annotations

import asyncio
import doctest
import gc
import logging
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import leveret
import leveret.runtime.object_pool as module
from leveret.errors import ConfigurationError

SENTINEL = "order-of-a-customer"


class Processor:
    """What a handler works with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.users = 0

    def reset(self) -> None:
        self.lines.clear()


def pool_of(size: int | None = None, **options: Any) -> leveret.ObjectPool[Processor]:
    return leveret.ObjectPool(Processor, Processor.reset, size, **options)


def spoil(pool: leveret.ObjectPool[Processor], error: Exception) -> None:
    """Borrows one, uses it and fails."""
    with pool.lend() as processor:
        processor.lines.append(SENTINEL)
        raise error


def test_s31_size_is_twice_the_number_of_cpus_when_not_given() -> None:
    assert pool_of().size == 2 * (os.cpu_count() or 1)
    assert pool_of(3).size == 3


def test_s31_an_object_is_reset_and_lent_again_when_it_came_back() -> None:
    pool = pool_of()
    with pool.lend() as first:
        first.lines.append("x")
        assert pool.counters() | {"lent": 1, "idle": 0} == pool.counters()
    with pool.lend() as second:
        assert second is first
        assert second.lines == []
    assert pool.counters() == {
        "created": 1,
        "reused": 1,
        "lent": 0,
        "idle": 1,
        "dropped_full": 0,
        "dropped_reset": 0,
    }
    assert repr(pool) == f"<ObjectPool size={pool.size} idle=1 lent=0>"


def test_s31_the_last_that_came_back_is_lent_first() -> None:
    pool = pool_of(2)
    first, second = pool.take(), pool.take()
    pool.give_back(second)
    pool.give_back(first)
    assert pool.take() is first
    assert pool.take() is second


def test_s31_it_creates_and_does_not_wait_when_it_is_empty() -> None:
    pool = pool_of(2)
    taken = [pool.take() for _ in range(10)]
    assert len(set(map(id, taken))) == 10
    for processor in taken:
        pool.give_back(processor)
    counters = pool.counters()
    assert (counters["created"], counters["idle"], counters["dropped_full"]) == (10, 2, 8)


def test_s31_objects_are_kept_as_they_are_when_there_is_no_reset() -> None:
    pool: leveret.ObjectPool[list[int]] = leveret.ObjectPool(list)
    with pool.lend() as numbers:
        numbers.append(1)
    with pool.lend() as numbers:
        assert numbers == [1]


def test_s31_what_is_dropped_is_not_held() -> None:
    pool = pool_of(1)
    taken = [pool.take(), pool.take()]
    references = [weakref.ref(processor) for processor in taken]
    for processor in taken:
        pool.give_back(processor)
    del taken, processor
    gc.collect()
    assert [reference() is None for reference in references] == [False, True]


# ---------------------------------------------------------------------- errors


def test_s31_an_object_comes_back_and_the_error_goes_on_when_the_block_raises() -> None:
    pool = pool_of()
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        spoil(pool, error)
    assert caught.value is error
    assert pool.counters()["idle"] == 1
    assert pool.take().lines == []


def test_s31_an_object_whose_reset_raises_is_dropped_and_said_once_without_contents(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(processor: Processor) -> None:
        raise RuntimeError(f"cannot reset {SENTINEL}")

    pool = leveret.ObjectPool(Processor, fail)
    with caplog.at_level(logging.DEBUG, "leveret.runtime"):
        for _ in range(3):
            with pytest.raises(KeyError, match="mine"):
                spoil(pool, KeyError("mine"))
        with pool.lend():  # and nothing is raised when the block did not
            pass
    counters = pool.counters()
    assert (counters["created"], counters["dropped_reset"], counters["idle"], counters["lent"]) == (4, 4, 0, 0)
    assert [record.message for record in caplog.records] == [
        "reset of a pooled Processor raised RuntimeError; such objects are dropped (said once)"
    ]
    assert SENTINEL not in caplog.text


def test_s31_an_object_is_dropped_when_its_reset_says_false() -> None:
    pool = leveret.ObjectPool(Processor, lambda processor: not processor.lines)
    with pool.lend() as clean:
        pass
    with pool.lend() as processor:
        assert processor is clean
        processor.lines.append("stays")
    counters = pool.counters()
    assert (counters["dropped_reset"], counters["idle"]) == (1, 0)


def test_s31_nothing_stays_lent_when_reset_is_interrupted() -> None:
    def interrupt(processor: Processor) -> None:
        raise KeyboardInterrupt

    pool = leveret.ObjectPool(Processor, interrupt)
    with pytest.raises(KeyboardInterrupt), pool.lend():
        pass
    counters = pool.counters()
    assert (counters["lent"], counters["idle"], counters["dropped_reset"]) == (0, 0, 1)


def test_s31_what_create_raises_goes_to_the_borrower_and_counts_nothing() -> None:
    def fail() -> Processor:
        raise OSError("no file")

    pool = leveret.ObjectPool(fail)
    with pytest.raises(OSError, match="no file"):
        pool.take()
    with pytest.raises(OSError, match="no file"), pool.lend():
        pass
    assert set(pool.counters().values()) == {0}


def test_s31_giving_back_twice_is_an_error_and_changes_nothing() -> None:
    pool = pool_of(4)
    processor = pool.take()
    pool.give_back(processor)
    with pytest.raises(ConfigurationError, match="Processor is not taken from this pool") as caught:
        pool.give_back(processor)
    assert caught.value.option == "value"
    assert pool.counters()["idle"] == 1
    assert pool.take() is processor
    assert pool.take() is not processor


def test_s31_giving_back_what_is_foreign_or_lent_by_a_block_is_an_error() -> None:
    pool = pool_of()
    with pytest.raises(ConfigurationError):
        pool.give_back(Processor())
    with pool.lend() as processor, pytest.raises(ConfigurationError):
        pool.give_back(processor)
    counters = pool.counters()
    assert (counters["lent"], counters["idle"]) == (0, 1)


def test_s31_a_loan_is_used_once_at_a_time() -> None:
    pool = pool_of()
    loan = pool.lend()
    with loan as first:
        with pytest.raises(ConfigurationError, match="once at a time"), loan:
            pass
        assert pool.counters()["lent"] == 1
    with loan as second:
        assert second is first


def test_s31_create_that_returns_what_is_lent_is_an_error() -> None:
    shared = Processor()
    pool = leveret.ObjectPool(lambda: shared)
    with pool.lend(), pytest.raises(ConfigurationError, match="lent already") as caught:
        pool.take()
    assert caught.value.option == "create"
    assert pool.counters()["idle"] == 1


async def _coroutine() -> None: ...


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("size", 0, "size is 0; it must be 1 or more"),
        ("size", -3, "size is -3; it must be 1 or more"),
        ("size", 2.0, "size is a whole number, not a float"),
        ("size", True, "size is a whole number, not a bool"),
        ("create", 5, "create is a int, not a function"),
        ("create", _coroutine, "create is the `async def` function _coroutine"),
        ("reset", "no", "reset is a str, not a function"),
        ("reset", _coroutine, "reset is the `async def` function _coroutine"),
    ],
)
def test_s31_options_are_checked(option: str, value: Any, text: str) -> None:
    options: dict[str, Any] = {"create": Processor, option: value}
    with pytest.raises(ConfigurationError, match=text) as caught:
        leveret.ObjectPool(**options)
    assert caught.value.option == option


# ---------------------------------------------------------------------- tasks and threads


async def test_s31_tasks_never_share_an_object_and_reuse_few() -> None:
    pool = pool_of(4)

    async def handle() -> None:
        for _ in range(25):
            with pool.lend() as processor:
                processor.users += 1
                assert processor.users == 1
                await asyncio.sleep(0)
                assert processor.users == 1
                processor.users = 0

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(handle())
    counters = pool.counters()
    assert counters["created"] + counters["reused"] == 200
    # All eight hold one at once in each turn, and four of them are kept for the next.
    assert counters["created"] < 200
    assert (counters["lent"], counters["idle"]) == (0, 4)


async def test_s31_an_object_comes_back_when_its_task_is_cancelled() -> None:
    pool = pool_of()
    entered = asyncio.Event()

    async def handle() -> None:
        with pool.lend():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(handle())
    await entered.wait()
    assert pool.counters()["lent"] == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (pool.counters()["lent"], pool.counters()["idle"]) == (0, 1)


def test_s31_threads_never_share_an_object_and_no_bound_is_passed() -> None:
    pool = pool_of(3)
    barrier = threading.Barrier(8)
    rounds = 500
    most_idle = 0

    def work(number: int) -> None:
        nonlocal most_idle
        barrier.wait()
        for turn in range(rounds):
            processor = pool.take() if turn % 2 else None
            with pool.lend() as lent:
                assert lent is not processor
                lent.lines.append(str(number))
                assert lent.lines == [str(number)]
                most_idle = max(most_idle, pool.counters()["idle"])
            if processor is not None:
                pool.give_back(processor)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
    counters = pool.counters()
    assert counters["created"] + counters["reused"] == 8 * rounds * 3 // 2
    assert counters["created"] == counters["idle"] + counters["dropped_full"]
    assert counters["lent"] == 0
    assert most_idle <= pool.size
    assert counters["idle"] <= pool.size


async def test_s31_handlers_on_the_loop_and_in_threads_share_a_pool() -> None:
    pool = pool_of(2)

    def plain() -> int:
        with pool.lend() as processor:
            return id(processor)

    with pool.lend() as mine:
        theirs = await asyncio.to_thread(plain)
        assert theirs != id(mine)
    assert pool.counters()["created"] == 2


def test_examples_of_docstrings_are_true_when_run() -> None:
    results = doctest.testmod(module)
    assert results.attempted >= 4
    assert results.failed == 0
