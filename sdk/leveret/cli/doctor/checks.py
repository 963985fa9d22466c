"""The table of checks, and their examination in its order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leveret.cli.doctor import advice, broker, login, reach, rights, trips
from leveret.cli.doctor.finding import Finding, State, failed, skipped
from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from leveret.cli.doctor.visit import Visit

__all__ = ["CHECKS", "Check", "examine"]


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: Its name in the table.
        run: Does it. What it raises is its failure.
        needs: The checks before it without which it makes no sense.
    """

    name: str
    run: Callable[[Visit], Awaitable[Finding]]
    needs: tuple[str, ...] = ()


CHECKS: Final = (
    Check("DNS", reach.names),
    Check("TCP", reach.tcp, ("DNS",)),
    Check("TLS", reach.tls, ("TCP",)),
    Check("login", login.login, ("TCP", "TLS")),
    Check("virtual host", login.virtual_host, ("login",)),
    Check("broker", broker.broker, ("virtual host",)),
    Check("limits", broker.limits, ("virtual host",)),
    Check("alarms", rights.alarms, ("virtual host",)),
    Check("permissions", rights.permissions, ("virtual host",)),
    Check("queue", rights.queue, ("virtual host",)),
    Check("retry queues", rights.retries, ("virtual host",)),
    Check("parking", rights.parking, ("virtual host",)),
    Check("round trip", trips.round_trip, ("alarms", "permissions")),
    Check("retry", trips.retry_trip, ("alarms", "permissions")),
    Check("clock", trips.clock, ("alarms", "permissions")),
    Check("settings", advice.recommended, ("virtual host",)),
)


async def examine(
    visit: Visit, begun: Callable[[str], object], checks: Sequence[Check] = CHECKS
) -> list[tuple[str, Finding]]:
    """Runs checks one after the other, until the visit's deadline.

    Args:
        visit: The visit, entered.
        begun: Called with the name of each check when it begins.
        checks: The checks.

    Returns:
        The name and finding of each check, in their order.
    """
    findings: dict[str, Finding] = {}
    # The checks that failed, and those that were left out for them.
    lost: dict[str, str] = {}
    for check in checks:
        cause = next((lost[name] for name in check.needs if name in lost), None)
        if cause is None:
            begun(check.name)
            finding = await _within_deadline(check, visit)
            if finding.state is State.FAILED:
                lost[check.name] = check.name
        else:
            finding = skipped(f"not tried, because {cause!r} failed")
            lost[check.name] = cause
        findings[check.name] = finding
    return list(findings.items())


async def _within_deadline(check: Check, visit: Visit) -> Finding:
    if asyncio.get_running_loop().time() >= visit.deadline:
        return skipped(f"no time was left of --timeout {visit.timeout:g}")
    deadline = asyncio.timeout_at(visit.deadline)
    try:
        async with deadline:
            return await check.run(visit)
    except (LeveretError, OSError) as error:
        if deadline.expired():
            visit.deadline = 0.0  # a timer may be a little early, and would leave the next check a moment
            return failed(f"was not over within --timeout {visit.timeout:g}", "Give it more time: --timeout 60.")
        return failed(printable(str(error) or type(error).__name__, 500))
