"""Where the values of a batch come from: whatever an iterable does, nothing is lost, read too early or left running."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret import BatchResult
from leveret.errors import BackpressureError, ConfigurationError
from leveret.publishing.batches import Batch, Source
from leveret.publishing.builder import MessageBuilder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

assert strategies  # its import loads the hypothesis profile

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def turns(count: int = 10) -> None:
    """Lets the others run until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def everything(source: Source, size: int) -> list[list[Any]]:
    pieces = []
    while piece := await source.take(size):
        pieces.append(piece)
    return pieces


class Counted:
    """An asynchronous iterable that counts how far it was read, and waits before some of its values."""

    def __init__(self, count: int, *, waits: Callable[[int], bool] = lambda number: False) -> None:
        self.count, self.waits = count, waits
        self.read = 0
        self.closed = False
        self.go_on = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in range(self.count):
                if self.waits(number):
                    await self.go_on.wait()
                self.read = number + 1
                yield number
        finally:
            self.closed = True


# ---------------------------------------------------------------------- iterables


@given(values=st.lists(st.integers(), max_size=30), size=st.integers(1, 12), kind=st.sampled_from([iter, list, tuple]))
def test_pieces_are_the_values_in_their_order_when_the_iterable_is_plain(
    values: list[int], size: int, kind: Callable[[list[int]], Any]
) -> None:
    async def read() -> tuple[list[list[int]], Source]:
        async with Source(kind(values)) as source:
            return await everything(source, size), source

    pieces, source = asyncio.run(read())
    assert [value for piece in pieces for value in piece] == values
    assert all(len(piece) == size for piece in pieces[:-1])
    assert source.error is None


@given(
    count=st.integers(0, 30),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    pauses=st.sets(st.integers(0, 30)),
)
def test_pieces_are_the_values_in_their_order_when_the_iterable_is_asynchronous(
    count: int, sizes: list[int], pauses: set[int]
) -> None:
    async def values() -> AsyncIterator[int]:
        for number in range(count):
            if number in pauses:
                await asyncio.sleep(0)
            yield number

    async def read() -> list[int]:
        taken: list[int] = []
        async with Source(values()) as source:
            for turn in range(count + 2):
                piece = await source.take(sizes[turn % len(sizes)])
                assert len(piece) <= sizes[turn % len(sizes)]
                if not piece:
                    break
                taken += piece
            assert source.error is None
            assert await source.take(1) == []
        return taken

    assert asyncio.run(read()) == list(range(count))


@pytest.mark.parametrize(
    ("values", "length"), [([1, 2], 2), (range(5), 5), ({1}, 1), ((), 0), (iter([1, 2]), 0), ((n for n in "ab"), 0)]
)
async def test_the_length_is_known_when_the_values_have_one(values: Any, length: int) -> None:
    async with Source(values) as source:
        assert source.length == length


@pytest.mark.parametrize("values", [None, 5, object(), "text", b"bytes", {"id": 1}, MappingProxyType({})])
async def test_what_is_no_iterable_of_values_is_refused(values: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"values is a {type(values).__name__}; it must be an") as caught:
        Source(values)
    assert caught.value.option == "values"


async def test_nothing_is_read_before_the_first_piece_but_one_value() -> None:
    values = Counted(100)
    async with Source(values) as source:
        await turns()
        assert values.read <= 1
        assert await source.take(3)


async def test_an_asynchronous_iterable_is_read_one_piece_ahead_and_no_further() -> None:
    values = Counted(1000)
    async with Source(values) as source:
        taken = 0
        while taken < 200:
            piece = await source.take(10)
            taken += len(piece)
            await turns()
            assert taken <= values.read <= taken + 10
    assert values.closed or values.read < 1000


async def test_an_endless_iterable_is_read_only_as_far_as_it_is_taken() -> None:
    numbers = iter(range(10**12))
    async with Source(numbers) as source:
        assert await source.take(7) == [0, 1, 2, 3, 4, 5, 6]
    assert next(numbers) == 7


async def test_what_came_is_given_when_the_iterable_waits_for_more() -> None:
    values = Counted(10, waits=lambda number: number == 4)
    async with Source(values) as source:
        assert await source.take(100) == [0, 1, 2, 3]
        more = asyncio.create_task(source.take(100))
        await turns()
        assert not more.done()
        values.go_on.set()
        assert await more == [4, 5, 6, 7, 8, 9]
        assert await source.take(100) == []


# ---------------------------------------------------------------------- failing iterables


ERRORS = [ValueError, StopIteration, KeyboardInterrupt, SystemExit, asyncio.CancelledError, TimeoutError, GeneratorExit]


@pytest.mark.parametrize("kind", [error for error in ERRORS if error is not StopIteration])
async def test_what_came_before_is_given_when_a_plain_iterable_raises(kind: type[BaseException]) -> None:
    class Values:
        def __iter__(self) -> Iterator[int]:
            return self

        def __init__(self) -> None:
            self.number = 0

        def __next__(self) -> int:
            self.number += 1
            if self.number > 5:
                raise kind("broken")
            return self.number

    async with Source(Values()) as source:
        assert await everything(source, 3) == [[1, 2, 3], [4, 5]]
        assert isinstance(source.error, kind)
        assert await source.take(3) == []


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("pause", [False, True])
async def test_what_came_before_is_given_when_an_asynchronous_iterable_raises(
    kind: type[BaseException], pause: bool
) -> None:
    class Values:
        def __init__(self) -> None:
            self.number = 0

        def __aiter__(self) -> Values:
            return self

        async def __anext__(self) -> int:
            if pause:
                await asyncio.sleep(0)
            self.number += 1
            if self.number > 5:
                raise kind("broken")
            return self.number

    async with Source(Values()) as source:
        pieces = await everything(source, 3)
        assert [value for piece in pieces for value in piece] == [1, 2, 3, 4, 5]
        # A coroutine turns StopIteration into a RuntimeError (PEP 479).
        assert isinstance(source.error, RuntimeError if kind is StopIteration else kind)


async def test_a_cancellation_inside_the_iterable_is_its_error_and_not_its_end() -> None:
    # For example because it waits for a task that somebody cancelled.
    never = asyncio.get_running_loop().create_future()

    async def values() -> AsyncIterator[int]:
        yield 1
        yield await never

    async with Source(values()) as source:
        assert await source.take(1) == [1]
        waiting = asyncio.create_task(source.take(1))
        await turns()
        never.cancel()
        assert await waiting == []
        assert isinstance(source.error, asyncio.CancelledError)


@pytest.mark.parametrize("started", [False, True])
async def test_nobody_waits_for_ever_when_the_reading_task_is_cancelled_by_somebody(started: bool) -> None:
    values = Counted(10, waits=lambda number: True)
    before = asyncio.all_tasks()
    async with Source(values) as source:
        if started:
            await turns()
        (task,) = asyncio.all_tasks() - before
        waiting = asyncio.create_task(source.take(1))
        task.cancel()
        async with asyncio.timeout(5):
            assert await waiting == []


# ---------------------------------------------------------------------- ending early


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("waits", [False, True])
async def test_the_reading_task_ends_with_the_block(taken: int, waits: bool) -> None:
    values = Counted(10, waits=lambda number: waits and number >= 3)
    before = asyncio.all_tasks()
    async with Source(values) as source:
        for _ in range(taken):
            await source.take(1)
        await turns()
    assert asyncio.all_tasks() == before
    assert source.error is None


async def test_the_reading_task_ends_with_the_block_when_that_raises_or_is_cancelled() -> None:
    values = Counted(10, waits=lambda number: number == 2)
    before = asyncio.all_tasks()

    async def read() -> None:
        async with Source(values) as source:
            await everything(source, 5)

    task = asyncio.create_task(read())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ZeroDivisionError):
        async with Source(values):
            raise ZeroDivisionError
    assert asyncio.all_tasks() == before


async def test_the_iterable_may_clean_up_when_the_block_ends() -> None:
    cleaned = []

    async def values() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async with Source(values()) as source:
        assert await source.take(5) == [1]
        await turns()
    assert cleaned == [True]


async def test_the_reading_task_ends_with_the_block_when_the_iterable_takes_no_notice() -> None:
    async def values() -> AsyncIterator[int]:
        yield 1
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                yield 2

    before = asyncio.all_tasks()
    async with asyncio.timeout(5), Source(values()) as source:
        assert await source.take(5) == [1]
        await turns()
    assert asyncio.all_tasks() == before


async def test_an_error_of_the_clean_up_is_nobodys() -> None:
    async def values() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was closed")

    async with Source(values()) as source:
        assert await source.take(5) == [1]
        await turns()


# ---------------------------------------------------------------------- collecting


class Published:
    """Notes what a batch gives away."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], Any, dict[str, Any]]] = []

    async def __call__(self, values: list[Any], routing_key: Any, **options: Any) -> BatchResult:
        self.calls.append((values, routing_key, options))
        return BatchResult(len(values), len(values), 0.1)


async def test_values_are_published_once_when_the_block_ends() -> None:
    published = Published()
    async with Batch(published, "key", {"priority": 3}, 10) as batch:
        assert [batch.add(value) for value in "abc"] == [0, 1, 2]
        assert len(batch) == 3
        assert published.calls == []
    assert published.calls == [(["a", "b", "c"], "key", {"priority": 3})]
    assert batch.result.count == 3
    assert len(batch) == 0


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_nothing_is_published_when_the_block_raises(error: type[BaseException]) -> None:
    published = Published()

    async def collect() -> None:
        async with Batch(published, "key", {}, 10) as batch:
            batch.add(1)
            raise error

    with pytest.raises(error):
        await collect()
    assert published.calls == []


async def test_a_value_has_options_of_its_own_when_they_are_given() -> None:
    published = Published()
    async with Batch(published, "key", {}, 10) as batch:
        batch.add(1, "other", priority=1)
        batch.add(2, priority=2)
        batch.add(MessageBuilder(3).routing_key("its own"))
    (first, second, third) = published.calls[0][0]
    assert [(each.value, each.key, each.options) for each in (first, second, third)] == [
        (1, "other", {"priority": 1}),
        (2, "", {"priority": 2}),
        (3, "its own", {}),
    ]


async def test_a_batch_is_bounded() -> None:
    async with Batch(Published(), "key", {}, 2) as batch:
        batch.add(1)
        batch.add(2)
        with pytest.raises(BackpressureError, match="holds 2 values"):
            batch.add(3)
        assert len(batch) == 2


async def test_options_beside_a_publishing_are_refused() -> None:
    async with Batch(Published(), "key", {}, 2) as batch:
        with pytest.raises(ConfigurationError) as refused:
            batch.add(MessageBuilder(1), "key")
        assert refused.value.option == "routing_key"
        assert len(batch) == 0
