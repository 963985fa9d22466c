"""Closing what was made on links, and then the links, within one deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from leveret.runtime.tasks import cancel_all

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from leveret.connection.link import Link
    from leveret.consuming.consumer import Consumer
    from leveret.publishing.producer import Producer

__all__ = ["close_by"]

logger = logging.getLogger("leveret.client")

#: Shares of the time after which producers are closed, whether or not the consumers are, and then the connections.
#: Consumers come first, because their handlers may publish.
_CONSUMERS: Final = 0.4
_PRODUCERS: Final = 0.8
#: Seconds in which everything ends whose connection has ended.
_GRACE: Final = 0.2


async def close_by(
    until: float, consumers: Iterable[Consumer[Any]], producers: Iterable[Producer], links: Collection[Link]
) -> None:
    """Closes consumers, producers and links.

    What a broker does not answer in time is given up when the connections end: publishings end UNKNOWN, deliveries go
    back to their queues, and both are logged.

    Args:
        until: The deadline, by the loop's clock.
        consumers: Closed first, side by side.
        producers: Closed next.
        links: Closed at last; their connections get what is left of the time to say goodbye.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    span = max(0.0, until - begun)
    tasks = [asyncio.create_task(consumer.close(), name=f"leveret: close {consumer!r}") for consumer in consumers]
    try:
        await _wait(tasks, begun + _CONSUMERS * span)
        tasks += [asyncio.create_task(producer.close(), name=f"leveret: close {producer!r}") for producer in producers]
        await _wait(tasks, begun + _PRODUCERS * span)
    finally:
        late = [task for task in tasks if not task.done()]
        if late:
            logger.warning(
                "%d of %d producers and consumers were not closed in time, and end with their connections",
                len(late),
                len(tasks),
            )
        left = max(0.0, until - loop.time())
        results = await asyncio.gather(*(link.close(left) for link in links), return_exceptions=True)
        await _wait(tasks, loop.time() + _GRACE)
        if any(not task.done() for task in tasks):
            await cancel_all(tasks, _GRACE)
    for result in (*results, *(task.exception() for task in tasks if task.done() and not task.cancelled())):
        if isinstance(result, BaseException):
            raise result


async def _wait(tasks: list[asyncio.Task[None]], until: float) -> None:
    """Waits until all tasks are done, or a time comes."""
    unfinished = [task for task in tasks if not task.done()]
    if unfinished:
        await asyncio.wait(unfinished, timeout=max(0.0, until - asyncio.get_running_loop().time()))
