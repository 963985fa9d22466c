"""After a fork the child is told that the connection is its parent's, and the parent's goes on."""

from __future__ import annotations

import asyncio
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.usefixtures("no_leftovers")


def in_a_fork(work: Callable[[], str]) -> str:
    """Runs something in a forked child and returns its text."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads may exist
        child = os.fork()
    if not child:
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


async def test_a_forked_child_is_told_that_it_was_forked(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer, client.consumer(queue) as consumer:
        await producer.publish(1, queue)

        async def nowait() -> None:
            producer.publish_nowait(2, queue)

        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "publish": lambda: producer.publish(2, queue),
            "publish_nowait": nowait,
            "publish_batch": lambda: producer.publish_batch([2], queue),
            "enqueue": lambda: producer.enqueue(2, queue),
            "flush": producer.flush,
            "declare": lambda: client.declare(leveret.Topology().queue(queue)),
            "get": consumer.get,
            "close": client.close,
        }
        for name, call in calls.items():

            def work(call: Callable[[], Coroutine[Any, Any, Any]] = call) -> str:
                try:
                    asyncio.run(call())
                except WrongLoopError as error:
                    return f"refused: {error}"
                return "it was sent"

            said = in_a_fork(work)
            assert said.startswith("refused: connection "), f"{name}: {said}"
            assert f"before this process was forked (by process {os.getpid()})" in said, name
            assert "Connect in the child" in said, name
        message = await consumer.get()
        assert message is not None
        message.ack()
        assert (await producer.publish(3, queue)).delivery_tag == 2
