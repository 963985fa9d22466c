"""The health of a client, put together from its links and consumers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from leveret.connection.link import LinkState
from leveret.monitoring.health import Health

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.connection.link import Link
    from leveret.consuming.consumer import Consumer

__all__ = ["health_of"]


def health_of(
    links: Mapping[str, Link],
    consumers: Iterable[Consumer[Any]],
    now: float,
    *,
    opened_at: float | None,
    is_closed: bool,
    alerts: tuple[str, ...],
) -> Health:
    """Puts the health of a client together.

    Args:
        links: Its links by their purpose.
        consumers: Its consumers.
        now: The time of the loop's clock.
        opened_at: When the client was opened, by `time.monotonic`; None before.
        is_closed: It is closed.
        alerts: The alert rules that fire.
    """
    reasons: list[str] = []
    connections: dict[str, str] = {}
    idle: set[str] = set()
    blocked = 0.0
    last_error: str | None = None
    lasting = True
    for purpose, link in links.items():
        connection = link.connection
        if link.last_error is not None:
            last_error = str(link.last_error)
        if connection is None:
            if link.failure is not None:
                connections[purpose] = f"cannot connect: {link.failure}"
            elif purpose == "publish":
                connections[purpose] = "not connected yet"
            continue
        if not connection.is_open and link.may_recover and link.state is LinkState.LOST:
            # Nobody waits for it. A service that only consumes works without the connection that publishes.
            connections[purpose] = f"lost, and made again when it is needed: {link.failure or connection.error}"
            idle.add(purpose)
        elif not connection.is_open:
            connections[purpose] = f"lost: {link.failure or connection.error}"
            lasting = lasting and link.may_recover
        elif connection.blocked is not None:
            connections[purpose] = f"blocked: {connection.blocked}"
            blocked = max(blocked, now - connection.blocked_at)
        else:
            connections[purpose] = "open"
    reasons += [
        f"connection {purpose!r}: {state}"
        for purpose, state in connections.items()
        if state != "open" and purpose not in idle
    ]
    expected = live = 0
    ages: list[float] = []
    for consumer in consumers:
        health = consumer.health()
        expected += health.expected
        live += health.expected and health.live
        if health.delivery_age is not None:
            ages.append(health.delivery_age)
        if health.expected and not health.live:
            reasons.append(f"the consumer of queue {consumer.queue!r} gets no deliveries")
    if is_closed:
        reasons.insert(0, "the client is closed")
    elif opened_at is None:
        reasons.insert(0, "the client is not open yet")
    elif not lasting:
        reasons.insert(0, "a lost connection is not made again (auto_recovery=False)")
    return Health(
        ready=not reasons,
        live=not is_closed and lasting,
        reasons=tuple(reasons),
        uptime=0.0 if opened_at is None else time.monotonic() - opened_at,
        connections=connections,
        blocked=blocked,
        consumers_expected=expected,
        consumers_live=live,
        delivery_age=min(ages, default=None),
        last_error=last_error,
        alerts=alerts,
    )
