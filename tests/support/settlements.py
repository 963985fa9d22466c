"""Confirms as a broker sends them, and the publishings that they are about."""

from __future__ import annotations

from typing import Any

from leveret.publishing.template import PublishTemplate
from leveret.wire.runs import SettlementRun

#: A confirm window only looks whether a ticket has a future.
SOMEBODY_WAITS: Any = "somebody waits"
ORDERS = PublishTemplate("orders", "q", mandatory=True)


def run(*entries: tuple[int, bool, bool]) -> SettlementRun:
    return SettlementRun.of(1, [(tag, multiple, nack, False) for tag, multiple, nack in entries])


def ack(tag: int, *, multiple: bool = False) -> SettlementRun:
    return run((tag, multiple, False))


def nack(tag: int, *, multiple: bool = False) -> SettlementRun:
    return run((tag, multiple, True))
