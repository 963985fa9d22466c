"""The health of a client or app: ready, live, and the reasons why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a client or app, without a round trip to the broker.

    Attributes:
        ready: What the client needs is connected and not blocked, and each of its consumers gets deliveries. A lost
            connection that nobody waits for is made again when it is needed, and keeps it ready.
        live: The client recovers by itself from what keeps it from being ready. If not, only a new one helps.
        reasons: The reasons why it is not ready; empty when it is.
        uptime: Seconds since it was opened.
        connections: "open", "blocked: ...", "lost: ..." or "cannot connect: ...", by purpose ("publish", "publish-2",
            "consume") or by the name of a dedicated connection. A connection that was not needed yet is left out.
        blocked: Seconds for which the broker has blocked publishings; 0 when it does not.
        consumers_expected: Consumers that should get deliveries.
        consumers_live: Consumers that get deliveries.
        delivery_age: Seconds since the last delivery to any of them; None before the first.
        last_error: Why a connection was lost or could not be opened, the last time; None when that never was.
        alerts: The alert rules that fire now; see `Client.report`.
    """

    ready: bool
    live: bool
    reasons: tuple[str, ...] = ()
    uptime: float = 0.0
    connections: dict[str, str] = field(default_factory=dict)
    blocked: float = 0.0
    consumers_expected: int = 0
    consumers_live: int = 0
    delivery_age: float | None = None
    last_error: str | None = None
    alerts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as plain values, for logs and JSON."""
        return asdict(self)

    def __str__(self) -> str:
        state = "ready" if self.ready else "live, not ready" if self.live else "not live"
        return f"{state}: {'; '.join(self.reasons)}" if self.reasons else state
