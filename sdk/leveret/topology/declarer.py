"""Declares, unbinds, purges and deletes for a client, each on the connection that may, and remembers what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError
from leveret.protocol.commands import Exchange, Queue
from leveret.runtime.tasks import one_deadline
from leveret.topology.declaring import declare_each, queue_info
from leveret.topology.entities import BindingEntity, ExchangeBindingEntity, ExchangeEntity, QueueEntity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from leveret.connection.link import Link
    from leveret.protocol.commands import Method
    from leveret.topology.declared import Declared
    from leveret.topology.entities import Entity
    from leveret.topology.topology import DeclareReport, QueueInfo, Topology

__all__ = ["Declarer", "undeclared"]

#: `declare` has `operation_timeout` seconds, and as many again for each of so many entities.
_EACH: Final = 100


class Declarer:
    """Declares and deletes on the links of a client or of a dedicated connection.

    Args:
        declared: The client's memory, which it fills.
        shared: The link for what every connection may use.
        home: The link for exclusive and server-named queues: the one that consumes.
    """

    def __init__(self, declared: Declared, shared: Link, home: Link) -> None:
        self._declared = declared
        self._shared = shared
        self._home = home

    async def declare(self, topology: Topology) -> DeclareReport:
        """Declares a topology; see `Client.declare`."""
        from leveret.topology.topology import DeclareReport  # a program that only publishes does without

        queues: dict[str, QueueInfo] = {}

        def remember(entity: Entity, answer: Method | None) -> None:
            if isinstance(entity, QueueEntity):
                info = queues[entity.name] = queue_info(answer)
                self._declared.add_queue(entity, info.name, self._home if entity.needs_home else None)
            elif isinstance(entity, ExchangeEntity):
                self._declared.add_exchange(entity)
            elif isinstance(entity, BindingEntity):
                self._declared.add_binding(entity)
            else:
                self._declared.add_exchange_binding(entity)

        if any(it.queue == "" for it in topology.bindings if isinstance(it, BindingEntity)) and not any(
            queue.name == "" for queue in topology.queues
        ):
            raise ConfigurationError(
                "a binding names no queue, and the topology has no queue that the server names", option="queue"
            )
        for queue in topology.queues:
            self._link_of(queue.name)
        count = len(topology.exchanges) + len(topology.queues) + len(topology.bindings)
        async with self._deadline(f"declaring {count} entities", count):
            await self._declare_all(topology, queues, remember)
        in_order = {queue.name: queues[queue.name] for queue in topology.queues}
        return DeclareReport(tuple(it.name for it in topology.exchanges), in_order, len(topology.bindings))

    async def _declare_all(
        self,
        topology: Topology,
        queues: Mapping[str, QueueInfo],
        remember: Callable[[Entity, Method | None], object],
    ) -> None:
        at_home = [queue for queue in topology.queues if queue.needs_home]
        others = [queue for queue in topology.queues if not queue.needs_home]
        await self._declare(self._shared, lambda: [*topology.exchanges, *others], remember, always=True)
        await self._declare(self._home, lambda: at_home, remember)

        def bindings(link: Link) -> Callable[[], Sequence[Entity]]:
            # Called when there is a channel: a server-named queue may have another name on the next connection.
            return lambda: [it for it in map(current, topology.bindings) if self._link_of_binding(it) is link]

        def current(binding: BindingEntity | ExchangeBindingEntity) -> BindingEntity | ExchangeBindingEntity:
            if not isinstance(binding, BindingEntity):
                return binding
            name = binding.queue or queues[""].name
            found = self._declared.queue(name)
            return binding.of(name if found is None else found.name)

        await self._declare(self._shared, bindings(self._shared), remember)
        if self._home is not self._shared:
            await self._declare(self._home, bindings(self._home), remember)

    async def unbind(self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None) -> None:
        """Undoes `Topology.bind`."""
        async with self._deadline("unbinding"), self._link_of(queue).channels.acquire() as channel:
            await channel.queue_unbind(self.name_of(queue), exchange, routing_key, arguments=arguments)

    async def unbind_exchange(
        self, destination: str, source: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Undoes `Topology.bind_exchange`."""
        async with self._deadline("unbinding"), self._shared.channels.acquire() as channel:
            await channel.exchange_unbind(destination, source, routing_key, arguments=arguments)

    async def purge(self, queue: str) -> int:
        """Drops a queue's ready messages; returns how many there were."""
        async with self._deadline("purging"), self._link_of(queue).channels.acquire() as channel:
            return await channel.queue_purge(self.name_of(queue))

    async def delete_queue(self, queue: str) -> int:
        """Deletes a queue; returns how many messages it had."""
        async with self._deadline("deleting"), self._link_of(queue).channels.acquire() as channel:
            return await channel.queue_delete(self.name_of(queue))

    async def delete_exchange(self, exchange: str) -> None:
        """Deletes an exchange."""
        async with self._deadline("deleting"), self._shared.channels.acquire() as channel:
            await channel.exchange_delete(exchange)

    def name_of(self, queue: str) -> str:
        """Returns the present name of a queue, which the server may have named again."""
        found = self._declared.queue(queue)
        return queue if found is None else found.name

    def check_home(self, queue: str) -> None:
        """Refuses a queue that lives on another connection of the client.

        Raises:
            ConfigurationError: It is exclusive to another connection, or the server named it for another one.
        """
        self._link_of(queue)

    # ------------------------------------------------------------------ inside

    def _deadline(self, what: str, count: int = 0) -> AbstractAsyncContextManager[None]:
        # Waiting for a connection and for a channel, and each answer, all have `operation_timeout` for themselves.
        return one_deadline(self._shared.operation_timeout * (1 + count // _EACH), what)

    async def _declare(
        self,
        link: Link,
        entities: Callable[[], Sequence[Entity]],
        declared: Callable[[Entity, Method | None], object],
        *,
        always: bool = False,
    ) -> None:
        # An empty topology asks for a channel all the same: the caller learns that there is no connection.
        if always or entities():
            async with link.channels.acquire() as channel:
                await declare_each(channel, entities(), declared)

    def _link_of(self, queue: str) -> Link:
        found = self._declared.queue(queue)
        if found is None or found.home is None:
            return self._shared
        found.check_home(self._home)
        return self._home

    def _link_of_binding(self, binding: BindingEntity | ExchangeBindingEntity) -> Link:
        return self._link_of(binding.queue) if isinstance(binding, BindingEntity) else self._shared


def undeclared(declared: Declared, method: Method) -> None:
    """Has the memory forget what a method has deleted or unbound."""
    if isinstance(method, Queue.Delete):
        declared.forget_queue(method.queue)
    elif isinstance(method, Exchange.Delete):
        declared.forget_exchange(method.exchange)
    elif isinstance(method, Queue.Unbind):
        declared.forget_binding(method.queue, method.exchange, method.routing_key, method.arguments)
    elif isinstance(method, Exchange.Unbind):
        declared.forget_exchange_binding(method.destination, method.source, method.routing_key, method.arguments)
