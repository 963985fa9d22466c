"""Nacks right after a reconnect, which may be the fault of the channel and not of the queue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.connection.channel import Channel
    from leveret.connection.link import Link
    from leveret.errors import LeveretError
    from leveret.wire.runs import ContentRun, SettlementRun

__all__ = ["NackDoubt"]

logger = logging.getLogger("leveret.publishing")

#: Seconds between two steps.
_PAUSE: Final = 5.0


class _Abandoned:
    """Takes what a broker still says on a channel that was given up.

    Args:
        lost: Told of the channel's end; None when another channel is being opened already.
    """

    def __init__(self, lost: Callable[[LeveretError], None] | None = None) -> None:
        self._lost = lost

    def settled(self, run: SettlementRun) -> None:
        """The publishings are sent again on another channel."""

    def returned(self, run: ContentRun) -> None:
        """Likewise."""

    def channel_lost(self, error: LeveretError) -> None:
        """Passes it on."""
        if self._lost is not None:
            self._lost(error)


class NackDoubt:
    """Leaves a channel whose nacks may be its own fault.

    RabbitMQ: a channel that was opened while a quorum queue had no leader may refuse every publishing to that queue for
    as long as the node of the old leader is away, while channels that are opened later are confirmed. So while nothing
    was confirmed on a producer's channel since it reconnected, nacks open another channel, and the next ones lead to
    another node; at most one of these steps in five seconds. Nacks in between stand, and so do all of them once
    something was confirmed: then a queue refuses messages (`overflow="reject-publish"`), which is no fault.

    It reads no clock: time is passed in.

    Args:
        link: Connects to another node.
        reopen: Opens another channel for the producer.

    Attributes:
        armed: Nothing was confirmed since the producer reconnected.
    """

    def __init__(self, link: Link, reopen: Callable[[], None]) -> None:
        self.armed = False
        self._link = link
        self._reopen = reopen
        self._last_step = float("-inf")
        # The next step connects to another node.
        self._node_next = False

    def reconnected(self) -> None:
        """The producer goes on with another connection, maybe because of a step."""
        if not self.armed:
            self.armed = True
            self._node_next = False

    def leaves(self, now: float, channel: Channel | None, run: SettlementRun) -> bool:
        """Takes confirms while `armed`, and gives the channel up if they may be its fault.

        Args:
            now: Seconds of a monotonic clock.
            channel: The producer's channel.
            run: The confirms.

        Returns:
            Whether the channel is given up. Then the confirms do not count.
        """
        if not all(nack for _, _, nack, _ in run):
            self.armed = False
            return False
        if channel is None or now - self._last_step < _PAUSE:
            return False
        self._last_step = now
        to_node = self._node_next and self._link.has_other_nodes
        self._node_next = not self._node_next
        logger.warning(
            "the broker refuses everything since a producer reconnected; it goes on with another %s",
            "node" if to_node else "channel",
        )
        if to_node:
            # Its end brings about what the end of every connection does.
            channel.publisher = _Abandoned(None if channel.publisher is None else channel.publisher.channel_lost)
            self._link.change_node(channel.connection)
        else:
            channel.publisher = _Abandoned()
            channel.abandon()
            self._reopen()
        return True
