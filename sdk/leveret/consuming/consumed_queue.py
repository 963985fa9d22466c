"""The queue of one consumer: what it is called now, and whether this client has to declare it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leveret.connection.channel import Channel
    from leveret.connection.link import Link
    from leveret.topology.declared import DeclaredQueue
    from leveret.topology.restoring import Restorer

__all__ = ["ConsumedQueue"]


class ConsumedQueue:
    """The queue of one consumer.

    Args:
        name: Its name when the consumer was made.
        link: Gives the consumer its connections.
        restorer: Knows what the client has declared, and declares a queue again that went with its last consumer.
    """

    def __init__(self, name: str, link: Link, restorer: Restorer) -> None:
        self._first_name = name
        self._link = link
        self._restorer = restorer
        # The queue, when this client has declared it.
        self._declared: DeclaredQueue | None = None

    @property
    def name(self) -> str:
        """The name now: a server-named queue gets a new one with each connection."""
        return self._first_name if self._declared is None else self._declared.name

    @property
    def is_missing(self) -> bool:
        """True when this client has declared it, and it is not there any more."""
        return self._declared is not None and self._declared.is_missing

    @property
    def may_vanish(self) -> bool:
        """True when the broker may delete it with its last consumer."""
        return self._restorer.declared.may_vanish(self.name)

    def look_up(self) -> DeclaredQueue | None:
        """Returns the queue when this client has declared it.

        Raises:
            ConfigurationError: It belongs to another connection of the client.
        """
        queue = self._declared
        if queue is None or queue.is_forgotten:
            queue = self._declared = self._restorer.declared.queue(self._first_name)
        if queue is not None:
            queue.check_home(self._link)
        return queue

    async def find(self, channel: Channel, *, left: bool) -> None:
        """Has the queue declared again that this client has declared and that is not there any more.

        Args:
            channel: The channel that is to consume it.
            left: This consumer was among its consumers, and is not any more because this side has ended that.
        """
        queue = self.look_up()
        if queue is None:
            return
        if queue.entity.auto_delete and left:
            # The broker has deleted it with its last consumer, unless there are others. One that cancelled the consumer
            # has deleted the queue for somebody else, who does not want it made again.
            queue.is_missing = True
        if queue.is_missing:
            await self._restorer.ensure(queue, channel.connection)

    def join(self, consumer: object) -> None:
        """Notes that the broker has this consumer among those of the queue."""
        if self._declared is not None:
            self._declared.consumers.add(consumer)

    def leave(self, consumer: object) -> None:
        """Notes that this consumer is over."""
        if self._declared is not None:
            self._restorer.declared.leave(self._declared, consumer)
