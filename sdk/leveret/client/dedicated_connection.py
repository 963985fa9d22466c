"""A connection for producers and consumers that do not share one with the rest of the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from leveret.client.base import ClientBase
from leveret.connection.link import Link
from leveret.runtime.tasks import see_through

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from leveret.connection.credentials import Credentials
    from leveret.monitoring.monitor import Monitor
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import Settings
    from leveret.topology.restoring import Restorer

__all__ = ["DedicatedConnection"]


class DedicatedConnection(ClientBase):
    """A connection of its own, with what is made on it. Made by `Client.dedicated_connection`.

    Its producers and consumers share it. A broker that is short of memory stops reading from connections that publish,
    acknowledgements included: what must go on then needs another one.

    It is closed with its client. When it is lost, its producers and consumers go on as those of `Client` do, with a new
    connection of the same name.

    Attributes:
        settings: Those of the client, with this name and number of channels.
        registry: The plugins it uses.
        publishing_link: Gives the connection to producers and consumers, and recovers it.
        consuming_link: The same link.
        declared: That of the client. Exclusive and server-named queues that were declared here can be used here only.
    """

    def __init__(
        self,
        settings: Settings,
        registry: PluginRegistry,
        monitor: Monitor,
        restorer: Restorer,
        credentials: Credentials,
        on_close: Callable[[], object],
    ) -> None:
        connection = settings.connection
        link = Link(connection, connection.client_name, registry, credentials, established=True)
        super().__init__(settings, registry, monitor, [link], link, restorer)
        self._on_close = on_close

    def __repr__(self) -> str:
        return f"<DedicatedConnection {self.name!r} {self.settings.redacted_url}>"

    @property
    def name(self) -> str:
        """The name that the broker lists."""
        return self.publishing_link.name

    async def close(self) -> None:
        """Closes its consumers and producers and then the connection, within `close_timeout` seconds in all.

        What is not confirmed by then ends UNKNOWN, what consumers did not finish goes back to its queue, and both are
        logged. When the caller is cancelled, closing goes on without it.
        """
        until = asyncio.get_running_loop().time() + self.settings.close_timeout
        await see_through(self.close_by(until), f"leveret: close {self!r}")

    async def close_by(self, until: float) -> None:
        """Does what `close` does, before a time of the loop's clock."""
        try:
            await self._close(until)
        finally:
            self.declared.forget_home(self.publishing_link)
            self._on_close()

    async def __aenter__(self) -> DedicatedConnection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
