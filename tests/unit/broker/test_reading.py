"""Publishings as a server reads them: those that repeat the one before take a short way, and nobody can tell."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from tests.corpus import frames
from tests.corpus.frames import HEADER, ack, bodies, body, delivery, frame, header, publish

from leveret.wire.message import redelivered_copy
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader

PERSISTENT = Properties(content_type="application/json", delivery_mode=2).encode()
TRANSIENT = Properties(content_type="application/json", delivery_mode=1).encode()


def publishing(data: bytes = b"a body", channel: int = 1, properties: bytes = PERSISTENT, bits: int = 0) -> bytes:
    return publish(channel, exchange="e", bits=bits) + header(channel, len(data), properties) + body(channel, data)


def read(pieces: list[bytes], **limits: Any) -> tuple[list[frames.Event], str, int]:
    """What comes of a stream: messages and methods, the error that ended it, and how many frames were whole."""
    reader = FrameReader(server=True, **limits)
    events = frames.feed_pieces(reader, pieces)
    return events, repr(reader.error), reader.received_frames


def assert_read_alike(stream: bytes, **limits: int) -> None:
    # Nothing is whole when it comes byte by byte, so that takes the long way from frame to frame.
    octets = [stream[at : at + 1] for at in range(len(stream))]
    assert read([stream], **limits) == read(octets, **limits)


@pytest.mark.parametrize(
    "following",
    [
        publishing(b"another body"),
        publishing(b"x" * 4088),
        publishing(b"x" * 4089),
        publishing(b"x" * 5000),
        publishing(properties=TRANSIENT),
        publishing(properties=frames.NO_PROPERTIES),
        publishing(channel=2),
        publishing(bits=1),
        publishing(bits=2),
        publishing(bits=3),
        publish(1, exchange="e") + header(1, 0, PERSISTENT),
        publish(1, exchange="e") + header(1, 6, PERSISTENT) + b"".join(bodies(1, b"a body", 2)),
        publish(1, exchange="e") + header(1, 6, PERSISTENT) + body(1, b"a bo"),
        publish(1, exchange="e") + header(1, 6, PERSISTENT) + body(1, b"a body too long"),
        publish(1, exchange="e") + header(1, 6, PERSISTENT, weight=1) + body(1, b"a body"),
        publish(1, exchange="e") + frame(HEADER, 1, bytes.fromhex("003c0000 0000000000000006 80")) + body(1, b"a body"),
        publish(1, exchange="e") + frame(HEADER, 1, b"") + body(1, b"a body"),
        publish(1, exchange="e") + header(1, 6, b"p" * 4077) + body(1, b"a body"),
        publish(1, exchange="e") + header(1, 6, PERSISTENT, class_id=61) + body(1, b"a body"),
        publish(1, exchange="e") + header(2, 6, PERSISTENT) + body(1, b"a body"),
        publish(1, exchange="e") + header(1, 6, PERSISTENT) + body(2, b"a body"),
        publish(1, exchange="e") + publishing(),
        publish(1, exchange="e") + header(1, 6, PERSISTENT) + publishing(),
        frames.HEARTBEAT_FRAME,
        ack(1, 1),
    ],
)
def test_publishing_is_read_alike_on_the_short_way_and_on_the_long_one(following: bytes) -> None:
    assert_read_alike(publishing() + following + publishing() * 2, max_body_size=4500)


def test_publishing_with_any_wrong_octet_is_read_alike_on_both_ways() -> None:
    second = publishing()
    for at in range(len(second)):
        for octet in {0, 1, 3, 0xCE, 0xFF, second[at] ^ 1} - {second[at]}:
            assert_read_alike(publishing() + second[:at] + bytes([octet]) + second[at + 1 :] + publishing())


def test_publishings_are_read_alike_when_the_stream_is_cut_at_any_offset() -> None:
    stream = publishing(b"one") + publishing(b"two") + publishing(b"three")
    for at in range(len(stream) + 1):
        assert read([stream[:at], stream[at:]]) == read([stream])


def test_publishing_repeats_the_last_one_of_its_own_channel_inside_the_content_of_another() -> None:
    head = publish(2, exchange="e") + header(2, 6, PERSISTENT)
    stream = publishing() + head + publishing() * 2 + body(2, b"a body") + publishing()
    assert_read_alike(stream)
    assert [event[1] for event in read([stream])[0]] == [1, 1, 1, 2, 1]


def test_publishing_after_a_channel_was_forgotten_is_read_as_any_other() -> None:
    reader = FrameReader(server=True)
    reader.feed(publishing() + publish(1, exchange="e"))
    reader.forget(1)
    run = frames.run_of(reader.feed(publishing() * 2))
    assert [message.body for message in run.messages] == [b"a body"] * 2


def test_body_over_the_limit_is_not_kept_on_either_way() -> None:
    events, error, _ = read([publishing() + publishing(b"x" * 20)], max_body_size=10)
    assert [event[-1] for event in events] == [b"a body", None]
    assert error == "None"


def test_run_names_the_properties_that_all_its_messages_share() -> None:
    run = frames.run_of(FrameReader(server=True).feed(publishing() * 3))
    assert run.common_properties == PERSISTENT
    assert all(message.raw_properties is run.common_properties for message in run.messages)
    run = frames.run_of(
        FrameReader(server=True).feed(publishing() * 2 + publishing(properties=TRANSIENT) + publishing())
    )
    assert run.common_properties is None
    for too_large in (publishing(b"x" * 20) + publishing(), publishing() + publishing(b"x" * 20)):
        run = frames.run_of(FrameReader(server=True, max_body_size=10).feed(too_large))
        assert run.common_properties is None


def test_messages_share_a_run_whatever_their_names_are() -> None:
    # Among so many there are some that the reader's cache of names has to keep in one place.
    for number in range(1000):
        stream = b"".join(delivery(1, tag, exchange=f"exchange-{number}", routing_key="key") for tag in range(1, 4))
        assert len(FrameReader().feed(stream)) == 1
        one = publish(1, exchange=f"exchange-{number}", routing_key="key") + header(1, 0)
        assert len(FrameReader(server=True).feed(one * 3)) == 1


def test_publishings_are_no_burden_to_the_garbage_collector() -> None:
    run = frames.run_of(FrameReader(server=True).feed(publishing() * 3))
    assert not any(map(gc.is_tracked, run.messages))
    assert not gc.is_tracked(redelivered_copy(run.messages[0]))
    # A delivery can be part of a cycle: it knows its consumer.
    run = frames.run_of(FrameReader().feed(delivery(1, 1)))
    assert all(map(gc.is_tracked, run.messages))
