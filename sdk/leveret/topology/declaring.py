"""Declaring many entities with a few round trips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from leveret.errors import ChannelClosed, PreconditionFailed
from leveret.protocol.commands import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leveret.connection.channel import Channel
    from leveret.protocol.commands import Method
    from leveret.topology.entities import Entity
    from leveret.topology.topology import QueueInfo

__all__ = ["AT_ONCE", "declare_each", "explain", "queue_info"]

#: So many declarations are sent before the first answer is awaited. It bounds the memory for requests and answers;
#: a round trip is shared by so many that a larger number would save next to nothing.
AT_ONCE: Final = 1000


async def declare_each(
    channel: Channel,
    entities: Sequence[Entity],
    declared: Callable[[Entity, Method | None], object],
) -> None:
    """Declares entities in their order on one channel, `AT_ONCE` with each round trip.

    Args:
        channel: The channel.
        entities: What to declare.
        declared: Called with each entity that exists now and the broker's answer.

    Raises:
        PreconditionFailed: Something exists with other arguments; a note of the error names it.
        ChannelClosed: The broker refused for another reason. Nothing that follows was declared.
        OperationTimeout: An answer did not come within `operation_timeout` seconds of the one before it.
        EncodeFailed: A name or argument does not fit AMQP. Nothing that follows was declared.
    """
    for start in range(0, len(entities), AT_ONCE):
        some = entities[start : start + AT_ONCE]
        done = 0

        def answered(index: int, method: Method | None, some: Sequence[Entity] = some) -> None:
            nonlocal done
            done = index + 1
            declared(some[index], method)

        try:
            await channel.call_all([entity.declare() for entity in some], answered)
        except ChannelClosed as error:
            explain(error, some[done])
            raise


def explain(error: ChannelClosed, entity: Entity) -> None:
    """Adds a note to a refusal that says which entity exists with another argument."""
    if isinstance(error, PreconditionFailed) and error.argument and error.wanted:
        error.add_note(f"{entity}: {error.argument} is {error.actual}, and {error.wanted} was wanted")


def queue_info(method: Method | None) -> QueueInfo:
    """Reads the answer to queue.declare."""
    assert isinstance(method, Queue.DeclareOk)
    from leveret.topology.topology import QueueInfo

    return QueueInfo(method.queue or "", method.message_count or 0, method.consumer_count or 0)
