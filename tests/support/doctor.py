"""Runs the checks of `leveret doctor` in the test's own event loop, and looks for what they left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret import ConnectionSettings
from leveret.cli.doctor.checks import CHECKS, examine
from leveret.cli.doctor.visit import Visit
from tests.support.brokers import Embedded, RabbitMQ

if TYPE_CHECKING:
    from leveret.cli.doctor.finding import Finding
    from tests.support.brokers import Broker

NAMES = [check.name for check in CHECKS]


async def examined(url: str, queue: str | None = None, *, timeout: float = 25.0, **options: Any) -> dict[str, Finding]:
    """Returns the finding of each check."""
    async with Visit(ConnectionSettings.from_url(url, **options), queue, timeout) as visit:
        rows = await examine(visit, lambda name: None)
    assert visit.problems == []
    assert [name for name, _ in rows] == NAMES
    return dict(rows)


def by_state(findings: dict[str, Finding]) -> dict[str, list[str]]:
    """Returns the names of the checks by the state that they ended in."""
    found: dict[str, list[str]] = {}
    for name, finding in findings.items():
        found.setdefault(finding.state.value, []).append(name)
    return found


async def queues_of(broker: Broker) -> set[str]:
    """Returns the names of all queues of the broker."""
    if isinstance(broker, Embedded):
        return set(broker.broker.vhosts["/"].queues)
    assert isinstance(broker, RabbitMQ)
    return set((await asyncio.to_thread(broker.node.ctl, "list_queues", "--no-table-headers", "name")).splitlines())


def of_doctor(queues: set[str]) -> set[str]:
    """Returns the queues that the doctor has made."""
    return {name for name in queues if name.startswith("leveret.doctor.") or ".retry.9" in name}
