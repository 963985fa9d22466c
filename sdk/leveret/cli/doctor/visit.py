"""A visit: the connection of an examination, its deadline, and what it has made on the broker."""

from __future__ import annotations

import asyncio
import enum
import secrets
from typing import TYPE_CHECKING, Final

import leveret

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Self

    from leveret.cli.doctor.arrivals import Arrivals
    from leveret.connection.channel import Channel
    from leveret.errors import LeveretError
    from leveret.settings import ConnectionSettings, Endpoint

__all__ = ["KEPT", "RABBITMQ", "Visit", "Writing"]

#: What RabbitMQ calls itself.
RABBITMQ: Final = "RabbitMQ"
#: Seconds without use after which the broker deletes a queue that this process could not delete.
KEPT: Final = 60
#: The shares of the whole time that checks have together, that one step of a check has, and that closing has.
_WORK: Final = 0.9
_STEP: Final = 0.2
_CLOSING: Final = 0.05


class Writing(enum.Enum):
    """The right to publish to the default exchange."""

    UNKNOWN = "it was not tried yet, or the broker takes no messages now"
    GRANTED = "the broker has taken a message"
    MISSING = "the broker has refused one"


class Visit:
    """What the checks share. Use it with `async with`, which closes connections and deletes what is left.

    Args:
        settings: How to connect.
        queue: The queue of `--queue`, or None.
        timeout: Seconds for all checks and for cleaning up.

    Attributes:
        settings: How to connect, with the deadlines of this visit.
        queue: See above.
        timeout: See above.
        step: Seconds that one step, such as a connect, may take.
        deadline: When the checks have to be over, by the loop's clock.
        addresses: The numeric addresses of each host.
        reached: The addresses that answer over TCP, each with its host.
        client: The client that is logged in, or None before that.
        refusal: Why the broker refused the virtual host, or None.
        writing: Whether the user may publish to the default exchange.
        work: The channel and name of a queue of this visit, and what arrives there; None when there is none.
        stamps: Times that the broker has told: seconds since 1970, how exact they are, and the times of this host
            between which they were taken.
        confirm_p50: Seconds from publish to confirm, or None when it was not measured.
        problems: What could not be cleaned up.
    """

    def __init__(self, settings: ConnectionSettings, queue: str | None, timeout: float) -> None:
        self.queue = queue
        self.timeout = timeout
        self.step = timeout * _STEP
        self.settings = settings.replace(
            client_name="leveret doctor",
            wait=None,
            auto_recovery=False,
            connect_timeout=min(settings.connect_timeout, self.step),
            handshake_timeout=min(settings.handshake_timeout, self.step),
            operation_timeout=min(settings.operation_timeout, self.step),
            close_timeout=min(settings.close_timeout, timeout * _CLOSING),
        )
        self.addresses: dict[Endpoint, list[str]] = {}
        self.reached: list[tuple[Endpoint, str]] = []
        self.client: leveret.Client | None = None
        self.refusal: LeveretError | None = None
        self.writing = Writing.UNKNOWN
        self.work: tuple[Channel, str, Arrivals] | None = None
        self.stamps: list[tuple[float, float, float, float]] = []
        self.confirm_p50: float | None = None
        self.problems: list[str] = []
        self._made: set[str] = set()

    async def __aenter__(self) -> Self:
        self.deadline = asyncio.get_running_loop().time() + self.timeout * _WORK
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._made:
                await self._delete_the_rest()
        finally:
            if self.client is not None:
                await self.client.close()

    # ------------------------------------------------------------------ the broker

    @property
    def logged_in(self) -> leveret.Client:
        """The client; checks that use it need the virtual host."""
        assert self.client is not None
        return self.client

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """What the broker says of itself."""
        return self.logged_in.connection.negotiated.server_properties

    @property
    def product(self) -> str:
        """The broker's name, as it says it."""
        return str(self.server_properties.get("product", "unknown"))

    @property
    def version(self) -> str:
        """The broker's version, as it says it."""
        return str(self.server_properties.get("version", "unknown"))

    async def producer(self) -> leveret.Producer:
        """Opens a producer; the client closes it."""
        return await self.logged_in.producer(
            serializer="bytes", publish_timeout=self.step, confirm_timeout=self.step
        ).open()

    async def channel(self) -> Channel:
        """Opens a channel on the connection that consumes, which the broker does not block."""
        return await (await self.logged_in.consuming_link()).channel()

    # ------------------------------------------------------------------ what is made

    @staticmethod
    def new_name() -> str:
        """Makes a name that no other queue has."""
        return f"leveret.doctor.{secrets.token_hex(4)}"

    @staticmethod
    def new_number() -> int:
        """Makes a number for the name of a retry queue, which is longer than any delay in milliseconds."""
        return 9_000_000_000 + secrets.randbelow(1_000_000_000)

    def making(self, queue: str) -> None:
        """Notes a queue that does not go with its connection, before it is declared."""
        self._made.add(queue)

    def not_made(self, queue: str) -> None:
        """Notes that the broker refused to declare such a queue."""
        self._made.discard(queue)

    async def delete(self, queue: str) -> None:
        """Deletes such a queue."""
        channel = await self.channel()
        await channel.queue_delete(queue)
        self._made.discard(queue)
        await channel.close()

    async def _delete_the_rest(self) -> None:
        # A new connection, because that of the client may be lost or stuck.
        try:
            async with (
                asyncio.timeout(self.timeout * _CLOSING),
                leveret.connect(self.settings) as client,
            ):
                for queue in sorted(self._made):
                    await client.delete_queue(queue)
        except (leveret.LeveretError, TimeoutError) as error:
            names = ", ".join(sorted(self._made))
            reason = str(error) or "no answer in time"
            self.problems.append(f"could not delete {names} ({reason}); the broker does it after {KEPT} s")
