"""The producer behind `Client.message`, which is opened with the first message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret.errors import ConfigurationError, LeveretError, PluginError, PublishError
from leveret.message import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from leveret.connection.link import Link
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.producer import Producer
    from leveret.publishing.publishing import Receipt, Ticket
    from leveret.publishing.template import Template

__all__ = ["FirstUseProducer"]


class FirstUseProducer:
    """Makes and opens a producer when the first message is published, and another one when that was closed."""

    def __init__(self, make: Callable[[], Producer], links: Sequence[Link]) -> None:
        self._make = make
        self._links = links
        self._lock = asyncio.Lock()
        self._producer: Producer | None = None

    async def publish(self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> Receipt:
        """Publishes a message and waits for its outcome, as `Producer.publish` does; `publish_timeout` covers opening.

        Raises:
            PublishError: As `Producer.publish`; with outcome NOT_SENT also when the producer could not be opened.
            LeveretError: As `Producer.publish`, and what `Client.producer` raises.
        """
        producer = self._producer
        if producer is not None and producer.is_open:
            return await producer.publish(value, routing_key, **options)
        producer, deadline = await self._open()
        return await producer.publish_by(deadline, value, routing_key, **options)

    async def enqueue(self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> Ticket:
        """Publishes a message as `Producer.enqueue` does; `publish_timeout` covers opening.

        Raises:
            PublishError, LeveretError: As `publish`.
        """
        producer = self._producer
        if producer is not None and producer.is_open:
            return await producer.enqueue(value, routing_key, **options)
        producer, deadline = await self._open()
        return await producer.enqueue_by(deadline, value, routing_key, **options)

    async def _open(self) -> tuple[Producer, float]:
        """Returns an open producer, and the deadline of the message that needs it, by the loop's clock."""
        made = self._make()
        seconds = made.settings.publish_timeout
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                return await self._opened(made), deadline
        except TimeoutError as error:
            if isinstance(error, LeveretError):
                raise _not_sent(error) from error
            late = _not_sent(f"the client's producer was not open within publish_timeout of {seconds:g} s")
            late.stage = "connection"
            blocked = next((link.blocked for link in self._links if link.blocked is not None), None)
            if blocked is not None:
                late.stage = "blocked"
                late.args = (f"{late}: the broker blocks publishers: {blocked}",)
                raise late from None
            cause = next((link.no_connection for link in self._links if link.no_connection is not None), None)
            if cause is not None:
                late.args = (f"{late}: {cause}",)
            raise late from cause
        except (PublishError, ConfigurationError, PluginError):
            raise
        except LeveretError as error:
            raise _not_sent(error) from error

    async def _opened(self, made: Producer) -> Producer:
        """Opens this producer, unless another call has opened one meanwhile."""
        async with self._lock:
            if self._producer is None or not self._producer.is_open:
                self._producer = await made.open()
            return self._producer

    def publish_nowait(self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> Ticket:
        """Publishes without waiting, as `Producer.publish_nowait` does; not before a `publish` or `enqueue`."""
        if self._producer is None:
            raise _not_sent(
                "the client opens a producer with its first `publish` or `enqueue`; make one with `client.producer`"
            )
        return self._producer.publish_nowait(value, routing_key, **options)


def _not_sent(reason: object) -> PublishError:
    return PublishError(f"not sent: {reason}", outcome=Outcome.NOT_SENT)
