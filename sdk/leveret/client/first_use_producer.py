"""The producer behind `Client.message`, which is opened with the first message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret.errors import PublishError
from leveret.message import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from leveret.publishing.confirms import Receipt, Ticket
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.producer import Producer

__all__ = ["FirstUseProducer"]


class FirstUseProducer:
    """Makes and opens a producer when the first message is published, and another one when that was closed."""

    def __init__(self, make: Callable[[], Producer]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._producer: Producer | None = None

    async def publish(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Receipt:
        """Publishes a message and waits for its outcome, as `Producer.publish` does."""
        producer = self._producer
        if producer is None or not producer.is_open:
            async with self._lock:
                producer = self._producer
                if producer is None or not producer.is_open:
                    producer = self._producer = await self._make().open()
        return await producer.publish(value, routing_key, **options)

    def publish_nowait(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Ticket:
        """Publishes a message without waiting, as `Producer.publish_nowait` does; not before a `publish`."""
        if self._producer is None:
            raise PublishError(
                "not sent: the client opens a producer with its first `publish`; make one with `client.producer`",
                outcome=Outcome.NOT_SENT,
            )
        return self._producer.publish_nowait(value, routing_key, **options)
