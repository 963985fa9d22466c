"""Health: whether a client, or an app of them, does its work, and why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a client is, without a round trip to the broker.

    Attributes:
        ready: It is connected, not blocked, and each of its consumers gets deliveries: a service behind it may be sent
            work.
        live: It will get ready by itself, if at all. When it is not, only a new process helps.
        reasons: Why it is not ready or not live; empty when it is.
        uptime: Seconds since it was opened.
        connections: "open", "blocked: ..." or what a connection waits for, by its purpose ("publish", "consume") or the
            name of a dedicated connection. One that was not needed yet is left out.
        blocked: Seconds for which the broker has blocked publishings; 0 when it does not.
        consumers_expected: Consumers that should get deliveries.
        consumers_live: Those that do.
        delivery_age: Seconds since the last delivery to any of them; None before the first.
        last_error: Why a connection was lost or could not be opened, the last time; None when that never was.
        alerts: The alert rules that fire now; see `Client.report`.
    """

    ready: bool
    live: bool
    reasons: tuple[str, ...] = ()
    uptime: float = 0.0
    connections: Mapping[str, str] = field(default_factory=dict)
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
