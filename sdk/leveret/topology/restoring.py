"""Declares again, on a new connection, what the client has declared; skips and reports what the broker refuses."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import ChannelClosed, ConnectionClosed, EncodeFailed, NotFound, OperationTimeout, again
from leveret.protocol import commands
from leveret.topology.declarer import undeclared
from leveret.topology.declaring import AT_ONCE, explain, queue_info

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.errors import LeveretError
    from leveret.protocol.commands import Method
    from leveret.topology.declared import Declared, DeclaredQueue
    from leveret.topology.entities import Entity

__all__ = ["Restorer"]

logger = logging.getLogger("leveret.topology")

#: The classes of the methods that declare and bind: exchange and queue.
_DECLARING_CLASSES: Final = (commands.Exchange.Declare.index >> 16, commands.Queue.Declare.index >> 16)
#: So many refusals are logged one by one at each reconnection; the rest are counted.
_MOST_REPORTED: Final = 20


class Restorer:
    """Declares again what a client remembers, before anything else uses a new connection.

    Exchanges, queues of names that were chosen here, and their bindings belong to no connection: when both connections
    of a client were lost, the first that is back declares them. Exclusive and server-named queues, and their bindings,
    come back on the connection of the link that is their home.

    Args:
        declared: The client's memory.

    Attributes:
        declared: See above.
    """

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self._lock = asyncio.Lock()
        # Connections on whose broker the shared entities are: they were declared or declared again while these lived.
        self._vouching: list[Connection] = []
        # What made the broker close the connection: trying it again would close each new one.
        self._fatal: set[str] = set()

    async def prepare(self, home: object, connection: Connection, lost: Connection | None) -> None:
        """Makes a new connection ready for its first user.

        Args:
            home: The link that has opened it.
            connection: The new connection.
            lost: The one it replaces; None when it is the link's first.

        Raises:
            LeveretError: The new connection was lost, or the broker does not answer.
        """
        connection.undeclared = lambda method: undeclared(self.declared, method)
        async with self._lock:
            since = 0.0 if lost is None else lost.ended_at
            self._vouching = [it for it in self._vouching if it.error is None]
            if not any(it.opened_at > since for it in self._vouching):
                await self._restore_shared(connection)
            self._vouching.append(connection)
            mine = [it for it in self.declared.queues() if it.home is home]
            self._report(connection, await self._restore_queues(connection, mine), len(mine))

    async def ensure(self, queue: DeclaredQueue, connection: Connection) -> None:
        """Declares a queue that `is_missing`, its bindings, and the auto-delete exchanges that went with them.

        Args:
            queue: The queue.
            connection: The connection that consumes from it.

        Raises:
            ChannelClosed: The broker refused.
            LeveretError: The connection was lost, or the broker does not answer.
        """
        async with self._lock:
            if not queue.is_missing or queue.is_forgotten:
                return
            sources = {binding.exchange for binding in queue.bindings.values()}
            gone = [it for it in self.declared.exchanges() if it.auto_delete and it.name in sources]
            again_bound = [it for it in self.declared.exchange_bindings() if {it.source, it.destination} & sources]
            refused = await self._declare(connection, [*gone, *again_bound])
            refused += await self._restore_queues(connection, [queue])
            self._report(connection, [it for it in refused if it[0] is not queue.entity])
            for entity, error in refused:
                if entity is queue.entity:
                    raise again(error)

    # ------------------------------------------------------------------ inside

    async def _restore_shared(self, connection: Connection) -> None:
        declared = self.declared
        queues = [it for it in declared.queues() if it.home is None]
        bindings = [binding for queue in queues for binding in queue.bindings.values()]
        entities: list[Entity] = [
            *declared.exchanges(),
            *declared.exchange_bindings(),
            *(queue.entity for queue in queues),
            *bindings,
            *declared.other_bindings(),
        ]
        self._report(connection, await self._declare(connection, entities), len(entities))

    async def _restore_queues(
        self, connection: Connection, queues: Sequence[DeclaredQueue]
    ) -> list[tuple[Entity, LeveretError]]:
        """Declares queues that live with a connection, and binds them."""
        for queue in queues:
            queue.is_missing = True
        waiting = [queue for queue in queues if not await self._is_there(queue, connection)]
        by_entity = {id(queue.entity): queue for queue in waiting}

        def declared(entity: Entity, answer: Method | None) -> None:
            queue = by_entity[id(entity)]
            queue.is_missing = False
            if not queue.entity.name:
                old, name = queue.name, queue_info(answer).name
                self.declared.rename(queue, name)
                logger.info("connection %r: the server names queue %r %r now", connection.name, old, name)

        refused = await self._declare(connection, [queue.entity for queue in waiting], declared)
        bindings = [binding for queue in queues if not queue.is_missing for binding in queue.bindings.values()]
        return refused + await self._declare(connection, bindings)

    async def _is_there(self, queue: DeclaredQueue, connection: Connection) -> bool:
        """Looks for a server-named queue that may have outlived its connection, as it is not exclusive."""
        if queue.entity.name or queue.entity.exclusive:
            return False
        channel = await connection.channel()
        try:
            await channel.call(queue.entity.declare(passive=queue.name))
        except NotFound:
            return False
        except (ChannelClosed, OperationTimeout):
            if connection.error is not None:
                raise
            return True  # it may be there; another one beside it would take its messages
        else:
            queue.is_missing = False
            return True
        finally:
            channel.abandon()

    async def _declare(
        self,
        connection: Connection,
        entities: Sequence[Entity],
        declared: Callable[[Entity, Method | None], object] | None = None,
    ) -> list[tuple[Entity, LeveretError]]:
        """Declares entities in their order, without those that the broker refuses.

        Returns:
            The refused ones and why.
        """
        refused: list[tuple[Entity, LeveretError]] = []
        channel: Channel | None = None
        start, size = 0, AT_ONCE
        entities = [entity for entity in entities if str(entity) not in self._fatal]
        try:
            while start < len(entities):
                if channel is None:
                    channel = await connection.channel()
                some = entities[start : start + size]
                done = 0

                def answered(index: int, answer: Method | None, some: Sequence[Entity] = some) -> None:
                    nonlocal done
                    done = index + 1
                    if declared is not None:
                        declared(some[index], answer)

                try:
                    await channel.call_all([entity.declare() for entity in some], answered)
                except (ChannelClosed, OperationTimeout, EncodeFailed) as error:
                    if isinstance(error, ChannelClosed):
                        explain(error, some[done])
                    refused.append((some[done], error))
                    # What was sent behind a refused one has to be sent again: fewer, while refusals come.
                    size = max(1, size // 4)
                    channel.abandon()
                    channel = None
                    start += done + 1
                except ConnectionClosed as error:
                    self._note_fatal(connection, some[done], error)
                    raise
                else:
                    start += len(some)
                    size = min(AT_ONCE, size * 2)
        finally:
            if channel is not None:
                channel.abandon()
        return refused

    def _note_fatal(self, connection: Connection, entity: Entity, error: ConnectionClosed) -> None:
        if error.class_id not in _DECLARING_CLASSES:
            return
        self._fatal.add(str(entity))
        logger.error(
            "connection %r: the broker closed it for declaring %s again, which is not tried any more: %s",
            connection.name,
            entity,
            error,
        )

    def _report(self, connection: Connection, refused: list[tuple[Entity, LeveretError]], count: int = 0) -> None:
        for entity, error in refused[:_MOST_REPORTED]:
            logger.warning("connection %r: %s could not be declared again: %s", connection.name, entity, error)
        if len(refused) > _MOST_REPORTED:
            more = len(refused) - _MOST_REPORTED
            logger.warning("connection %r: %d more could not be declared again", connection.name, more)
        if count:
            logger.info("connection %r: declared %d entities again", connection.name, count - len(refused))
