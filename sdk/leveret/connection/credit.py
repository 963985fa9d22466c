"""How many deliveries a server may send ahead on a channel: what its consumers asked for (basic.qos)."""

from __future__ import annotations

__all__ = ["Credit"]


class Credit:
    """The prefetch counts of a channel's consumers.

    RabbitMQ counts a delivery towards the consumer tag that it was sent to. So a consumer that takes the place of
    another one has all of its prefetch, whatever is unsettled of the other's.

    Args:
        spare_bytes: How many bytes a server may send beyond, because some count in chunks (RabbitMQ's streams).

    Attributes:
        spare_bytes: See above.
        prefetch: What consumers that begin from now on asked for; 0 means no limit.
        total: What the consumers may hold together; None when one of them has no limit.
        changes: How often a consumer began or ended. Only then does `total` change.
    """

    def __init__(self, spare_bytes: int) -> None:
        self.spare_bytes = spare_bytes
        self.prefetch = 0
        self.total: int | None = 0
        self.changes = 0
        self._by_tag: dict[str, int] = {}

    def begin(self, consumer_tag: str) -> None:
        """Notes that a consumer begins."""
        self._by_tag[consumer_tag] = self.prefetch
        self._count()

    def end(self, consumer_tag: str) -> None:
        """Notes that nothing more comes for a consumer."""
        if self._by_tag.pop(consumer_tag, None) is not None:
            self._count()

    def _count(self) -> None:
        self.changes += 1
        self.total = sum(self._by_tag.values()) if all(self._by_tag.values()) else None
