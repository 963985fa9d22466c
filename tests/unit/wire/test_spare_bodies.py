"""The memory of a body is used again when no reference to the body is left, and never before."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import frames, strategies
from tests.support.bodies import body_of

from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile

#: Which sizes leave their memory to others.
LEAST, MOST = 480, 8192


def reader() -> FrameReader:
    found = FrameReader(frame_max=131072)
    found.feed(frames.delivery(1, 1, b"the first one is read on the long way"))
    return found


def read(source: FrameReader, data: bytes) -> Message:
    run = frames.run_of(source.feed(frames.delivery(1, 1, data)))
    (message,) = run.messages
    return message


def test_the_next_body_gets_the_memory_of_one_without_references() -> None:
    source = reader()
    message = read(source, b"a" * 1000)
    place = id(message.body)
    del message
    message = read(source, b"b" * 1010)
    assert id(message.body) == place
    assert message.body == b"b" * 1010


def test_a_body_that_is_held_stays_as_it_is() -> None:
    source = reader()
    body = read(source, b"a" * 1000).body  # its message is gone
    view = memoryview(body_of(read(source, b"b" * 1000)))[10:20]
    others = [body_of(read(source, bytes([number]) * 1000)) for number in range(200)]
    assert body == b"a" * 1000
    assert view == b"b" * 10
    assert [other[0] for other in others] == list(range(200))


def test_a_body_is_a_whole_bytes_object_whatever_was_in_its_memory() -> None:
    source = reader()
    for size in (1024, 1000, 1023, 1001):
        body = body_of(read(source, b"k" * size))
        assert (len(body), hash(body), body + b"!") == (size, hash(b"k" * size), b"k" * size + b"!")
        assert sys.getrefcount(body) <= 3  # ours, the argument's, and the last message's


@given(
    st.lists(
        st.tuples(st.sampled_from([1, LEAST - 1, LEAST, 600, 1000, 1025, MOST, MOST + 1]), st.booleans()), max_size=300
    )
)
def test_every_body_is_what_was_sent_while_it_is_held(plan: list[tuple[int, bool]]) -> None:
    source = reader()
    held: list[tuple[bytes, bytes]] = []
    for number, (size, keep) in enumerate(plan):
        sent = number.to_bytes(4, "big") * (size // 4 + 1)
        body = body_of(read(source, sent[:size]))
        assert body == sent[:size]
        if keep:
            held.append((body, sent[:size]))
    assert all(body == sent for body, sent in held)
