"""Handlers: what can be one, and the threads for those that are plain functions."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from leveret.errors import ConfigurationError
from leveret.settings.functions import called, name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from leveret.wire.message import Message

__all__ = ["HandlerThreads", "check_handler"]


def check_handler(handler: object, queue: str, parameters: str = "(value, message)") -> None:
    """Checks that a handler can be called with two arguments: a value and a message.

    Functions, bound, static and class methods, partial functions and objects with `__call__` all can be handlers.

    Args:
        handler: What a user gave.
        queue: The queue, for the error.
        parameters: What the error calls the arguments.

    Raises:
        ConfigurationError: It cannot be called so, or is a generator.
    """
    whose = f"consumer of queue {queue!r}"
    if not callable(handler):
        raise ConfigurationError(
            f"{whose}: the handler must be a function of {parameters}, not a {type(handler).__name__}",
            option="handler",
        )
    if any(inspect.isgeneratorfunction(it) or inspect.isasyncgenfunction(it) for it in called(handler)):
        raise ConfigurationError(f"{whose}: the handler {name_of(handler)} must not be a generator", option="handler")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some functions in C do not tell their signature
    try:
        signature.bind(None, None)
    except TypeError as error:
        names = list(signature.parameters)
        hint = ""
        if len(names) == 3 and names[0] in ("self", "cls"):
            hint = "; it is a method: give the one of an object, such as billing.handle"
        raise ConfigurationError(
            f"{whose}: {name_of(handler)} must take {parameters}: {error}{hint}", option="handler"
        ) from None


class HandlerThreads:
    """Threads that run a handler which is a plain function.

    Args:
        handler: The function of (value, message).
        count: How many threads.
        queue: The queue, for the names of the threads.
        loop: The event loop.
    """

    def __init__(
        self, handler: Callable[[Any, Message], object], count: int, queue: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._handler = handler
        self._loop = loop
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"leveret {queue}"[:64])
        # The calls that have not returned.
        self._calls: dict[Message, Future[Any]] = {}

    def call(self, value: Any, message: Message) -> Awaitable[object]:
        """Calls the handler in a thread."""
        calls = self._calls
        future = calls[message] = self._pool.submit(self._run, value, message)
        future.add_done_callback(lambda _: calls.pop(message, None))
        return asyncio.wrap_future(future, loop=self._loop)

    def _run(self, value: Any, message: Message) -> object:
        try:
            return self._handler(value, message)
        except StopIteration as error:
            # It cannot be raised into a future, whose worker would wait for ever. A coroutine makes the same of it.
            raise RuntimeError("the handler raised StopIteration") from error

    def wait_for(self, message: Message, action: Coroutine[Any, Any, None] | None) -> Coroutine[Any, Any, None] | None:
        """Adds to an action for a message whose handler is late that its thread is waited for.

        Otherwise the next message would wait for the thread, and be late as well.
        """
        call = self._calls.get(message)
        return action if call is None else self._then(action, call)

    async def _then(self, action: Coroutine[Any, Any, None] | None, call: Future[Any]) -> None:
        if action is not None:
            await action
        with contextlib.suppress(Exception):
            await asyncio.wrap_future(call, loop=self._loop)

    def close(self) -> None:
        """Ends the threads that are idle, and the others when their handlers return."""
        self._pool.shutdown(wait=False, cancel_futures=True)
