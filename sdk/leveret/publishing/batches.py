"""Batches: where their values come from, and collecting them in a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

from leveret.errors import BackpressureError, ConfigurationError
from leveret.publishing.options import Publishing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self, Unpack

    from leveret.message import BatchResult
    from leveret.publishing.options import PublishOptions, Template

__all__ = ["Batch", "Source"]


class Source:
    """The values of a batch, in pieces, from an iterable or an asynchronous one.

    An asynchronous iterable is read by a task of its own, one piece ahead at the most, so that what it gave can be sent
    while it waits for more. Use it with `async with`, which ends that task.

    Args:
        values: The values.

    Attributes:
        length: How many there are, or 0 when that is not known.
        error: What the iterable raised; what came before is still taken.

    Raises:
        TypeError: It is neither.
    """

    def __init__(self, values: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.length = len(values) if isinstance(values, Sized) else 0
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        if isinstance(values, AsyncIterable):
            self._ahead: list[Any] = []
            self._wanted = 0
            self._changed = asyncio.Event()
            self._taken = asyncio.Event()
            self._closed = False
            self._task = asyncio.get_running_loop().create_task(self._read(values), name="leveret batch: read values")
            # Not in the task itself, which may be cancelled before it begins.
            self._task.add_done_callback(lambda _: self._changed.set())
        else:
            self._iterator = iter(values)

    async def take(self, count: int) -> list[Any]:
        """The next values, at least one and at most `count`; none at the end or when the iterable raised."""
        if self._task is not None:
            return await self._take_ahead(self._task, count)
        chunk: list[Any] = []
        if self.error is None:
            try:
                # list.extend keeps what came before the iterable failed.
                chunk.extend(islice(self._iterator, count))
            except BaseException as error:
                self.error = error
        return chunk

    async def _take_ahead(self, task: asyncio.Task[None], count: int) -> list[Any]:
        self._wanted = count
        self._taken.set()
        while not self._ahead and not task.done():
            self._changed.clear()
            await self._changed.wait()
        chunk = self._ahead[:count]
        del self._ahead[:count]
        return chunk

    async def _read(self, values: AsyncIterable[Any]) -> None:
        try:
            async for value in values:
                if self._closed:
                    return  # it took no notice of being cancelled
                self._ahead.append(value)
                self._changed.set()
                while len(self._ahead) >= max(1, self._wanted):
                    self._taken.clear()
                    await self._taken.wait()
        except BaseException as error:
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            # Another cancellation is an error like any other: the values did not end there.
            self.error = error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._closed = True
            self._task.cancel()
            await asyncio.wait({self._task})


class Batch:
    """Values that are collected in a block and published when it ends. Made by `Producer.batch`.

    Attributes:
        result: The outcome of each value, when the block has ended.
    """

    result: BatchResult

    def __init__(
        self,
        publish_batch: Callable[..., Awaitable[BatchResult]],
        routing_key: str | Template,
        options: PublishOptions,
        limit: int,
    ) -> None:
        self._publish_batch = publish_batch
        self._routing_key = routing_key
        self._options = options
        self._limit = limit
        self._values: list[Any] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Any, routing_key: str | None = None, **options: Unpack[PublishOptions]) -> int:
        """Adds a value.

        Args:
            value: What the serializer takes, or a `Publishing`.
            routing_key: The routing key; the batch's by default.
            **options: See `PublishOptions`; over those of the batch.

        Returns:
            Its index in the result.

        Raises:
            BackpressureError: There are `max_buffered` values already. `publish_batch` takes an iterable of any length.
        """
        if len(self._values) >= self._limit:
            raise BackpressureError(
                f"not added: the batch holds {len(self._values)} values (max_buffered); publish_batch takes an "
                "iterable of any length"
            )
        if routing_key is not None or options:
            if isinstance(value, Publishing):
                raise ConfigurationError("a Publishing has its own routing key and options", option="routing_key")
            publishing = Publishing(value)
            publishing.key, publishing.options = routing_key or "", options
            value = publishing
        self._values.append(value)
        return len(self._values) - 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        values, self._values = self._values, []
        if kind is None:
            self.result = await self._publish_batch(values, self._routing_key, **self._options)
