"""Deliveries that are not acknowledged: slices against a plain dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.broker.unacked import Piece, Unacked

if TYPE_CHECKING:
    from leveret.broker.queues import BrokerQueue
    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile

QUEUES = [cast("BrokerQueue", object()), cast("BrokerQueue", object())]


class Model:
    """Every delivery on its own: tag -> (queue, message, sequence)."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[object, object, int]] = {}

    def take(self, tag: int, *, multiple: bool) -> list[tuple[int, tuple[object, object, int]]] | None:
        if multiple and tag == 0:
            tags = list(self.entries)
        elif tag not in self.entries:
            return None
        else:
            tags = [t for t in self.entries if t <= tag] if multiple else [tag]
        return [(t, self.entries.pop(t)) for t in tags]


def flat(pieces: list[Piece] | None) -> list[tuple[int, tuple[object, object, int]]] | None:
    if pieces is None:
        return None
    return [
        (tag, (piece.queue, message, sequence))
        for piece in pieces
        for message, sequence, tag in zip(piece.messages, piece.sequences, piece.tags, strict=True)
    ]


deliveries = st.tuples(st.just("add"), st.integers(0, 1), st.integers(1, 6), st.sampled_from(["row", "gap", "list"]))
takes = st.tuples(st.just("take"), st.integers(0, 40), st.booleans(), st.just(""))
rollbacks = st.tuples(st.just("back"), st.integers(0, 40), st.booleans(), st.just(""))


@settings(max_examples=300)
@given(st.lists(st.one_of(deliveries, takes, takes, rollbacks), max_size=60))
def test_unacked_behaves_as_one_entry_for_each_delivery(steps: list[tuple[str, int, int, str]]) -> None:
    unacked, model = Unacked(), Model()
    tag, sequence = 1, 0
    for step, first, second, how in steps:
        if step == "add":
            messages = [cast("Message", object()) for _ in range(second)]
            sequence += 5 if how == "gap" else 0
            sequences: range | list[int] = range(sequence, sequence + second)
            if how == "list":
                sequences = list(sequences)[::-1]
            unacked.add(QUEUES[first], None, messages, sequences, tag)
            for index, message in enumerate(messages):
                model.entries[tag + index] = (QUEUES[first], message, sequences[index])
            tag += second
            sequence += second
        elif step == "take":
            assert flat(unacked.take(first, multiple=bool(second))) == model.take(first, multiple=bool(second))
        else:
            pieces = unacked.take(first, multiple=bool(second))
            if pieces is not None:
                unacked.put_back(pieces)
        assert len(unacked) == len(model.entries)
    assert flat(unacked.take_all()) == list(model.entries.items())
    assert len(unacked) == 0


def test_unacked_keeps_no_trace_of_settled_deliveries_when_one_is_never_settled() -> None:
    unacked = Unacked()
    message = cast("Message", object())
    for tag in range(1, 20_001):
        # Two queues in turn, so that no delivery continues the slice before it.
        unacked.add(QUEUES[tag % 2], None, [message], range(tag, tag + 1), tag)
        if tag > 1:
            assert unacked.take(tag, multiple=False) is not None
    assert len(unacked) == 1
    assert len(unacked._slices) < 500


def test_unacked_keeps_no_trace_of_settled_deliveries_when_they_are_settled_in_order() -> None:
    unacked = Unacked()
    message = cast("Message", object())
    for tag in range(1, 20_001):
        unacked.add(QUEUES[tag % 2], None, [message], range(tag, tag + 1), tag)
        if tag > 10:
            assert unacked.take(tag - 10, multiple=False) is not None
    assert len(unacked) == 10
    assert len(unacked._slices) < 500


def test_unacked_joins_deliveries_that_continue_each_other() -> None:
    unacked = Unacked()
    message = cast("Message", object())
    for tag in range(1, 101):
        unacked.add(QUEUES[0], None, [message], range(tag, tag + 1), tag)
    assert len(unacked._slices) == 1
    pieces = unacked.take(60, multiple=True)
    assert pieces is not None
    assert [len(piece.messages) for piece in pieces] == [60]
