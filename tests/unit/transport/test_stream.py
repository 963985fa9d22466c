"""A frame transport reads and writes, without a socket."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tests.corpus import frames

from leveret.errors import ProtocolError
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

DELIVERY = frames.delivery(1, 1, b"body", consumer_tag="c")
CONFIRM = frames.method(1, 60, 80, b"\0\0\0\0\0\0\0\1\0")


class Session:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.failures: list[object] = []

    def events_received(self, events: list[object]) -> None:
        self.events += events

    def event_failed(self, error: Exception) -> None:
        self.failures.append(error)

    def stream_failed(self, error: ProtocolError) -> None:
        self.failures.append(error)


class Owner:
    """A consumer and a publisher."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs: list[object] = []
        self.error = error

    def take(self, run: object) -> None:
        self.runs.append(run)
        if self.error is not None:
            raise self.error

    delivered = settled = take


class Writer:
    """The written bytes, one item for each write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, block: bytes) -> None:
        self.written.append(block)

    def writelines(self, pieces: list[bytes]) -> None:
        self.written.append(b"".join(pieces))


def made(owner: Owner | None = None) -> tuple[FrameTransport, Session, Writer]:
    session, writer = Session(), Writer()
    transport = FrameTransport(session, FrameReader())  # type: ignore[arg-type]
    transport._transport = writer  # type: ignore[assignment]
    if owner is not None:
        transport.channels = {1: SimpleNamespace(consumers={"c": owner}, publisher=owner)}
    return transport, session, writer


def receive(transport: FrameTransport, data: bytes) -> None:
    memoryview(transport.get_buffer(len(data)))[: len(data)] = data
    transport.buffer_updated(len(data))


@pytest.mark.parametrize(("data", "kind"), [(DELIVERY, ContentRun), (CONFIRM, SettlementRun)])
async def test_what_a_read_brings_alone_goes_to_its_owner(data: bytes, kind: type) -> None:
    owner = Owner()
    transport, session, _ = made(owner)
    receive(transport, data)
    assert [type(run) for run in owner.runs] == [kind]
    assert session.events == []


async def test_what_comes_together_goes_to_its_owners_in_its_order() -> None:
    owner = Owner()
    transport, session, _ = made(owner)
    receive(transport, DELIVERY + CONFIRM + DELIVERY)
    assert [type(run) for run in owner.runs] == [ContentRun, SettlementRun, ContentRun]
    assert session.events == []


async def test_from_the_first_other_event_on_the_session_gets_the_rest() -> None:
    owner = Owner()
    transport, session, _ = made(owner)
    receive(transport, DELIVERY + frames.method(1, 20, 40, b"\0\0") + CONFIRM)
    assert [type(run) for run in owner.runs] == [ContentRun]
    assert [type(event) for event in session.events] == [MethodFrame, SettlementRun]


async def test_nothing_is_handed_over_behind_what_failed() -> None:
    owner = Owner(ValueError())
    transport, session, _ = made(owner)
    receive(transport, DELIVERY + CONFIRM)
    assert len(owner.runs) == 1
    assert session.events == []
    assert session.failures == [owner.error]


@pytest.mark.parametrize(
    "data",
    [
        frames.delivery(2, 1, b"body", consumer_tag="c"),
        frames.delivery(1, 1, b"body", consumer_tag="unknown"),
        CONFIRM.replace(b"\1\0\1", b"\1\0\2", 1),
        frames.method(1, 20, 40, b"\0\0"),
    ],
    ids=["unknown channel", "unknown consumer", "confirm of an unknown channel", "method"],
)
async def test_the_session_sees_everything_else(data: bytes) -> None:
    owner = Owner()
    transport, session, _ = made(owner)
    receive(transport, data)
    assert owner.runs == []
    assert len(session.events) == 1


async def test_a_channel_without_a_publisher_has_its_confirms_looked_at() -> None:
    transport, session, _ = made()
    transport.channels = {1: SimpleNamespace(consumers={}, publisher=None)}
    receive(transport, CONFIRM)
    assert [type(event) for event in session.events] == [SettlementRun]


@pytest.mark.parametrize("data", [DELIVERY, CONFIRM])
async def test_the_session_is_told_when_an_owner_fails(data: bytes) -> None:
    error = ValueError("a defect")
    transport, session, _ = made(Owner(error))
    receive(transport, data)
    assert session.failures == [error]


async def test_the_session_is_told_of_what_makes_no_sense_after_what_did() -> None:
    owner = Owner()
    transport, session, _ = made(owner)
    receive(transport, DELIVERY + b"\7")
    assert len(owner.runs) == 1
    (error,) = session.failures
    assert isinstance(error, ProtocolError)


async def test_what_is_appended_in_a_turn_leaves_in_one_write() -> None:
    transport, _, writer = made()
    transport.flush()
    assert writer.written == [], "there was nothing to write"
    transport.out.append(b"one")
    transport.out.append(b"two")
    assert writer.written == []
    await asyncio.sleep(0)
    assert writer.written == [b"onetwo"]
    transport.out.append(b"three")
    await asyncio.sleep(0)
    assert writer.written == [b"onetwo", b"three"]


async def test_what_a_read_brings_about_leaves_in_one_write_at_its_end() -> None:
    class Answers(Owner):
        def take(self, run: object) -> None:
            super().take(run)
            transport.out.append(b"one")
            transport.out.append(b"two")
            assert writer.written == []

        delivered = take

    transport, _, writer = made(Answers())
    transport.channels[1].publisher = Owner(ValueError("a defect"))
    receive(transport, DELIVERY)
    assert writer.written == [b"onetwo"], "no turn of the loop was needed"
    receive(transport, CONFIRM)
    assert writer.written == [b"onetwo"], "there was nothing to write"
    # And what comes later has its turn again.
    transport.out.append(b"three")
    await asyncio.sleep(0)
    assert writer.written == [b"onetwo", b"three"]


async def test_nothing_is_written_when_it_is_closed() -> None:
    transport, _, writer = made()
    transport.out.append(b"one")
    transport.closed = True
    transport.flush()
    assert (writer.written, len(transport.out)) == ([], 0)


async def test_large_bodies_leave_as_pieces() -> None:
    from leveret.publishing.publish_batch import PublishBatch
    from leveret.publishing.template import PublishTemplate

    transport, _, writer = made()
    body: Any = bytes(20_000)
    PublishBatch(transport.out, None).add(PublishTemplate("", "q"), body)
    transport.flush()
    (written,) = writer.written
    assert body in written
