"""The states of a producer: only the changes of the table happen, and what is derived from the state agrees with it."""

from __future__ import annotations

from itertools import product

import pytest

from leveret.errors import ChannelClosed
from leveret.publishing.lifecycle import PRODUCER_TRANSITIONS, ProducerLife, ProducerState


@pytest.mark.parametrize(("old", "new"), [*product(ProducerState, ProducerState)], ids=lambda state: state.name)
def test_only_the_changes_of_the_table_happen(old: ProducerState, new: ProducerState) -> None:
    life = ProducerLife()
    life.state = old
    if new in PRODUCER_TRANSITIONS[old]:
        life.move(new)
        assert life.state is new
    else:
        with pytest.raises(AssertionError, match=f"{old.name} -> {new.name}"):
            life.move(new)
        assert life.state is old


def test_every_state_is_reached_and_closed_is_the_end() -> None:
    reached = {ProducerState.NEW}
    while more := {new for old in reached for new in PRODUCER_TRANSITIONS[old]} - reached:
        reached |= more
    assert reached == set(ProducerState)
    assert [state for state, following in PRODUCER_TRANSITIONS.items() if not following] == [ProducerState.CLOSED]


@pytest.mark.parametrize("state", list(ProducerState), ids=lambda state: state.name)
def test_what_a_producer_can_do_follows_from_its_state(state: ProducerState) -> None:
    life = ProducerLife()
    life.state = state
    assert life.writable is (state is ProducerState.OPEN)
    assert life.usable is (state in {ProducerState.OPEN, ProducerState.REOPENING})
    assert life.writes is (state in {ProducerState.OPEN, ProducerState.DRAINING})
    assert life.ended is (state in {ProducerState.CLOSED, ProducerState.LOST})
    assert life.over is (life.ended or state in {ProducerState.DRAINING, ProducerState.CLOSING})
    life.error = ChannelClosed("there will be no other channel")
    assert not life.usable
    assert not life.writes
    assert life.over
    assert life.ended
