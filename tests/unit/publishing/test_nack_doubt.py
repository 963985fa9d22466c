"""When nacks make a producer leave its channel: after a reconnect, while nothing is confirmed, and not often."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.publishing.nack_doubt import NackDoubt
from leveret.wire.runs import SettlementRun

NACKS = SettlementRun.of(1, [(1, False, True, False), (2, True, True, False)])
MIXED = SettlementRun.of(1, [(1, False, True, False), (2, False, False, False)])


class Link:
    """A link with one other node."""

    has_other_nodes = True

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps

    def change_node(self, connection: object) -> None:
        self._steps.append("node")


class Channel:
    """What is left of a channel."""

    connection = None
    publisher: Any = None

    def abandon(self) -> None: ...


@pytest.fixture
def steps() -> list[str]:
    return []


@pytest.fixture
def doubt(steps: list[str]) -> NackDoubt:
    link: Any = Link(steps)
    return NackDoubt(link, lambda: steps.append("channel"))


def leaves(doubt: NackDoubt, now: float, run: SettlementRun = NACKS) -> bool:
    channel: Any = Channel()
    return doubt.armed and doubt.leaves(now, channel, run)


def test_nacks_stand_when_the_producer_has_not_reconnected(doubt: NackDoubt, steps: list[str]) -> None:
    assert not leaves(doubt, 0.0)
    assert steps == []


def test_nacks_lead_to_another_channel_and_then_to_another_node(doubt: NackDoubt, steps: list[str]) -> None:
    doubt.reconnected()
    assert leaves(doubt, 100.0)
    assert leaves(doubt, 105.0)
    assert steps == ["channel", "node"]


def test_nacks_stand_for_five_seconds_after_a_step(doubt: NackDoubt, steps: list[str]) -> None:
    doubt.reconnected()
    assert leaves(doubt, 100.0)
    assert not leaves(doubt, 100.1)
    assert not leaves(doubt, 104.9)
    assert steps == ["channel"]


def test_nacks_stand_once_something_was_confirmed(doubt: NackDoubt, steps: list[str]) -> None:
    doubt.reconnected()
    assert not leaves(doubt, 100.0, MIXED)
    assert not leaves(doubt, 200.0)
    assert steps == []


def test_another_reconnect_begins_anew_only_after_a_confirm(doubt: NackDoubt, steps: list[str]) -> None:
    doubt.reconnected()
    assert leaves(doubt, 100.0)
    doubt.reconnected()  # to the same node, for another reason
    assert leaves(doubt, 105.0)
    doubt.reconnected()  # to the other node
    assert not leaves(doubt, 106.0, MIXED)
    doubt.reconnected()
    assert leaves(doubt, 200.0)
    assert steps == ["channel", "node", "channel"]


def test_nacks_lead_to_another_channel_again_when_there_is_one_node(doubt: NackDoubt, steps: list[str]) -> None:
    doubt._link.has_other_nodes = False  # type: ignore[misc]
    doubt.reconnected()
    assert leaves(doubt, 100.0)
    assert leaves(doubt, 105.0)
    assert steps == ["channel", "channel"]
